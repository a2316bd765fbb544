"""Classifier-free guidance: extrapolate from the unconditional to the conditional prediction.

  guided = u + w (c - u)

w = 1 gives the conditional prediction. A scale is a function of time; a combination is another rule than this one. They
can be chosen separately. The paper has no formula for the guidance schedule of its ImageNet results; the table in its
appendix names the power-cosine form, which is that of MDT (2303.14389).
"""

import dataclasses
import math
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float


def guide(
  conditional: Float[Array, "*axes"],
  unconditional: Float[Array, "*axes"],
  scale: Float[Array, "..."] | float,
) -> Float[Array, "*axes"]:
  """u + w (c - u), with w = `scale`, one number or one of each example [B, 1, ...]."""
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


@dataclasses.dataclass(frozen=True)
class IntervalGuidance:
  """w for low <= t <= high, else 1 (2404.07724): outside, only the conditional prediction is computed.

  At high noise guidance reduces variety, at low noise it has no effect. Assumption: the interval is in t; the paper has
  one in sigma, which depends on the schedule.
  """

  scale: float = 7.5
  low: float = 0.1
  high: float = 0.8

  def __post_init__(self):
    if not 0 <= self.low < self.high <= 1:
      raise ValueError(
        f"IntervalGuidance: low={self.low}, high={self.high}, expected 0 <= low < high <= 1"
      )

  def __call__(self, time: Float[Array, ""]) -> Float[Array, ""]:
    """Scale at time t in [0, 1] (1 = noise)."""
    return jnp.where((time >= self.low) & (time <= self.high), self.scale, 1.0)


SCALES = (ConstantGuidance, PowerCosineGuidance, IntervalGuidance)


@runtime_checkable
class Combination(Protocol):
  """Combines the predictions of both branches; with w = 1, to the conditional one."""

  @property
  def of_estimates(self) -> bool:
    """Whether it combines estimates of x_0, or outputs of the network."""
    ...

  @property
  def remembers(self) -> bool:
    """Whether a call depends on the calls before it."""
    ...

  def __call__(
    self,
    conditional: Float[Array, "B ..."],
    unconditional: Float[Array, "B ..."],
    scale: Float[Array, ""] | float,
    memory: Float[Array, "B ..."] | None,
  ) -> tuple[Float[Array, "B ..."], Float[Array, "B ..."] | None]:
    """The guided prediction, and the memory for the next call; the first one gets zeros, or None if nothing is kept."""
    ...


def _dot(a: Array, b: Array) -> Array:
  """Inner product of each example, [B, 1, ...]."""
  return jnp.sum(a * b, axis=tuple(range(1, a.ndim)), keepdims=True)


def _quotient(a: Array, b: Array) -> Array:
  """a / b, and 0 where b is 0."""
  return jnp.where(b != 0, a / jnp.where(b != 0, b, 1), 0)


@dataclasses.dataclass(frozen=True)
class AdaptiveProjection:
  """Adaptive projected guidance (2410.02416, Algorithm 1).

    d = c - u + momentum d_before, shortened to `radius`;    guided = c + (w - 1) (d - (1 - parallel) (d . e) e)

  with e = c / |c|, all of the estimates of x_0, norms over each example. The part of d along c, which oversaturates,
  counts only by its share.

  Attributes:
    parallel: share of the part along c, eta in the paper.
    radius: largest norm of d, r in the paper; None for no limit. Norms grow with the root of the number of values.
    momentum: weight of the d of the call before, beta in the paper, which recommends -0.5 (-0.75 for large scales).
  """

  parallel: float = 0.0
  radius: float | None = None
  momentum: float = -0.5

  def __post_init__(self):
    if self.radius is not None and self.radius <= 0:
      raise ValueError(f"AdaptiveProjection.radius={self.radius}: expected more than 0, or None")

  @property
  def of_estimates(self) -> bool:
    return True

  @property
  def remembers(self) -> bool:
    return self.momentum != 0

  def __call__(
    self,
    conditional: Float[Array, "B ..."],
    unconditional: Float[Array, "B ..."],
    scale: Float[Array, ""] | float,
    memory: Float[Array, "B ..."] | None,
  ) -> tuple[Float[Array, "B ..."], Float[Array, "B ..."] | None]:
    """See the class."""
    change = conditional - unconditional
    if memory is not None:
      memory = change = change + self.momentum * memory
    if self.radius is not None:
      norm = jnp.sqrt(_dot(change, change))
      change *= self.radius / jnp.maximum(norm, self.radius)
    along = _quotient(_dot(change, conditional), _dot(conditional, conditional)) * conditional
    return conditional + (scale - 1) * (change - (1 - self.parallel) * along), memory


@dataclasses.dataclass(frozen=True)
class ZeroStar:
  """CFG-Zero* (2503.18886): guided = q u + w (c - q u), where q = c . u / |u|^2 of each example.

  q u is the multiple of u that is closest to c. Assumption: c and u are outputs of the network, v; the paper has
  velocities of a flow. Its first step of velocity zero is left out: from pure noise, v = 0 says that x_0 is 0.
  """

  @property
  def of_estimates(self) -> bool:
    return False

  @property
  def remembers(self) -> bool:
    return False

  def __call__(
    self,
    conditional: Float[Array, "B ..."],
    unconditional: Float[Array, "B ..."],
    scale: Float[Array, ""] | float,
    memory: Float[Array, "B ..."] | None,
  ) -> tuple[Float[Array, "B ..."], Float[Array, "B ..."] | None]:
    """See the class."""
    share = _quotient(_dot(conditional, unconditional), _dot(unconditional, unconditional))
    return guide(conditional, share * unconditional, scale), memory


COMBINATIONS = (AdaptiveProjection, ZeroStar)
