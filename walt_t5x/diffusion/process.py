"""The Gaussian process: noising, the three prediction targets, their loss, and their inverses.

With a = sqrt(g) and s = sqrt(1 - g):

  x_t = a x_0 + s eps                                                                 (Eq. 1)
  v   = a eps - s x_0                                                                 (Section 3)

The paper prints v with the two roots exchanged. With that form x_0 cannot be recovered at zero SNR, so we use the form
of Salimans & Ho (2202.00512), for which

  x_0 = a x_t - s v,    eps = s x_t + a v

hold without a division; at t = K (a = 0), x_0 = -v and eps = x_t.
"""

import enum

import jax.numpy as jnp
from jaxtyping import Array, Float


class Prediction(enum.StrEnum):
  """What the network's output means."""

  V = "v"
  X0 = "x0"
  EPSILON = "epsilon"


def _roots(gamma: Float[Array, " B"], like: Float[Array, "B ..."]) -> tuple[Array, Array]:
  """sqrt(g) and sqrt(1 - g) in float32, shaped to broadcast over the examples of `like`."""
  gamma = gamma.astype(jnp.float32).reshape(gamma.shape + (1,) * (like.ndim - gamma.ndim))
  return jnp.sqrt(gamma), jnp.sqrt(1 - gamma)


def add_noise(
  x0: Float[Array, "B ..."], noise: Float[Array, "B ..."], gamma: Float[Array, " B"]
) -> Float[Array, "B ..."]:
  """x_t = sqrt(g) x_0 + sqrt(1 - g) eps (Eq. 1), float32; gamma in [0, 1]."""
  a, s = _roots(gamma, x0)
  return a * x0 + s * noise


def target(
  prediction: Prediction,
  *,
  x0: Float[Array, "B ..."],
  noise: Float[Array, "B ..."],
  gamma: Float[Array, " B"],
) -> Float[Array, "B ..."]:
  """The regression target y of Eq. 2 for the given prediction, float32."""
  a, s = _roots(gamma, x0)
  match Prediction(prediction):
    case Prediction.V:
      return a * noise - s * x0
    case Prediction.X0:
      return x0
    case Prediction.EPSILON:
      return noise
    case _:
      raise ValueError(f"{prediction=} has no target")


def squared_errors(
  prediction: Prediction,
  output: Float[Array, "B ..."],
  *,
  x0: Float[Array, "B ..."],
  noise: Float[Array, "B ..."],
  gamma: Float[Array, " B"],
) -> Float[Array, " B"]:
  """The loss of Eq. 2: ||y - output||^2 / n of each example, float32 [B]; its mean over the examples is unweighted.

  In terms of x_0 the three targets differ by a weight that depends on the signal-to-noise ratio r = g / (1 - g): the
  error ||x_0 - x_0'||^2 has weight 1 for "x0", r for "epsilon" and r + 1 for "v". Only "v" gives a training signal at
  both ends.

  Raises:
    ValueError: if the shapes of output and x0 differ; they are not broadcast.
  """
  if output.shape != x0.shape:
    raise ValueError(f"squared_errors: got an output of shape {output.shape}, expected {x0.shape}")
  difference = output.astype(jnp.float32) - target(prediction, x0=x0, noise=noise, gamma=gamma)
  return jnp.mean(jnp.square(difference), axis=tuple(range(1, x0.ndim)))


def to_x0_and_noise(
  prediction: Prediction,
  output: Float[Array, "B ..."],
  *,
  x_t: Float[Array, "B ..."],
  gamma: Float[Array, " B"],
) -> tuple[Float[Array, "B ..."], Float[Array, "B ..."]]:
  """(x_0, eps) implied by a network output at x_t, float32.

  Only v is well defined at both ends. From x0, eps = (x_t - a x_0) / s is undefined where s = 0 (clean); from epsilon,
  x_0 = (x_t - s eps) / a is undefined where a = 0 (zero SNR). These cases return 0: the prior mean of x_0, or, at the
  clean end, a noise whose weight is zero.
  """
  a, s = _roots(gamma, x_t)
  output = output.astype(jnp.float32)
  match Prediction(prediction):
    case Prediction.V:
      return a * x_t - s * output, s * x_t + a * output
    case Prediction.X0:
      return output, jnp.where(s > 0, (x_t - a * output) / jnp.where(s > 0, s, 1.0), 0.0)
    case Prediction.EPSILON:
      return jnp.where(a > 0, (x_t - s * output) / jnp.where(a > 0, a, 1.0), 0.0), output
    case _:
      raise ValueError(f"{prediction=} has no inverse")


def output_for(
  prediction: Prediction,
  x0: Float[Array, "B ..."],
  *,
  x_t: Float[Array, "B ..."],
  gamma: Float[Array, " B"],
) -> Float[Array, "B ..."]:
  """The network output at x_t that implies x_0, float32: the inverse of `to_x0_and_noise` for gamma < 1."""
  noise = to_x0_and_noise(Prediction.X0, x0, x_t=x_t, gamma=gamma)[1]
  return target(prediction, x0=x0, noise=noise, gamma=gamma)
