"""Properties of the training loss: random draws, dropped conditions, and gradients."""

import contextlib
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.corpus import CorpusConstants
from tests import tiny_denoiser
from tests.random_params import random_params
from walt_t5x.denoiser.transformer import Conditioning, WaltDenoiser
from walt_t5x.engine.builtin import trainer
from walt_t5x.files.mismatch import Mismatch
from walt_t5x.models import denoiser_inputs
from walt_t5x.models.denoiser_model import DenoiserModel
from walt_t5x.models.sampling import SamplerConfig

TINY = tiny_denoiser.FIELDS | {"text_dim": 6}
CORPUS = CorpusConstants(null_text=np.full((1, 6), 0.3, np.float32))


def _batch(rows=4, seed=0, images=True):
  rng = np.random.default_rng(seed)
  return {
    "latents": jnp.asarray(rng.normal(size=(rows, 3, 4, 4, 4)), jnp.float32),
    "is_image": jnp.asarray(np.arange(rows) % 2 == 1) if images else jnp.zeros(rows, bool),
    "text": jnp.asarray(rng.normal(size=(rows, 3, 5, 6)), jnp.float32),
    "text_mask": jnp.ones((rows, 3, 5), bool),
  }


def _model(**changes):
  fields = {k: changes.pop(k) for k in list(changes) if k in WaltDenoiser.__dataclass_fields__}
  module = WaltDenoiser(**(TINY | fields))
  return DenoiserModel(module=module, optimizer_def=None, corpus=lambda: CORPUS, **changes)


@functools.cache
def _params(**fields):
  """Parameters with random values everywhere, so that no zero initialization hides an error."""
  model = _model(**fields)
  batch = _batch()
  shapes = {name: value.shape for name, value in batch.items()}
  types = {name: value.dtype for name, value in batch.items()}
  return random_params(lambda key: model.get_initial_variables(key, shapes, types), seed=1)


@functools.cache
def _loss_fn(**changes):
  """The compiled loss of a model, shared by the tests that look at it."""
  return jax.jit(_model(**changes).loss_fn)


class _Linear:
  """A network w x_t + u self_condition, small enough to differentiate by hand."""

  text_dim = num_classes = low_resolution_scale = 0
  guidance_range = None
  frame_prediction, self_conditioning = False, True

  def apply(self, variables, x_t, steps, self_condition, conditioning):
    w, u = variables["params"]["w"], variables["params"]["u"]
    return w * x_t + u * (0.0 if self_condition is None else self_condition)


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_loss_and_gradient_equal_a_manual_pass_with_a_constant_first_estimate(probability):
  model = DenoiserModel(
    module=_Linear(), optimizer_def=None, self_conditioning_probability=probability
  )
  batch = {"latents": _batch()["latents"]}
  key = jax.random.key(3)
  params = {"w": jnp.float32(0.4), "u": jnp.float32(0.7)}
  evaluated = jax.value_and_grad(lambda p: model.loss_fn(p, batch, key), has_aux=True)
  (loss, _), gradient = jax.jit(evaluated)(params)

  rng_steps, rng_noise, _, _ = jax.random.split(key, 4)
  x0 = np.asarray(batch["latents"], np.float64)
  steps = np.asarray(jax.random.randint(rng_steps, (4,), 1, 1001))
  g = model.schedule.gammas[steps].reshape(-1, 1, 1, 1, 1)
  noise = np.asarray(jax.random.normal(rng_noise, x0.shape), np.float64)
  x_t = np.sqrt(g) * x0 + np.sqrt(1 - g) * noise
  v = np.sqrt(g) * noise - np.sqrt(1 - g) * x0
  first = probability * (np.sqrt(g) * x_t - np.sqrt(1 - g) * 0.4 * x_t)
  error = 0.4 * x_t + 0.7 * first - v
  np.testing.assert_allclose(loss, np.mean(error**2), rtol=1e-4)
  # No term for d first / d w: the estimate has a stop-gradient.
  np.testing.assert_allclose(gradient["w"], np.mean(2 * error * x_t), rtol=1e-3, atol=1e-5)
  np.testing.assert_allclose(gradient["u"], np.mean(2 * error * first), rtol=1e-3, atol=1e-5)


