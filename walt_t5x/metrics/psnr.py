"""Peak signal-to-noise ratio of clips in [0, 1]."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from walt_t5x.types import Video

# Smaller errors are below the precision of float32; 100 dB.
SMALLEST_ERROR = 1e-10


def psnr(video: Video, reference: Video) -> Float[Array, " B"]:
  """10 log10(1 / mean over all values of a clip of (video - reference)^2), in dB, at most 100.

  The mean is over all frames of a clip. Published results that average the PSNR of frames are slightly higher.

  Raises:
    ValueError: if the shapes differ.
  """
  if video.shape != reference.shape:
    raise ValueError(f"psnr: got shapes {video.shape} and {reference.shape}, expected equal ones.")
  difference = video.astype(jnp.float32) - reference.astype(jnp.float32)
  return psnr_of_error(jnp.mean(jnp.square(difference), axis=(1, 2, 3, 4)))


def psnr_of_error(mean_squared_error: Any) -> Any:
  """10 log10(1 / mse) in dB, for pixels in [0, 1]; 100 at most. Arrays of numpy stay such, in their own precision."""
  library = jnp if isinstance(mean_squared_error, jax.Array) else np
  return -10 * library.log10(library.maximum(mean_squared_error, SMALLEST_ERROR))
