"""The training loss of a diffusion model (Eq. 2): squared error against the target of the chosen prediction."""

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
  """||y - output||^2 / n of each row, float32; its mean over the rows is the loss, unweighted.

  In terms of x_0 the three targets differ by their weight at the signal-to-noise ratio r = g / (1 - g): an error
  ||x_0 - x_0'||^2 counts 1 times under "x0", r times under "epsilon" and r + 1 times under "v". That is why v alone
  teaches at both ends.

  Args:
    prediction: what the network's output means.
    output: of the network.
    x0: clean latents.
    noise: the noise that was added.
    gamma: g of each row.

  Raises:
    ValueError: if the output has another shape than the latents, rather than broadcast.
  """
  if output.shape != x0.shape:
    raise ValueError(f"squared_errors: got an output of shape {output.shape}, expected {x0.shape}")
  difference = output.astype(jnp.float32) - target(prediction, x0=x0, noise=noise, gamma=gamma)
  return jnp.mean(jnp.square(difference), axis=tuple(range(1, x0.ndim)))