def test_metrics_split_the_loss_by_kind_of_example_and_by_noise():
  loss, metrics = _loss_fn()(_params(), _batch(), jax.random.key(5))
  values = {name: float(metric.compute()) for name, metric in metrics.items()}
  np.testing.assert_allclose(values["loss"], loss, rtol=1e-5)
  np.testing.assert_allclose(
    values["loss"], (values["loss_image"] + values["loss_video"]) / 2, rtol=1e-5
  )
  parts = [metrics[f"loss_noise_{i}_of_4"] for i in range(1, 5)]
  assert sum(float(part.count) for part in parts) == 4
  np.testing.assert_allclose(sum(float(part.total) for part in parts) / 4, loss, rtol=1e-5)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_no_metric_of_a_kind_without_examples_is_written(kind):
  rows = 3
  errors, steps = jnp.arange(1.0, 1 + rows), jnp.full(rows, 1000)
  metrics = _model()._metrics(errors, steps, jnp.full(rows, kind == "image"))
  written = trainer._scalars(metrics)
  assert written == {
    **{"loss": 2.0, f"loss_{kind}": 2.0, "loss_noise_4_of_4": 2.0},
    **{"rate_image": float(kind == "image"), "rate_video": float(kind == "video")},
  }
  diverged = trainer._scalars(
    _model()._metrics(errors * jnp.nan, steps, jnp.array([True, False, True]))
  )
  assert np.isnan([diverged["loss"], diverged["loss_image"], diverged["loss_video"]]).all()


def test_measured_rates_are_fractions_of_all_examples_of_a_period():
  model, kinds = _model(), ([True, False, False, False], [True, True], [False])
  measure = jax.jit(model._metrics)
  period = [measure(np.zeros(len(kind)), np.ones(len(kind)), np.asarray(kind)) for kind in kinds]
  for name, share in (("rate_image", 3 / 7), ("rate_video", 4 / 7)):
    first, *others = (metrics[name] for metrics in period)
    for other in others:
      first = first.merge(other)
    np.testing.assert_allclose(first.compute(), share, rtol=1e-6)


def test_with_every_caption_dropped_the_loss_does_not_depend_on_the_text():
  batch = _batch()
  other = dict(batch, text=batch["text"] + 1)
  for changes, same in (({"drop_probability": 1.0}, True), ({}, False)):
    losses = [
      float(_loss_fn(**changes)(_params(), given, jax.random.key(1))[0]) for given in (batch, other)
    ]
    assert (losses[0] == losses[1]) == same


def test_dropping_sets_the_null_caption_the_null_class_and_no_frames():
  batch = _batch(rows=2)
  full = Conditioning(
    text=batch["text"],
    text_mask=batch["text_mask"],
    labels=jnp.array([[1, 2, 3], [4, 5, 6]]),
    frame_mask=jnp.ones((2, 3)),
  )
  dropped = denoiser_inputs.drop(
    full,
    jnp.array([[True, False, False], [False, False, True]]),
    frames=jnp.array([True, False]),
    null_text=CORPUS.null_text,
  )
  np.testing.assert_array_equal(dropped.labels, [[-1, 2, 3], [4, 5, -1]])
  np.testing.assert_array_equal(dropped.frame_mask, [[0, 0, 0], [1, 1, 1]])
  np.testing.assert_array_equal(dropped.text_mask[0, 0], [1, 0, 0, 0, 0])
  np.testing.assert_allclose(dropped.text[0, 0, 0], 0.3)
  np.testing.assert_array_equal(dropped.text[0, 1:], full.text[0, 1:])
  with pytest.raises(ValueError, match="null_text"):
    denoiser_inputs.drop(full, jnp.ones((2, 1), bool), frames=jnp.ones(2, bool))


def test_text_and_past_frames_are_dropped_independently():
  """Every branch of guidance with two scales is trained: frames without text, text without frames, and neither."""
  rows = 4000
  batch = {
    "text": jnp.ones((rows, 1, 2, 6)),
    "text_mask": jnp.ones((rows, 1, 2), bool),
    "is_image": jnp.zeros(rows, bool),
  }
  model = _model(frame_prediction=True, frame_prediction_probability=1.0, drop_probability=0.3)
  given = model._training_conditioning(
    batch, jnp.zeros((rows, 3, 1, 1, 4)), jax.random.key(0), null_text=CORPUS.null_text
  )
  text = np.asarray(given.text)[:, 0, 0, 0] == 1
  frames = np.asarray(given.frame_mask).any(1)
  np.testing.assert_allclose(
    [np.mean(text & frames), np.mean(~text & frames), np.mean(text & ~frames)],
    [0.49, 0.21, 0.21],
    atol=0.03,
  )


