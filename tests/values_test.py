"""Dataclasses passed between modules are frozen and keyword-only."""

import dataclasses
import importlib
import inspect

import pytest

BY_NAME = (
  "beam_jobs.shards.replays.Replay",
  "beam_jobs.shards.shard_files.ShardName",
  "data.rows.RowFormat",
  "data.rows.Rows",
  "data.schema.Record",
  "walt_t5x.diffusion.schedules.NoiseSchedule",
  "walt_t5x.generation.cascade.Batch",
  "walt_t5x.generation.cascade.Sample",
  "walt_t5x.generation.requests.Request",
  "walt_t5x.generation.sample_folder.StoredSample",
)
BY_PLACE = (
  "beam_jobs.shards.ledger.Summary",
  "walt_t5x.denoiser.adaln.Modulation",
  "walt_t5x.diffusion.guidance.AdaptiveProjection",
  "walt_t5x.diffusion.guidance.ConstantGuidance",
  "walt_t5x.diffusion.guidance.IntervalGuidance",
  "walt_t5x.diffusion.guidance.PowerCosineGuidance",
  "walt_t5x.metrics.frechet.FoldScore",
)


def _class(name):
  module, _, own = name.rpartition(".")
  return getattr(importlib.import_module(module), own)


@pytest.mark.parametrize("name", [*BY_NAME, *BY_PLACE])
def test_a_value_cannot_be_changed(name):
  value = object.__new__(_class(name))
  for field in dataclasses.fields(value):
    with pytest.raises(dataclasses.FrozenInstanceError):
      setattr(value, field.name, None)


@pytest.mark.parametrize("name", BY_NAME)
def test_fields_are_keyword_only(name):
  parameters = inspect.signature(_class(name)).parameters.values()
  assert {parameter.kind for parameter in parameters} == {inspect.Parameter.KEYWORD_ONLY}
