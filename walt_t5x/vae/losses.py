"""Losses of the autoencoder and its discriminator, as pure functions of pixels, logits and
gradients.

Published loss weights: L2 5.0, adversarial 0.1, LeCAM 0.001, R1 10; the caller applies them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float

from walt_t5x.types import Video

LECAM_DECAY = 0.999


def generator_loss(fake_logits: Float[Array, " B"]) -> Float[Array, ""]:
  """Non-saturating loss: mean of -log sigmoid(D(fake)) = softplus(-D(fake))."""
  return jnp.mean(jax.nn.softplus(-fake_logits.astype(jnp.float32)))


def discriminator_loss(
  real_logits: Float[Array, " B"], fake_logits: Float[Array, " B"]
) -> Float[Array, ""]:
  """mean softplus(-D(real)) + mean softplus(D(fake))."""
  real = jax.nn.softplus(-real_logits.astype(jnp.float32))
  fake = jax.nn.softplus(fake_logits.astype(jnp.float32))
  return jnp.mean(real) + jnp.mean(fake)


@struct.dataclass
class LecamState:
  """Exponential moving averages of the batch-mean logits, float32 scalars; both start at 0."""

  # Any: JAX transforms rebuild the tree with placeholders, which a shape check would reject.
  real: Any = struct.field(default_factory=lambda: jnp.zeros((), jnp.float32))
  fake: Any = struct.field(default_factory=lambda: jnp.zeros((), jnp.float32))


def lecam_loss(
  real_logits: Float[Array, " B"],
  fake_logits: Float[Array, " B"],
  state: LecamState,
  *,
  decay: float = LECAM_DECAY,
) -> tuple[Float[Array, ""], LecamState]:
  """Returns relu(mean D(real) - a_fake)^2 + relu(a_real - mean D(fake))^2 and the updated averages a.

  Source: LeCAM (2104.03310), equation 4. Assumption: one-sided, on batch-mean logits, against the
  averages before this batch, without a gradient through them.
  """
  real = jnp.mean(real_logits.astype(jnp.float32))
  fake = jnp.mean(fake_logits.astype(jnp.float32))
  anchor = jax.lax.stop_gradient(state)
  loss = jnp.square(jax.nn.relu(real - anchor.fake))
  loss = loss + jnp.square(jax.nn.relu(anchor.real - fake))
  updated = LecamState(
    real=decay * anchor.real + (1.0 - decay) * jax.lax.stop_gradient(real),
    fake=decay * anchor.fake + (1.0 - decay) * jax.lax.stop_gradient(fake),
  )
  return loss, updated


def r1_penalty(gradients: Float[Array, "B T H W 3"]) -> Float[Array, ""]:
  """Mean over clips of ||dD/dx||^2, summed over the pixels of each clip; pixels are in [0, 1]."""
  squared = jnp.square(gradients.astype(jnp.float32))
  return jnp.mean(jnp.sum(squared, axis=(1, 2, 3, 4)))


def logit_gradients(
  discriminate: Callable[[Array], Array], real: Video
) -> tuple[Float[Array, " B"], Float[Array, "B T H W 3"]]:
  """Logits of real clips and the gradients dD(x_b)/dx_b, from one forward pass; for `r1_penalty`."""

  def summed(video: jax.Array) -> tuple[jax.Array, jax.Array]:
    # Each logit depends on its clip alone, so the gradient of the sum contains the gradient of each.
    logits = discriminate(video)
    return jnp.sum(logits), logits

  gradients, logits = jax.grad(summed, has_aux=True)(real)
  return logits, gradients
