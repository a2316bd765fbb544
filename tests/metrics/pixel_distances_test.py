"""PSNR compared with its definition and SSIM with a loop over windows in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt_t5x.metrics.pixel_distances import psnr, ssim


def _clips(side=13):
  rng = np.random.default_rng(0)
  a = rng.uniform(size=(2, 2, side, side + 1, 3)).astype(np.float32)
  return a, np.clip(a + 0.3 * rng.normal(size=a.shape), 0, 1).astype(np.float32)


def test_psnr_uses_the_mean_error_of_all_frames():
  a, b = _clips()
  expected = [10 * np.log10(1 / np.mean((x - y) ** 2)) for x, y in zip(a, b)]
  np.testing.assert_allclose(psnr(jnp.asarray(a), jnp.asarray(b)), expected, rtol=1e-5)
  np.testing.assert_allclose(psnr(jnp.asarray(a), jnp.asarray(a)), 100.0)


def _ssim_loop(a, b):
  grid = np.arange(-5, 6)
  window = np.exp(-(grid[:, None] ** 2 + grid[None] ** 2) / (2 * 1.5**2))
  window /= window.sum()
  values = []
  for i in range(a.shape[0] - 10):
    for j in range(a.shape[1] - 10):
      x, y = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
      mx, my = (window * x).sum(), (window * y).sum()
      vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
      cov = (window * (x - mx) * (y - my)).sum()
      c1, c2 = 0.01**2, 0.03**2
      score = (2 * mx * my + c1) * (2 * cov + c2)
      values.append(score / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
  return np.mean(values)


def test_ssim_equals_a_loop_over_windows():
  a, b = (clip.astype(np.float64) for clip in _clips())
  expected = [
    np.mean([_ssim_loop(x[t, :, :, c], y[t, :, :, c]) for t in range(2) for c in range(3)])
    for x, y in zip(a, b)
  ]
  found = jax.jit(ssim)(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
  np.testing.assert_allclose(found, expected, atol=1e-4)
  np.testing.assert_allclose(ssim(jnp.asarray(a), jnp.asarray(a)), 1.0, atol=1e-5)


def test_invalid_shapes_raise():
  a, _ = _clips()
  with pytest.raises(ValueError, match="expected at least 11 per side"):
    ssim(jnp.zeros((1, 1, 8, 16, 3)), jnp.zeros((1, 1, 8, 16, 3)))
  with pytest.raises((ValueError, TypeError)):
    psnr(jnp.asarray(a), jnp.asarray(a[:, :1]))
