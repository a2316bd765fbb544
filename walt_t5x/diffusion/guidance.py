"""Classifier-free guidance: extrapolate from the unconditional to the conditional prediction.

  guided = u + w (c - u)

w = 1 gives the conditional prediction. The paper has no formula for the guidance schedule of its ImageNet results; the
table in its appendix names the power-cosine form, which is that of MDT (2303.14389).
"""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Float


def guide(
  conditional: Float[Array, "*axes"],
  unconditional: Float[Array, "*axes"],
  scale: Float[Array, ""] | float,
) -> Float[Array, "*axes"]:
  """u + w (c - u), with w = `scale`; all arrays have the same shape."""
  return unconditional + scale * (conditional - unconditional)


def guide_twice(
  conditional: Float[Array, "*axes"],
  frames: Float[Array, "*axes"],
  unconditional: Float[Array, "*axes"],
  text_scale: Float[Array, ""] | float,
  frame_scale: Float[Array, ""] | float,
) -> Float[Array, "*axes"]:
  """u + w_f (f - u) + w_t (c - f): one scale for the conditioning frames and one for the text.

  c is conditioned on text and frames, f on the frames alone; w_t and w_f are `text_scale` and `frame_scale`. With equal
  scales it is `guide`. The form is that of InstructPix2Pix (2211.09800, Eq. 3).
  """
  return (
    unconditional + frame_scale * (frames - unconditional) + text_scale * (conditional - frames)
  )


def rescale(
  guided: Float[Array, "B ..."], conditional: Float[Array, "B ..."], share: float
) -> Float[Array, "B ..."]:
  """Moves the standard deviation of each guided example towards that of its conditional prediction.

  share * guided * std(conditional) / std(guided) + (1 - share) * guided, the rescaled guidance of 2305.08891 (Eq. 15,
  16). A large scale otherwise oversaturates and makes samples alike, above all with zero terminal SNR. An example whose
  guided prediction is constant is left as it is.
  """
  axes = tuple(range(1, guided.ndim))
  wanted, found = (jnp.std(output, axis=axes, keepdims=True) for output in (conditional, guided))
  ratio = jnp.where(found > 0, wanted / jnp.where(found > 0, found, 1), 1)
  return guided * (share * ratio + 1 - share)


@dataclasses.dataclass(frozen=True)
class ConstantGuidance:
  """The same scale at every step. Assumption: 7.5 for text (the paper does not specify it)."""

  scale: float = 7.5

  def __call__(self, time: Float[Array, ""]) -> Float[Array, ""]:
    """Scale at time t in [0, 1] (1 = noise)."""
    return jnp.full_like(time, self.scale)


@dataclasses.dataclass(frozen=True)
class PowerCosineGuidance:
  """scale(t) = 1 + (w - 1) (1 - cos(pi (1 - t)^p)) / 2: 1 at pure noise, w at the clean end."""

  scale: float = 4.0
  power: float = 4.0

  def __call__(self, time: Float[Array, ""]) -> Float[Array, ""]:
    """Scale at time t in [0, 1] (1 = noise)."""
    return 1 + (self.scale - 1) * (1 - jnp.cos(math.pi * (1 - time) ** self.power)) / 2
