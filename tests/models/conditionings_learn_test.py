"""All conditionings at toy size, in one training: the loss decreases, and samples follow each condition alone.

Examples are one of four fixed patterns plus noise. One condition of an example determines which; the others are null.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from data.corpus import CorpusConstants
from tests.random_params import random_params
from walt_t5x.denoiser.transformer import WaltDenoiser
from walt_t5x.models.denoiser_model import DenoiserModel
from walt_t5x.models.sampling import SamplerConfig

PATTERNS = np.random.default_rng(0).normal(size=(4, 3, 4, 4, 2)).astype(np.float32)
ROWS, STEPS = 16, 200
CONDITIONS = ("class", "text", "low resolution", "frames")


def _model():
  return DenoiserModel(
    module=WaltDenoiser(
      num_layers=2,
      width=32,
      num_heads=2,
      mlp_dim=64,
      latent_channels=2,
      spatial_window=(1, 4, 4),
      spatiotemporal_window=(3, 2, 2),
      num_classes=4,
      text_dim=8,
      low_resolution_scale=2,
      frame_prediction=True,
      dtype=jnp.float32,
    ),
    optimizer_def=None,
    corpus=lambda: CorpusConstants(null_text=np.zeros((1, 8), np.float32)),
    drop_probability=0.05,
    frame_prediction_probability=0.5,
    max_low_resolution_noise=0.1,
    sampling_low_resolution_noise=0.0,
    sampler=SamplerConfig(num_steps=10, guidance=None),
  )


def _batch(rng, condition=None):
  """Stacks of three images, each with its own pattern, and videos; and the patterns of their frames [B, 3]."""
  given = rng.choice(CONDITIONS, ROWS) if condition is None else np.full(ROWS, condition)
  which = rng.integers(0, 4, (ROWS, 3))
  # The model gives the first frames itself, those of videos.
  is_image = (np.arange(ROWS) % 2 == 0) & (given != "frames")
  which = np.where(is_image[:, None], which, which[:, :1])
  # An image of pattern k is its first frame.
  frame = np.where(is_image[:, None], 0, np.arange(3))
  clean = PATTERNS[which, frame]
  latents = (clean + 0.1 * rng.normal(size=clean.shape)).astype(np.float32)

  def of(condition, values):
    return values * (given == condition).reshape(-1, *[1] * (values.ndim - 1))

  text = np.zeros((ROWS, 3, 3, 8), np.float32)
  text[..., 0, :4] = of("text", 3 * np.eye(4)[which])
  pooled = latents.reshape(ROWS, 3, 2, 2, 2, 2, 2).mean((3, 5))
  batch = {
    "latents": latents,
    "is_image": is_image,
    "label": (of("class", which + 1) - 1).astype(np.int32),
    "text": text,
    "text_mask": np.broadcast_to(np.array([True, False, False]), (ROWS, 3, 3)),
    "low_resolution": of("low resolution", pooled).astype(np.float32),
  }
  return jax.tree.map(jnp.asarray, batch), which


def _trained(model):
  """Parameters after the training, and the metrics of each step."""
  rng = np.random.default_rng(1)
  batch, _ = _batch(rng)
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

  history = []
  for i in range(STEPS):
    params, state, metrics = step(params, state, _batch(rng)[0], jax.random.key(i))
    history.append(metrics)
  return params, jax.device_get(history)


def test_the_loss_decreases_and_samples_follow_each_condition():
  model = _model()
  params, history = _trained(model)
  for name in ("loss", "loss_image", "loss_video"):
    losses = [float(m[name].total / m[name].count) for m in history]
    assert np.mean(losses[-40:]) < 0.5 * np.mean(losses[:5]), name

  sample, noise = jax.jit(model.sample), jax.random.normal(jax.random.key(9), (ROWS, 3, 4, 4, 2))
  for condition in CONDITIONS:
    batch, which = _batch(np.random.default_rng(2), condition)
    conditioning = model.conditioning(batch)
    low = conditioning.low_resolution
    conditioning = model.low_resolution_noised(conditioning, low, time=jnp.zeros((ROWS,)))
    mask = jnp.broadcast_to(jnp.arange(3) == 0, (ROWS, 3)) & (condition == "frames")
    conditioning = dataclasses.replace(
      conditioning, frames=batch["latents"], frame_mask=mask.astype(jnp.float32)
    )
    samples, images = sample(params, noise, conditioning), np.asarray(batch["is_image"])
    followed = _nearest(np.asarray(samples), images) == which
    assert all(np.mean(followed[kind]) >= 0.75 for kind in (images, ~images) if kind.any()), (
      condition
    )


def _nearest(samples, images):
  """The pattern that each sample is closest to [B, 3]; each image of a stack alone."""
  distance = np.square(samples[:, None] - PATTERNS).sum((3, 4, 5))
  alone = np.square(samples[:, None] - PATTERNS[:, :1]).sum((3, 4, 5))
  of_videos = np.broadcast_to(distance.sum(2, keepdims=True), distance.shape)
  return np.where(images[:, None, None], alone, of_videos).argmin(1)
