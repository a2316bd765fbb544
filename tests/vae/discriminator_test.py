"""The discriminator: size, blur pooling, independent clips, and second derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.random_params import random_params
from walt_t5x.vae.discriminator import Discriminator, blur_pool
from walt_t5x.vae.losses import logit_gradients, r1_penalty


@pytest.mark.parametrize("shape", [(4, 8, 6), (5, 7, 3), (1, 2, 1)])
def test_blur_pooling_halves_the_size_and_preserves_a_constant(shape):
  y = blur_pool(jnp.full((2, *shape, 3), 0.7))
  assert y.shape == (2, *(-(-n // 2) for n in shape), 3)
  np.testing.assert_allclose(y, 0.7, rtol=1e-6)


def test_blur_pooling_is_the_binomial_filter():
  x = np.random.default_rng(0).normal(size=(1, 1, 1, 8, 1)).astype(np.float32)
  padded = np.pad(x[0, 0, 0, :, 0], 1, mode="edge")
  expected = np.convolve(padded, np.asarray([1, 3, 3, 1]) / 8, mode="valid")[::2]
  np.testing.assert_allclose(blur_pool(jnp.asarray(x))[0, 0, 0, :, 0], expected, atol=1e-6)


def test_published_size():
  discriminator = Discriminator()
  clip = jnp.zeros((1, 17, 128, 128, 3))
  shapes = jax.eval_shape(discriminator.init, jax.random.key(0), clip)["params"]
  assert round(sum(leaf.size for leaf in jax.tree.leaves(shapes)) / 1e6, 1) == 61.3


def test_one_logit_per_clip_and_r1_has_a_gradient_for_every_kernel():
  discriminator = Discriminator(base_channels=2, channel_multipliers=(2,))
  real = jnp.asarray(np.random.default_rng(0).random((2, 3, 4, 4, 3), np.float32))
  params = random_params(discriminator.init, real)

  def penalty(params):
    discriminate = lambda v: discriminator.apply({"params": params}, v)  # noqa: E731
    logits, gradients = logit_gradients(discriminate, real)
    return r1_penalty(gradients), (logits, gradients)

  program = jax.jit(jax.value_and_grad(penalty, has_aux=True))
  (value, (logits, gradients)), slope = jax.device_get(program(params))
  assert logits.shape == (2,)
  kernels = [leaf for leaf in jax.tree.leaves(slope) if leaf.ndim > 1]
  assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in kernels)

  # A small step along the pixel gradient of clip 0 raises its logit by step times the squared norm,
  # and does not change the other logit.
  apply = jax.jit(lambda v: discriminator.apply({"params": params}, v))
  step = 1e-3
  moved = np.asarray(
    apply(
      np.asarray(real) + step * gradients * np.reshape([1, 0], (2, 1, 1, 1, 1)).astype(np.float32)
    )
  )
  norm = np.sum(gradients[0] ** 2)
  np.testing.assert_allclose((moved[0] - logits[0]) / step, norm, rtol=0.05)
  np.testing.assert_allclose(moved[1], logits[1], atol=1e-6)
  np.testing.assert_allclose(value, np.mean(np.sum(gradients**2, (1, 2, 3, 4))), rtol=1e-5)
