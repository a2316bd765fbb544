"""The launcher stops before training on a cache of other encoders, and reports the difference and what to do."""

import dataclasses
import json

import numpy as np
import pytest
import seqio

from data import cached_tasks, provenance, schema
from tests.data.toy_cache import write_task
from tests.engine import runs
from tests.engine.launcher_test import launch  # noqa: F401 - a fixture
from walt_t5x import engine
from walt_t5x.engine import run_record

FIELDS = {"image": "latents/1x8x8", "video": "latents/3x8x8"}
CHANNELS, WIDTH = 8, 64


def _provenance():
  statistics = provenance.LatentStatistics(
    channels=CHANNELS, mean=[0.5] * CHANNELS, std=[2.0] * CHANNELS
  )
  return provenance.Provenance(
    vae={"fingerprint": "vae-a"},
    text_encoder={"fingerprint": "t5-a", "embedding_dim": WIDTH},
    fps=8.0,
    num_frames=9,
    latents=dict.fromkeys(FIELDS.values(), statistics),
    null_ids=np.array([1]),
    null_embedding=np.full((1, WIDTH), 0.5),
  )


def _write_cache(folder, kept):
  for modality, field in FIELDS.items():
    random = np.random.default_rng(0)
    records = [
      schema.Record(
        id=f"{index:064x}",
        uri=str(index),
        modality=modality,
        latents={field: random.normal(size=(*schema.latents_shape(field), CHANNELS))},
        captions=["a caption"],
        caption_weights=[1.0],
        text_ids=[np.arange(3)],
        text_embedding=[random.normal(size=(3, WIDTH))],
      )
      for index in range(12)
    ]
    write_task(folder / f"shapes_{modality}s", records, kept)
  return folder


def _of(kept, name, **changes):
  statistics = kept.latents[name]
  return {"latents": kept.latents | {name: dataclasses.replace(statistics, **changes)}}


OTHERS = {
  "vae.fingerprint": (lambda kept: {"vae": {"fingerprint": "vae-b"}}, "vae-a", "vae-b"),
  "text_encoder.fingerprint": (
    lambda kept: {"text_encoder": {"fingerprint": "t5-b", "embedding_dim": WIDTH}},
    "t5-a",
    "t5-b",
  ),
  "posterior": (lambda kept: {"posterior": "sample"}, "mean", "sample"),
  "latents.latents/3x8x8.mean": (
    lambda kept: _of(kept, "latents/3x8x8", mean=[0.5] * 7 + [0.25]),
    "0.5, 0.5]",
    "0.5, 0.25]",
  ),
  "latents.latents/1x8x8.std": (
    lambda kept: _of(kept, "latents/1x8x8", std=[2.0] * 7 + [3.0]),
    "2.0, 2.0]",
    "2.0, 3.0]",
  ),
}


def _train(launch, model_dir, cache, steps):  # noqa: F811
  before = list(seqio.get_global_cache_dirs())
  seqio.set_global_cache_dirs([])
  cached_tasks.handle.cache_clear()
  try:
    launch(
      "--gin_file=gin/tiny/base.gin",
      f'--gin.MODEL_DIR="{model_dir}"',
      f"--seqio_additional_cache_dirs={cache}",
      f"--gin.TRAIN_STEPS={steps}",
      "--gin.BATCH_SIZE=8",
      "--gin.STATS_PERIOD=1",
      "--gin.schedules.warmup_cosine.warmup_steps=0",
      "--gin.train_script.train.train_eval_dataset_cfg=None",
      "--gin.base/transformer.WaltDenoiser.num_layers=2",
      "--gin.base/transformer.WaltDenoiser.width=32",
      "--gin.base/transformer.WaltDenoiser.num_heads=2",
      "--gin.base/transformer.WaltDenoiser.mlp_dim=32",
    )
  finally:
    seqio.set_global_cache_dirs(before)
    cached_tasks.handle.cache_clear()


@pytest.mark.parametrize("field", OTHERS)
def test_the_launcher_stops_at_a_cache_of_other_encoders(
  launch,  # noqa: F811
  tmp_path,
  field,
):
  run = tmp_path / "run"
  run.mkdir()
  run_record.record(str(run), json.loads(_provenance().to_json()))
  runs.write_empty_checkpoint(run, 1)
  change, old, new = OTHERS[field]
  kept = _provenance()
  other = _write_cache(tmp_path / "cache", dataclasses.replace(kept, **change(kept)))
  with pytest.raises(SystemExit) as error:
    _train(launch, run, other, 2)
  for part in (field, old, new, "Point the run at the dataset it was trained on, or start a new"):
    assert part in str(error.value), part
  assert engine.checkpoints.complete_steps(run) == [1]


def test_the_launcher_stops_at_a_cache_of_another_schema(launch, tmp_path):  # noqa: F811
  old = _write_cache(tmp_path / "cache", dataclasses.replace(_provenance(), schema_version=2))
  with pytest.raises(SystemExit) as error:
    _train(launch, tmp_path / "run", old, 1)
  for part in (
    "schema_version",
    "got 2",
    f"expected {schema.SCHEMA_VERSION}",
    "preprocess the media",
  ):
    assert part in str(error.value)
