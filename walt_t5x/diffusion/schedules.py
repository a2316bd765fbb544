"""Noise schedules: gamma(k), the fraction of signal power after k of K diffusion steps.

  x_k = sqrt(g_k) x_0 + sqrt(1 - g_k) eps                                             (Eq. 1)

g_0 = 1 (clean), g_k = prod_{j<=k} (1 - beta_j). `zero_terminal_snr` shifts and scales the square roots so that g_K
is exactly 0 and g_1 is unchanged (Lin et al. 2023, arXiv:2305.08891, Algorithm 1):

  a'_k = (a_k - a_K) a_1 / (a_1 - a_K),   a_k = sqrt(g_k)

The table is computed in float64 numpy and stored as gamma rather than beta, so that a'_K is exactly 0.
"""

import dataclasses
import enum
import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Num


class BetaSchedule(enum.StrEnum):
  """How beta_k depends on the step k."""

  LINEAR = "linear"
  SCALED_LINEAR = "scaled_linear"
  COSINE = "cosine"


def _alpha_bar(kind: BetaSchedule, *, num_steps: int, first: float, last: float) -> np.ndarray:
  """alpha_bar = prod (1 - beta_j) for k = 1 .. num_steps, before any rescaling, float64 [num_steps]."""
  match kind:
    case BetaSchedule.LINEAR:
      betas = np.linspace(first, last, num_steps, dtype=np.float64)
    case BetaSchedule.SCALED_LINEAR:
      betas = np.linspace(first**0.5, last**0.5, num_steps, dtype=np.float64) ** 2
    case BetaSchedule.COSINE:
      # Nichol & Dhariwal 2021, Eq. 17, with their clip of beta at 0.999.
      time = np.arange(num_steps + 1, dtype=np.float64) / num_steps
      signal = np.cos((time + 0.008) / 1.008 * np.pi / 2) ** 2
      betas = np.minimum(1 - signal[1:] / signal[:-1], 0.999)
    case _:
      raise ValueError(
        f"unknown beta schedule {kind!r}: expected one of {[str(k) for k in BetaSchedule]}"
      )
  return np.cumprod(1 - betas)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoiseSchedule:
  """gamma as a table over the steps 0 .. num_steps, and as a function of a real time in [0, 1].

  Attributes:
    beta_schedule: "linear" (the paper's), "scaled_linear" (latent diffusion) or "cosine".
    num_steps: K; 1000 in the paper.
    beta_first: beta_1; unused by "cosine".
    beta_last: beta_K; unused by "cosine".
    zero_terminal_snr: rescale so that gamma_K is exactly 0 (False is "w/o zero snr" in Table 3e).

  Raises:
    ValueError: for an unknown schedule or betas outside 0 < first <= last < 1.
  """

  beta_schedule: str = "linear"
  num_steps: int = 1000
  beta_first: float = 1e-4
  beta_last: float = 0.02
  zero_terminal_snr: bool = True

  def __post_init__(self):
    if self.num_steps < 2:
      raise ValueError(f"NoiseSchedule.num_steps={self.num_steps}: expected at least 2")
    if not 0 < self.beta_first <= self.beta_last < 1:
      raise ValueError(
        f"NoiseSchedule got beta_first={self.beta_first}, beta_last={self.beta_last}: "
        "expected 0 < beta_first <= beta_last < 1"
      )
    BetaSchedule(self.beta_schedule)

  @functools.cached_property
  def gammas(self) -> np.ndarray:
    """g_0 = 1, g_1 .. g_K as float64 [num_steps + 1]; strictly decreasing."""
    alpha_bar = _alpha_bar(
      BetaSchedule(self.beta_schedule),
      num_steps=self.num_steps,
      first=self.beta_first,
      last=self.beta_last,
    )
    if self.zero_terminal_snr:
      roots = np.sqrt(alpha_bar)
      roots = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
      alpha_bar = roots**2
      alpha_bar[-1] = 0.0
    return np.concatenate([[1.0], alpha_bar])

  def gamma(self, steps: Num[Array, "..."]) -> Float[Array, "..."]:
    """gamma at steps in [0, num_steps], float32.

    Integer steps read the table. Between two of them sqrt(gamma) is linear in time, which keeps gamma monotone and
    continuous (the continuous-time form).
    """
    roots = jnp.asarray(np.sqrt(self.gammas), jnp.float32)
    if jnp.issubdtype(steps.dtype, jnp.integer):
      return jnp.square(roots[steps])
    low = jnp.clip(jnp.floor(steps), 0, self.num_steps - 1).astype(jnp.int32)
    weight = steps.astype(jnp.float32) - low
    return jnp.square((1 - weight) * roots[low] + weight * roots[low + 1])


def trailing_steps(num_train_steps: int, num_sampling_steps: int) -> np.ndarray:
  """Sampling grid K, K - K/n, ..., K/n, 0, rounded: int32 [num_sampling_steps + 1].

  The grid includes K, where the signal is exactly zero and sampling starts from pure noise (arXiv:2305.08891, 3.3).
  For K = 1000 and n = 50 it is 1000, 980, ..., 20, 0.

  Raises:
    ValueError: if num_sampling_steps is not in 1 .. num_train_steps.
  """
  if not 1 <= num_sampling_steps <= num_train_steps:
    raise ValueError(
      f"num_sampling_steps={num_sampling_steps}: expected 1 to {num_train_steps} (num_steps of the schedule)"
    )
  grid = np.round(np.linspace(num_train_steps, 0, num_sampling_steps + 1))
  return grid.astype(np.int32)
