"""Runs put themselves together to the cascade that gin would configure; what does not fit is named."""

import dataclasses
import shutil

import jax
import pytest

from tests.generation import cascades, random_cascade
from walt_t5x.engine.checkpoints import load_params
from walt_t5x.engine.run_record import MODEL_FILE
from walt_t5x.files import storage
from walt_t5x.generation import trained_runs
from walt_t5x.generation.loading import load_tokenizer, read_infos
from walt_t5x.models import model_record


class _Dataset:
  def __init__(self, stage, text_length):
    self.walt_fields = {"latents": stage.latents}
    if stage.low_resolution:
      self.walt_fields["low_resolution"] = stage.low_resolution
    self.walt_features = {"text": _Text((1, text_length, None))}


@dataclasses.dataclass
class _Text:
  shape: tuple


def write_records(made):
  """Writes what the training of a cascade's stages would have recorded."""
  for stage in made.stages:
    dataset = _Dataset(stage, made.text_length)
    record = model_record.record_of(model=stage.model, dataset=dataset)
    storage.write_json(storage.join(stage.checkpoint, MODEL_FILE), record)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """A cascade of runs: a base stage with an average and a super-resolution stage without."""
  made = cascades.written(tmp_path_factory.mktemp("runs"))
  write_records(made)
  return made


def _runs(made):
  return [stage.checkpoint for stage in made.stages]


def test_runs_give_the_configuration_of_gin_in_any_order(made):
  base, sr = _runs(made)
  for runs in ([base, sr], [sr, base], [storage.join(sr, "checkpoint_0"), base]):
    found = trained_runs.cascade_of(runs).config
    for stage, wanted in zip(found.stages, made.stages, strict=True):
      # JSON names a dtype.
      assert stage.model.module == wanted.model.module.clone(dtype="float32")
      assert stage.model.sampler == wanted.model.sampler
      given = ("name", "latents", "low_resolution", "ema")
      assert [getattr(stage, n) for n in given] == [getattr(wanted, n) for n in given]
      assert stage.checkpoint == storage.join(wanted.checkpoint, "checkpoint_0")
    assert found.vae == made.vae.clone(dtype="float32")
    given = ("vae_checkpoint", "text_encoder", "text_length")
    assert [getattr(found, n) for n in given] == [getattr(made, n) for n in given]
  load_tokenizer(found, read_infos(found))
  base_only = trained_runs.cascade_of([base]).config
  assert [stage.name for stage in base_only.stages] == ["base"]


def test_other_runs_are_other_samples(made):
  both, one = (trained_runs.cascade_of(_runs(made)[:count]).described for count in (2, 1))
  assert both != one


def test_the_tokenizer_is_read_with_the_weights_that_made_the_data(made, tmp_path):
  # The fingerprint decides between the weights and their average.
  infos = read_infos(trained_runs.cascade_of(_runs(made)).config)
  params = load_params(made.vae_checkpoint)
  other = jax.tree.map(lambda p: p + 0.01, params)
  for name, target, average in (("raw", params, other), ("averaged", other, params)):
    random_cascade._save(str(tmp_path / name), target, ema=True, average=average)
    config = trained_runs.cascade_of(_runs(made), vae_checkpoint=str(tmp_path / name)).config
    load_tokenizer(config, infos)
  random_cascade._save(str(tmp_path / "neither"), other, ema=True)
  config = trained_runs.cascade_of(_runs(made), vae_checkpoint=str(tmp_path / "neither")).config
  with pytest.raises(ValueError, match="the tokenizer has fingerprint"):
    load_tokenizer(config, infos)


def test_runs_that_do_not_fit_and_parts_that_moved_are_named(made, tmp_path):
  base, sr = _runs(made)
  with pytest.raises(ValueError, match="for a base stage, and none is"):
    trained_runs.cascade_of([sr])
  with pytest.raises(ValueError, match="both are"):
    trained_runs.cascade_of([base, storage.join(base, "checkpoint_0")])
  shutil.move(made.text_encoder, tmp_path / "text")
  try:
    with pytest.raises(FileNotFoundError, match="set --text_encoder"):
      trained_runs.cascade_of([base, sr])
    moved = trained_runs.cascade_of([base, sr], text_encoder=str(tmp_path / "text")).config
    assert moved.text_encoder == str(tmp_path / "text")
  finally:
    shutil.move(tmp_path / "text", made.text_encoder)