def test_past_frames_are_given_to_the_requested_fraction_of_videos_one_or_two_at_a_time():
  model = _model(frame_prediction=True, frame_prediction_probability=0.4)
  rows = 4000
  latents = jnp.zeros((rows, 3, 1, 1, 4))
  is_image = jnp.arange(rows) % 2 == 1
  given = model._with_past_frames(Conditioning(is_image=is_image), jax.random.key(0), latents)
  mask = np.asarray(given.frame_mask)
  assert not mask[1::2].any()
  counts = np.bincount(mask[::2].sum(1).astype(int), minlength=4) / (rows / 2)
  np.testing.assert_allclose(counts, [0.6, 0.2, 0.2, 0.0], atol=0.03)
  assert (np.diff(mask, axis=1) <= 0).all()


@pytest.mark.parametrize("continuous", [False, True])
def test_the_evaluation_loss_approaches_its_mean_over_times_and_noise(continuous):
  """With v = a eps - s x_0, x_0 = 3 and an output of 0 the loss at a time is g + 9 (1 - g)."""

  class Zero(_Linear):
    def apply(self, variables, x_t, steps, self_condition, conditioning):
      return jnp.zeros_like(x_t)

  model = DenoiserModel(module=Zero(), optimizer_def=None, continuous_time=continuous)
  expected = np.mean(9 - 8 * model.schedule.gammas[1:])
  one = jax.jit(lambda batch: model.eval_fn({}, batch)[0])
  signs = np.random.default_rng(0).choice([-3.0, 3.0], size=(30, 8, 3, 4, 4, 4))
  losses = np.array([float(one({"latents": jnp.asarray(batch, jnp.float32)})) for batch in signs])
  assert len(set(losses)) == 30
  # Without strata a batch's loss has a standard deviation of 0.9.
  assert losses.std() < 0.3
  np.testing.assert_allclose(losses.mean(), expected, atol=0.1)


def test_evaluation_has_fixed_draws_and_training_does_not():
  model, batch = _model(), _batch()
  params, loss_fn = _params(), _loss_fn()
  evaluate = jax.jit(lambda p, b: model.eval_fn(p, b)[0])
  assert float(evaluate(params, batch)) == float(evaluate(params, batch))
  assert float(loss_fn(params, batch, jax.random.key(1))[0]) != float(
    loss_fn(params, batch, jax.random.key(2))[0]
  )


def test_guidance_of_one_samples_the_conditional_model():
  batch = _batch(images=False)
  conditioning = dataclasses.replace(
    denoiser_inputs.from_batch(batch),
    is_image=None,
    text=batch["text"][:, :1],
    text_mask=batch["text_mask"][:, :1],
  )
  noise = jax.random.normal(jax.random.key(0), batch["latents"].shape)

  @jax.jit
  def sample(params, scale):
    guidance = None if scale is None else lambda _: scale
    model = _model(sampler=SamplerConfig(num_steps=2, guidance=guidance))
    return model.sample(params, noise, conditioning, null_text=CORPUS.null_text)

  plain = sample(_params(), None)
  np.testing.assert_allclose(sample(_params(), 1.0), plain, atol=1e-4)
  assert np.abs(sample(_params(), 3.0) - plain).max() > 1e-2


def test_a_corpus_of_another_text_encoder_is_rejected():
  corpus = CorpusConstants(null_text=np.zeros((1, 7), np.float32))
  module = WaltDenoiser(**TINY)
  model = DenoiserModel(module=module, optimizer_def=None, corpus=lambda: corpus)
  with pytest.raises(Mismatch, match=r"width 7, expected the denoiser's text_dim=6"):
    model.loss_fn(_params(), _batch(), jax.random.key(0))


@pytest.mark.parametrize(
  ("classes", "message"),
  [
    (0, "the cache has no labels, expected those of WaltDenoiser.num_classes=3;"),
    (4, "labels of the cache reach 3, expected less than WaltDenoiser.num_classes=3; set it to 4"),
    (3, None),
    (None, None),
  ],
)
def test_labels_that_the_class_table_does_not_have_are_rejected(classes, message):
  corpus = CorpusConstants(num_classes=classes)
  module = WaltDenoiser(**(TINY | {"num_classes": 3}))
  model = DenoiserModel(module=module, optimizer_def=None, corpus=lambda: corpus)
  expected = pytest.raises(Mismatch, match=message) if message else contextlib.nullcontext()
  with expected:
    assert model._constants() is corpus
