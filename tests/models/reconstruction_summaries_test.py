"""Written reconstructions of a tokenizer are read back unchanged."""

import types

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorflow as tf

from walt_t5x.engine import optimizers
from walt_t5x.media import reading
from walt_t5x.models.reconstruction_summaries import (
  ReconstructionSummaries,
  comparison_strip,
  comparison_video,
)


class _Task:
  name = "toy"

  def __init__(self, count):
    self.video = np.random.default_rng(0).integers(0, 256, (count, 5, 16, 16, 3), np.uint8)

  def get_dataset(self, **_):
    return tf.data.Dataset.from_tensor_slices({"video": self.video})


class _Negative:
  """Reconstructs the negative."""

  def __init__(self, ema_decay=0.9):
    self.optimizer_def = optimizers.adamw(0.1, ema_decay=ema_decay)

  def predict_batch(self, params, batch):
    return params["one"] - batch["video"] / 255.0


def _run(folder, count=3, **settings):
  task = _Task(count)
  action = ReconstructionSummaries(
    model=_Negative(), task=task, model_dir=str(folder), clips=2, **settings
  )
  average = optax.EmaState(jnp.int32(7), {"one": jnp.float32(1)})
  state = types.SimpleNamespace(
    params={"one": jnp.float32(5)}, param_states=(average,), step=jnp.int32(7)
  )
  assert action.run(state, metrics_by_task={}) is False
  return task.video


def test_a_strip_has_originals_above_and_reconstructions_below():
  a = np.arange(2 * 5)[:, None, None, None].reshape(2, 5, 1, 1, 1) / 255 * np.ones((1, 1, 2, 2, 3))
  strip = comparison_strip(a, a + 100 / 255, frames=3)
  assert strip.shape == (2 * 2 * 2, 3 * 2, 3)
  np.testing.assert_array_equal(
    strip[::2, ::2, 0], [[0, 2, 4], [100, 102, 104], [5, 7, 9], [105, 107, 109]]
  )
  clip = comparison_video(a, a + 100 / 255)
  np.testing.assert_array_equal(clip[3, ::2, ::2, 0], [[3, 103], [8, 108]])


def test_a_run_without_an_average_says_so_before_it_starts(tmp_path):
  settings = {"task": None, "model_dir": str(tmp_path)}
  with pytest.raises(ValueError, match=r"ReconstructionSummaries\.average=True, but the optimizer"):
    ReconstructionSummaries(model=_Negative(ema_decay=None), **settings)
  ReconstructionSummaries(model=_Negative(ema_decay=None), average=False, **settings)


def test_an_evaluation_writes_a_clip_an_image_and_the_scores(tmp_path):
  seen = []

  def score(original, reconstruction):
    seen.append((original, reconstruction))
    return {"rfvd": 12.5}

  video = _run(tmp_path, scores=[score])
  folder = tmp_path / "reconstructions"
  clip = reading.read_video(folder / "7.mp4").frames
  assert clip.shape == (5, 32, 32, 3)
  np.testing.assert_allclose(seen[0][0], video[:2] / 255, atol=1e-6)
  np.testing.assert_allclose(seen[0][1], 1 - video[:2] / 255, atol=1e-6)
  (events,) = folder.glob("events*")
  found = {}
  for event in tf.compat.v1.train.summary_iterator(str(events)):
    for value in event.summary.value:
      found[value.tag] = tf.make_ndarray(value.tensor)
  np.testing.assert_allclose(found["reconstructions/rfvd"], 12.5)
  picture = tf.io.decode_png(found["reconstructions"][2]).numpy()
  np.testing.assert_array_equal(picture[:16, :16], video[0, 0])


def test_a_split_without_clips_is_rejected(tmp_path):
  with pytest.raises(ValueError, match="split 'validation' of toy has no clips"):
    _run(tmp_path, count=0)
