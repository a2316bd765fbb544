"""Each conditioning at toy size: the loss decreases, and samples follow their condition.

Examples are one of four fixed patterns plus noise; only the condition determines which.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data.corpus import CorpusConstants
from tests.random_params import random_params
from walt_t5x.denoiser.transformer import WaltDenoiser
from walt_t5x.models.denoiser_model import DenoiserModel
from walt_t5x.models.sampling import SamplerConfig

PATTERNS = np.random.default_rng(0).normal(size=(4, 3, 4, 4, 2)).astype(np.float32)
# The constant part over time, for frame prediction.
STILL = np.broadcast_to(PATTERNS[:, :1], PATTERNS.shape)
ROWS, STEPS = 16, 170

KINDS = {
  "class": {"num_classes": 4, "rows": "videos"},
  "frames": {"frame_prediction": True, "frame_prediction_probability": 1.0, "rows": "videos"},
  "low resolution": {"low_resolution_scale": 2, "rows": "videos", "max_low_resolution_noise": 0.1},
  # Captions of videos and of the images of a stack, half of the rows each.
  "mixed": {"text_dim": 8, "frame_prediction": True},
}


def _model(kind):
  changes = dict(KINDS[kind])
  module = {k: changes.pop(k) for k in list(changes) if k in WaltDenoiser.__dataclass_fields__}
  return DenoiserModel(
    module=WaltDenoiser(
      num_layers=2,
      width=32,
      num_heads=2,
      mlp_dim=64,
      latent_channels=2,
      spatial_window=(1, 4, 4),
      spatiotemporal_window=(3, 2, 2),
      dtype=jnp.float32,
      **module,
    ),
    optimizer_def=None,
    corpus=lambda: CorpusConstants(null_text=np.zeros((1, 8), np.float32)),
    drop_probability=0.0 if kind == "frames" else 0.1,
    sampling_low_resolution_noise=0.0,
    sampler=SamplerConfig(num_steps=10, guidance=None),
    **changes,
  )


def _batch(kind, rng, which=None):
  which = rng.integers(0, 4, ROWS) if which is None else which
  patterns = STILL if kind == "frames" else PATTERNS
  clean = patterns[which]
  is_image = np.zeros(ROWS, bool)
  slots = 1
  if kind == "mixed":
    # An image of pattern k is its first frame; a stack has three images, each with its own caption.
    is_image, slots = np.arange(ROWS) % 2 == 0, 3
    stack = rng.integers(0, 4, (ROWS, 3))
    stack[:, 0] = which
    clean = np.where(is_image[:, None, None, None, None], PATTERNS[stack][:, :, 0], clean)
    which = np.where(is_image[:, None], stack, which[:, None])
  batch = {
    "latents": clean + 0.1 * rng.normal(size=clean.shape).astype(np.float32),
    "is_image": is_image,
  }
  labels = which.reshape(ROWS, slots)
  if kind == "class":
    batch["label"] = labels.astype(np.int32)
  if kind == "mixed":
    text = np.zeros((ROWS, slots, 3, 8), np.float32)
    text[..., 0, :4] = 3 * np.eye(4)[labels]
    batch["text"] = text
    batch["text_mask"] = np.broadcast_to(np.array([True, False, False]), (ROWS, slots, 3))
  if kind == "low resolution":
    pooled = batch["latents"].reshape(ROWS, 3, 2, 2, 2, 2, 2).mean((3, 5))
    batch["low_resolution"] = pooled.astype(np.float32)
  return jax.tree.map(jnp.asarray, batch), which


def _sample(model, params, kind, batch):
  """Samples for the conditions of a batch; frame prediction is given the first frame."""
  conditioning = model.conditioning(batch)
  noise = jax.random.normal(jax.random.key(9), batch["latents"].shape)
  low = conditioning.low_resolution
  conditioning = model.low_resolution_noised(conditioning, low, time=jnp.zeros((ROWS,)))
  if model.module.frame_prediction:
    given = float(kind == "frames")
    mask = jnp.broadcast_to(jnp.array([given, 0.0, 0.0]), (ROWS, 3))
    conditioning = dataclasses.replace(conditioning, frames=batch["latents"], frame_mask=mask)
  return np.asarray(jax.jit(model.sample)(params, noise, conditioning))


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_decreases_and_samples_follow_their_condition(kind):
  model, rng = _model(kind), np.random.default_rng(1)
  batch, _ = _batch(kind, rng)
  shapes = {name: value.shape for name, value in batch.items()}
  types = {name: value.dtype for name, value in batch.items()}
  params = random_params(lambda key: model.get_initial_variables(key, shapes, types), spread=0.0)
  optimizer = optax.adam(3e-3)
  state = jax.jit(optimizer.init)(params)

  # It runs often enough that the faster program is worth its compilation.
  options = {"xla_backend_optimization_level": 1}

  @functools.partial(jax.jit, donate_argnums=(0, 1), compiler_options=options)
  def step(params, state, batch, key):
    (_, metrics), gradient = jax.value_and_grad(model.loss_fn, has_aux=True)(params, batch, key)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state, metrics

  losses = []
  for i in range(STEPS):
    params, state, metrics = step(params, state, _batch(kind, rng)[0], jax.random.key(i))
    losses.append(metrics)
  losses = [
    {name: float(m.total / m.count) for name, m in metrics.items() if m.count > 0}
    for metrics in jax.device_get(losses)
  ]

  def mean(name, part):
    return np.mean([loss[name] for loss in part if name in loss])

  for name in ("loss", "loss_image", "loss_video"):
    if name in losses[0]:
      assert mean(name, losses[-40:]) < 0.5 * mean(name, losses[:5]), name

  batch, which = _batch(kind, rng, which=np.arange(ROWS) % 4)
  samples = _sample(model, params, kind, batch)
  patterns = STILL if kind == "frames" else PATTERNS
  if kind == "mixed":
    images = np.asarray(batch["is_image"])
    assert np.mean(_nearest(samples[~images], patterns) == which[~images, 0]) >= 0.75
    stacks = samples[images].reshape(-1, 1, 4, 4, 2)
    assert np.mean(_nearest(stacks, patterns[:, :1]) == which[images].ravel()) >= 0.75
  else:
    assert np.mean(_nearest(samples, patterns) == which) >= 0.75


def _nearest(samples, patterns):
  """The pattern that each sample is closest to."""
  distance = np.square(samples[:, None] - patterns[None]).sum((2, 3, 4, 5))
  return distance.argmin(1)
