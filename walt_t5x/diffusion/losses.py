"""The training loss of a diffusion model (Eq. 2): squared error of the prediction."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from walt_t5x.diffusion.process import Prediction, target


def squared_errors(
  prediction: Prediction,
  output: Float[Array, "B ..."],
  *,
  x0: Float[Array, "B ..."],
  noise: Float[Array, "B ..."],
  gamma: Float[Array, " B"],
) -> Float[Array, " B"]:
  """||y - output||^2 / n of each example, float32 [B]; its mean over the examples is the unweighted loss.

  In terms of x_0 the three targets differ by a weight that depends on the signal-to-noise ratio r = g / (1 - g): the
  error ||x_0 - x_0'||^2 has weight 1 for "x0", r for "epsilon" and r + 1 for "v". Only "v" gives a training signal at
  both ends.

  Args:
    prediction: what the network's output means.
    output: of the network, shape of `x0`.
    x0: clean latents.
    noise: the noise that was added, shape of `x0`.
    gamma: g of each example, in [0, 1].

  Raises:
    ValueError: if the shapes of output and x0 differ; they are not broadcast.
  """
  if output.shape != x0.shape:
    raise ValueError(f"squared_errors: got an output of shape {output.shape}, expected {x0.shape}")
  difference = output.astype(jnp.float32) - target(prediction, x0=x0, noise=noise, gamma=gamma)
  return jnp.mean(jnp.square(difference), axis=tuple(range(1, x0.ndim)))
