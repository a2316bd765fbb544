"""Grids: the diffusion steps at which a sampler calls the network."""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np

from walt_t5x.diffusion.schedules import NoiseSchedule, trailing_steps


@runtime_checkable
class Grid(Protocol):
  """Chooses the points of a sampling trajectory."""

  def __call__(self, schedule: NoiseSchedule, intervals: int) -> np.ndarray:
    """Strictly decreasing steps from K to 0, int32 [intervals + 1]."""
    ...


@dataclasses.dataclass(frozen=True)
class Trailing:
  """K, K - K/n, ..., K/n, 0, rounded (2305.08891, Section 3.3): the grid of the paper's samplers."""

  def __call__(self, schedule: NoiseSchedule, intervals: int) -> np.ndarray:
    return trailing_steps(schedule.num_steps, intervals)


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
    free = schedule.num_steps
    for place, step in enumerate(steps):
      steps[place] = free = min(step, free - 1)
    for place in range(len(steps) - 1, -1, -1):
      steps[place] = max(steps[place], len(steps) - place)
    return np.array([schedule.num_steps, *steps, 0], np.int32)


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


GRIDS = (Trailing, LogSnr, Given)
