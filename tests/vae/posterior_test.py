"""The Gaussian posterior compared with torch.distributions, and the deterministic posterior."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from walt_t5x.vae.autoencoder import Posterior

SHAPE = (3, 2, 2, 2, 4)


def _gaussian():
  mean = jax.random.normal(jax.random.key(0), SHAPE)
  return Posterior(mean=mean, logvar=jax.random.normal(jax.random.key(1), SHAPE))


def test_kl_equals_torch():
  q = _gaussian()
  torch_q = torch.distributions.Normal(
    torch.from_numpy(np.asarray(q.mean).copy()),
    torch.from_numpy(np.exp(0.5 * np.asarray(q.logvar))),
  )
  standard = torch.distributions.Normal(torch.zeros(SHAPE), torch.ones(SHAPE))
  expected = torch.distributions.kl_divergence(torch_q, standard).sum((1, 2, 3, 4)).numpy()
  np.testing.assert_allclose(q.kl(), expected, rtol=1e-5)


def test_samples_have_the_moments_of_the_posterior():
  q = _gaussian()
  samples = jax.vmap(q.sample)(jax.random.split(jax.random.key(2), 4000))
  std = np.exp(0.5 * np.asarray(q.logvar))
  np.testing.assert_allclose((samples.mean(0) - q.mean) / std, 0.0, atol=5 / 4000**0.5)
  np.testing.assert_allclose(samples.std(0) / std, 1.0, atol=0.06)


def test_a_point_returns_itself_as_sample_and_has_zero_kl():
  q = Posterior(mean=jnp.arange(16.0).reshape(1, 1, 2, 2, 4))
  np.testing.assert_array_equal(q.sample(jax.random.key(0)), q.mean)
  np.testing.assert_array_equal(q.kl(), [0.0])
