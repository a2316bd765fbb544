"""The encoder's distribution over latents: a point, or a diagonal Gaussian."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, PRNGKeyArray

from walt_t5x.types import Latents

# exp of a larger log-variance overflows bfloat16 sums; a smaller one has zero variance in float32.
LOGVAR_RANGE = (-30.0, 20.0)


@struct.dataclass
class Posterior:
  """q(z | x) = N(mean, exp(logvar)), or the point `mean` if logvar is None.

  Args:
    mean: latents [B, t, h, w, c].
    logvar: log-variance of the same shape, or None for a deterministic encoder.
  """

  # Not Latents: JAX transforms rebuild the tree with placeholders, which a shape check would reject.
  mean: Any
  logvar: Any = None

  def sample(self, key: PRNGKeyArray) -> Latents:
    """mean + exp(logvar / 2) * n with n ~ N(0, 1); the mean itself if deterministic."""
    if self.logvar is None:
      return self.mean
    noise = jax.random.normal(key, self.mean.shape, jnp.float32)
    std = jnp.exp(0.5 * self.logvar.astype(jnp.float32))
    return (self.mean.astype(jnp.float32) + std * noise).astype(self.mean.dtype)

  def kl(self) -> Float[Array, " B"]:
    """KL(q || N(0, 1)) = sum (mean^2 + exp(logvar) - 1 - logvar) / 2, nats per clip; 0 for a point."""
    if self.logvar is None:
      return jnp.zeros(self.mean.shape[:1], jnp.float32)
    mean, logvar = self.mean.astype(jnp.float32), self.logvar.astype(jnp.float32)
    terms = 0.5 * (jnp.square(mean) + jnp.exp(logvar) - 1.0 - logvar)
    return jnp.sum(terms, axis=(1, 2, 3, 4))
