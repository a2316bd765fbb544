"""Grids: the diffusion steps at which a sampler calls the network."""

import dataclasses
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from walt_t5x.diffusion.schedules import NoiseSchedule, trailing_steps


@runtime_checkable
class Grid(Protocol):
  """Chooses the points of a sampling trajectory."""

  def __call__(self, schedule: NoiseSchedule, intervals: int) -> np.ndarray:
    """Strictly decreasing steps from K to 0, int32 [intervals + 1]."""
    ...


@runtime_checkable
class Path(Protocol):
  """A grid whose points are evenly spaced in a quantity u that grows from 0 (clean) to 1 with the steps."""

  def __call__(self, schedule: NoiseSchedule, intervals: int) -> np.ndarray:
    """The points, as of `Grid`."""
    ...

  def places(self, schedule: NoiseSchedule, steps: Float[Array, " B"]) -> Float[Array, " B"]:
    """u at diffusion steps in [0, K]."""
    ...

  def steps(self, schedule: NoiseSchedule, places: Float[Array, "..."]) -> Float[Array, "..."]:
    """The inverse of `places`, float32."""
    ...


@dataclasses.dataclass(frozen=True)
class Trailing:
  """K, K - K/n, ..., K/n, 0, rounded (2305.08891, Section 3.3): the grid of the paper's samplers."""

  def __call__(self, schedule: NoiseSchedule, intervals: int) -> np.ndarray:
    return trailing_steps(schedule.num_steps, intervals)

  def places(self, schedule: NoiseSchedule, steps: Float[Array, " B"]) -> Float[Array, " B"]:
    return steps / schedule.num_steps

  def steps(self, schedule: NoiseSchedule, places: Float[Array, "..."]) -> Float[Array, "..."]:
    return places * schedule.num_steps


@dataclasses.dataclass(frozen=True)
class EvenAngle:
  """Steps whose angle is evenly spaced, with a = cos(angle) and s = sin(angle) the weights of signal and noise (Eq. 1).

  On a cosine schedule that is even time, the grid of progressive distillation (2202.00512). For schedules that keep
  little signal for half of their steps, as the paper's, it has fewer points there.
  """

  def __call__(self, schedule: NoiseSchedule, intervals: int) -> np.ndarray:
    trailing_steps(schedule.num_steps, intervals)  # Only checks their number.
    # From the last angle, which is not a right one without zero terminal SNR.
    angles = np.linspace(np.arccos(np.sqrt(schedule.gammas[-1])), 0, intervals + 1)[:-1]
    steps = np.interp(np.cos(angles), *_table(schedule))
    return strictly_decreasing(np.rint(steps).astype(np.int64), schedule.num_steps)

  def places(self, schedule: NoiseSchedule, steps: Float[Array, " B"]) -> Float[Array, " B"]:
    roots = jnp.sqrt(schedule.gamma(steps))
    return jnp.arccos(jnp.clip(roots, 0, 1)) / (jnp.pi / 2)

  def steps(self, schedule: NoiseSchedule, places: Float[Array, "..."]) -> Float[Array, "..."]:
    roots, numbers = (jnp.asarray(values, jnp.float32) for values in _table(schedule))
    return jnp.interp(jnp.cos(places * (jnp.pi / 2)), roots, numbers)


def _table(schedule: NoiseSchedule) -> tuple[np.ndarray, np.ndarray]:
  """sqrt(gamma), ascending, and its steps; it is linear between two steps."""
  return np.sqrt(schedule.gammas)[::-1], np.arange(schedule.num_steps, -1, -1)


def strictly_decreasing(steps: np.ndarray, last: int) -> np.ndarray:
  """Descending steps in 1 .. last, of which some may coincide, moved to the next free ones; and 0: int32."""
  steps, free = steps.copy(), last + 1
  for place, step in enumerate(steps):
    steps[place] = free = min(step, free - 1)
  for place in range(len(steps) - 1, -1, -1):
    steps[place] = max(steps[place], len(steps) - place)
  return np.array([*steps, 0], np.int32)


@dataclasses.dataclass(frozen=True)
class LogSnr:
  """K, then steps whose log(a / s) is evenly spaced, and 0; a and s are the weights of signal and noise (Eq. 1).

  Few steps of a schedule have little noise, so that rounded steps may coincide; such a step becomes the next free one.

  Attributes:
    first: log(a / s) of the second point; at K it is that of the schedule, -infinity at zero SNR. Assumption: -4, near
      that of 2206.00364, whose largest sigma is 80.
  """

  first: float = -4.0

  def __call__(self, schedule: NoiseSchedule, intervals: int) -> np.ndarray:
    trailing_steps(schedule.num_steps, intervals)  # Only checks their number.
    gammas = schedule.gammas[1 : schedule.num_steps]
    log_snr = np.log(gammas / (1 - gammas)) / 2
    wanted = np.linspace(self.first, log_snr[0], intervals)[:-1]
    # Ascending steps have descending values.
    steps = 1 + np.abs(log_snr[:, None] - wanted).argmin(axis=0)
    return strictly_decreasing(np.array([schedule.num_steps, *steps]), schedule.num_steps)


@dataclasses.dataclass(frozen=True)
class Given:
  """Steps as given, for example those that a search has found for a model.

  Attributes:
    steps: strictly decreasing, the first one K; the last interval leads to 0.
  """

  steps: tuple[int, ...]

  def __call__(self, schedule: NoiseSchedule, intervals: int) -> np.ndarray:
    grid = np.array([*self.steps, 0], np.int32)
    if len(self.steps) != intervals:
      raise ValueError(
        f"grids.Given has {len(self.steps)} steps, the sampler needs {intervals}: set as many, or another num_steps"
      )
    if grid[0] != schedule.num_steps or (np.diff(grid) >= 0).any():
      raise ValueError(
        f"grids.Given got {self.steps}: expected decreasing steps from {schedule.num_steps}"
      )
    return grid


GRIDS = (Trailing, EvenAngle, LogSnr, Given)
