"""model.json is data: what is not a setting of a known class is neither written nor read."""

import json

import numpy as np
import pytest

from tests import tiny_denoiser
from walt_t5x.denoiser.transformer import WaltDenoiser
from walt_t5x.diffusion.guidance import PowerCosineGuidance
from walt_t5x.diffusion.samplers.caching import EmbeddingChange, EveryNth
from walt_t5x.engine.run_record import MODEL_FILE
from walt_t5x.files.mismatch import Mismatch
from walt_t5x.models import model_record
from walt_t5x.models.denoiser_model import DenoiserModel
from walt_t5x.models.sampling import SamplerConfig


def _model(guidance, cache=None):
  module = WaltDenoiser(**tiny_denoiser.FIELDS)
  sampler = SamplerConfig(guidance=guidance, cache=cache)
  return DenoiserModel(module=module, optimizer_def=None, sampler=sampler)


def _record(guidance=None, **settings):
  return model_record.record_of(model=_model(guidance, **settings), dataset=None)


def test_guidance_is_kept_and_code_is_not_described(tmp_path):
  guidance = PowerCosineGuidance(scale=3.0, power=2.0)
  (tmp_path / MODEL_FILE).write_text(json.dumps(_record(guidance)))
  assert model_record.read(tmp_path).model.sampler.guidance == guidance
  assert _record(lambda time: 2 * time) is None
  # A class, which numpy takes for a dtype.
  assert _record(np.ndarray) is None
  assert model_record.record_of(model=object(), dataset=None) is None


@pytest.mark.parametrize("cache", [None, EveryNth(3, low=0.1), EmbeddingChange(0.5)])
def test_the_cache_of_the_sampler_is_kept(cache, tmp_path):
  (tmp_path / MODEL_FILE).write_text(json.dumps(_record(cache=cache)))
  assert model_record.read(tmp_path).model.sampler.cache == cache


@pytest.mark.parametrize(
  ("change", "named"),
  [
    ({"format": 2}, "format is 2, expected 1"),
    ({"model": {"class": "Popen", "args": ["true"]}}, "unknown class 'Popen'"),
    ({"model": {"class": "DenoiserModel", "colors": 1}}, "colors"),
    ({"color": "red"}, "color"),
  ],
)
def test_a_changed_record_is_named(change, named, tmp_path):
  (tmp_path / MODEL_FILE).write_text(json.dumps(_record() | change))
  with pytest.raises(Mismatch, match=named) as error:
    model_record.read(tmp_path)
  assert str(tmp_path / MODEL_FILE) in str(error.value)


def test_a_run_without_a_record_is_told_what_to_give(tmp_path):
  (tmp_path / "checkpoint_3").mkdir()
  with pytest.raises(FileNotFoundError, match="--gin_file"):
    model_record.read(tmp_path / "checkpoint_3")
