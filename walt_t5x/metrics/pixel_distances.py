"""Peak signal-to-noise ratio and structural similarity of clips in [0, 1]."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from walt_t5x.types import Video

# Smaller errors are below the precision of float32; 100 dB.
SMALLEST_ERROR = 1e-10
SIGMA, RADIUS = 1.5, 5
K1, K2 = 0.01, 0.03


def psnr(video: Video, reference: Video) -> Float[Array, " B"]:
  """10 log10(1 / mean over all values of a clip of (video - reference)^2), in dB, at most 100.

  The mean is over all frames of a clip. Published results that average the PSNR of frames are slightly higher.
  Raises ValueError if the shapes differ.
  """
  if video.shape != reference.shape:
    raise ValueError(f"psnr: got shapes {video.shape} and {reference.shape}, expected equal ones.")
  difference = video.astype(jnp.float32) - reference.astype(jnp.float32)
  return psnr_of_error(jnp.mean(jnp.square(difference), axis=(1, 2, 3, 4)))


def psnr_of_error(mean_squared_error: Any) -> Any:
  """10 log10(1 / mse) in dB, for pixels in [0, 1]; 100 at most. Arrays of numpy stay such, in their own precision."""
  library = jnp if isinstance(mean_squared_error, jax.Array) else np
  return -10 * library.log10(library.maximum(mean_squared_error, SMALLEST_ERROR))


def ssim(video: Video, reference: Video) -> Float[Array, " B"]:
  """Mean over frames, channels and positions of the SSIM index of each clip, at most 1.

    SSIM = (2 m_x m_y + C1) (2 s_xy + C2) / ((m_x^2 + m_y^2 + C1) (s_x^2 + s_y^2 + C2)),  C_i = K_i^2

  with means and (population) covariances in an 11 x 11 Gaussian window of sigma 1.5, at all positions where the window
  is inside the frame.
  Source: Wang et al., Image quality assessment: from error visibility to structural similarity (2004).
  Raises ValueError if the shapes differ, or a frame is smaller than the window.
  """
  if video.shape != reference.shape:
    raise ValueError(f"ssim: got shapes {video.shape} and {reference.shape}, expected equal ones.")
  if min(video.shape[2:4]) < 2 * RADIUS + 1:
    raise ValueError(
      f"ssim: got frames of {video.shape[2]} x {video.shape[3]}, expected at least {2 * RADIUS + 1} per side."
    )
  x, y = video.astype(jnp.float32), reference.astype(jnp.float32)
  mean_x, mean_y = _blur(x), _blur(y)
  var_x = _blur(x * x) - mean_x**2
  var_y = _blur(y * y) - mean_y**2
  covariance = _blur(x * y) - mean_x * mean_y
  c1, c2 = K1**2, K2**2
  index = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
  index = index / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
  return jnp.mean(index, axis=(1, 2, 3, 4))


def _blur(x: jax.Array) -> jax.Array:
  """Separable Gaussian filter over H and W, without padding."""
  offsets = np.arange(-RADIUS, RADIUS + 1)
  taps = np.exp(-0.5 * (offsets / SIGMA) ** 2)
  taps = taps / taps.sum()
  for axis in (2, 3):
    size = x.shape[axis] - 2 * RADIUS
    parts = [float(w) * jax.lax.slice_in_dim(x, i, i + size, axis=axis) for i, w in enumerate(taps)]
    x = functools.reduce(jnp.add, parts)
  return x
