"""The score of the samples during training, compared with a manual computation."""

import json
import types

import jax.numpy as jnp
import numpy as np
import pytest

from tests.metrics.network_parity import random_weights
from walt_t5x.evaluation.training_scores import ScoreVideos
from walt_t5x.media import writing
from walt_t5x.media.decoding import native_frames
from walt_t5x.metrics import networks
from walt_t5x.metrics.feature_statistics import FeatureStatistics
from walt_t5x.metrics.frechet import frechet_between
from walt_t5x.metrics.networks import KINDS, FeatureNetwork
from walt_t5x.metrics.protocols import PROTOCOLS


class _Given(ScoreVideos):
  """Scores given clips instead of a model's."""

  shows_latents = False
  made = ()

  def __init__(self, **options):
    super().__init__(**options)
    self._batch, self._tokenizer = {}, ()
    self._decode = lambda predicted: self.made / np.float32(255)


def _of(network, clips):
  return FeatureStatistics.from_model_output(network(clips)["features"])


def test_the_curve_is_the_distance_of_the_samples(tmp_path):
  rng = np.random.default_rng(0)
  clips = rng.integers(0, 256, size=(2, 4, 5, 16, 16, 3)).astype(np.uint8)
  for i, clip in enumerate(rng.integers(0, 256, size=(3, 6, 16, 16, 3)).astype(np.uint8)):
    writing.write_video(tmp_path / "real" / f"{i}.mp4", clip, fps=8)
  file = tmp_path / "shapes.safetensors"
  networks.save_weights(file, random_weights(KINDS["shapes"].expected(), seed=0))
  model = types.SimpleNamespace(predict_batch=lambda params, batch: 0)
  options = {"model": model, "dataset_cfg": None, "model_dir": str(tmp_path / "run"), "every": 10}
  options |= {"average": False}
  options |= {"reference": str(tmp_path / "real"), "weights": {"shapes": str(file)}}
  (tmp_path / "run").mkdir()
  action = _Given(protocol="shapes_fvd", **options)
  for step, made in ((5, clips[0]), (9, clips[1]), (15, clips[1])):
    action.made = made
    if step == 15:
      # The references are read once per run.
      (tmp_path / "real").rename(tmp_path / "gone")
    state = types.SimpleNamespace(step=step, params={"w": jnp.zeros(1)}, param_states=())
    assert action.run(state, {}) is False

  (tmp_path / "gone").rename(tmp_path / "real")
  network = FeatureNetwork.load("shapes", file)
  real = np.stack(
    [
      native_frames((tmp_path / "real" / f"{i}.mp4").read_bytes(), range(5), size=(16, 16))
      for i in range(3)
    ]
  )
  expected = [frechet_between(_of(network, made), _of(network, real)) for made in clips]
  protocol = PROTOCOLS["shapes_fvd"].replace(frames=5, size=(16, 16), sample_count=4)
  lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  assert [row.pop("step") for row in rows] == [5, 15]  # 9 is too early.
  name = f"scores/shapes_fvd/shapes_fvd@{protocol.hash}"
  np.testing.assert_allclose([row[name] for row in rows], expected, rtol=1e-6)
  assert list((tmp_path / "run" / "scores").glob("events*"))

  with pytest.raises(ValueError, match=r"protocol='imagenet256', expected one of \['fvd'"):
    _Given(protocol="imagenet256", **options)
  with pytest.raises(ValueError, match="scores pixels: set vae"):
    ScoreVideos(protocol="shapes_fvd", **options)
  with pytest.raises(FileNotFoundError, match="train_surrogate"):
    _Given(protocol="shapes_fvd", **options | {"weights": {}})
