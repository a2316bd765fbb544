"""Losses compared with closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from walt_t5x.vae import losses


def test_adversarial_losses_equal_torchs_cross_entropy():
  real, fake = jnp.asarray([0.3, -4.0, 60.0]), jnp.asarray([-0.7, 2.0, 80.0])
  bce = torch.nn.functional.binary_cross_entropy_with_logits
  t_real, t_fake = (torch.from_numpy(np.asarray(v).copy()) for v in (real, fake))
  expected = bce(t_real, torch.ones(3)) + bce(t_fake, torch.zeros(3))
  np.testing.assert_allclose(losses.discriminator_loss(real, fake), expected.numpy(), rtol=1e-6)
  expected = bce(t_fake, torch.ones(3))
  np.testing.assert_allclose(losses.generator_loss(fake), expected.numpy(), rtol=1e-6)


def test_r1_of_a_quadratic():
  # D(x) = sum w x^2 has gradient 2 w x.
  x = jax.random.uniform(jax.random.key(0), (3, 2, 4, 4, 3))
  w = jnp.asarray([1.0, 2.0, 3.0])
  logits, gradients = losses.logit_gradients(lambda v: jnp.sum(w * v**2, axis=(1, 2, 3, 4)), x)
  numpy_x = np.asarray(x)
  np.testing.assert_allclose(logits, [(np.asarray(w) * v**2).sum() for v in numpy_x], rtol=1e-5)
  expected = np.mean([((2 * np.asarray(w) * v) ** 2).sum() for v in numpy_x])
  np.testing.assert_allclose(losses.r1_penalty(gradients), expected, rtol=1e-5)


def test_lecam_averages_are_a_geometric_series():
  state = losses.LecamState()
  step = jax.jit(lambda s: losses.lecam_loss(jnp.asarray([1.0, 3.0]), -jnp.ones(2), s))
  for _ in range(50):
    _, state = step(state)
  np.testing.assert_allclose(state.real, 2.0 * (1 - 0.999**50), rtol=1e-4)
  np.testing.assert_allclose(state.fake, -1.0 * (1 - 0.999**50), rtol=1e-4)


def test_lecam_is_one_sided_on_batch_means_against_the_old_averages():
  state = losses.LecamState(real=jnp.asarray(1.0), fake=jnp.asarray(-0.5))
  real, fake = jnp.asarray([0.0, 1.0]), jnp.asarray([2.0, -1.0])
  loss, _ = losses.lecam_loss(real, fake, state)
  np.testing.assert_allclose(loss, (0.5 + 0.5) ** 2 + (1.0 - 0.5) ** 2, rtol=1e-6)
  # Real below the fake average and fake above the real average: the loss is zero.
  loss, _ = losses.lecam_loss(jnp.asarray([-1.0]), jnp.asarray([2.0]), state)
  np.testing.assert_array_equal(loss, 0.0)
  gradient = jax.grad(lambda s: losses.lecam_loss(real, fake, s)[0])(state)
  np.testing.assert_array_equal([gradient.real, gradient.fake], [0.0, 0.0])
