"""Solvers of the probability flow ODE, as tables of weights.

Between two points of a trajectory every solver here adds states and estimates m of x_0 with weights that depend on the
schedule alone, so that one loop (`sampler.sample`) runs all of them, and the weights are computed in float64. With a =
sqrt(gamma), s = sqrt(1 - gamma), L = log(a / s), and h the difference of L over an interval, the exact solution for a
constant m is DDIM's step

  x' = (s' / s) x + (a' - a s' / s) m,

and the others extrapolate m. At zero terminal SNR the first L is -infinity, and the last one, at gamma = 1, is
infinity: there h has no finite value, no difference quotient of m exists, and every solver makes DDIM's step, which
leads from pure noise to the next point exactly for the m it is given.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

# Estimates of x_0 that a step uses at most: its own and those of three calls before.
_HISTORY = 4


@dataclasses.dataclass(frozen=True)
class Weights:
  """What a sampler does at its n calls of the network, float64.

  At call i the network gets the predicted state and returns the estimate m_i. The state is corrected, and the next one
  predicted from it; the last prediction is the sample.

  Attributes:
    points: index of the grid's point of each call [n].
    correct: weights of (predicted state, corrected state of the call before, m_i, m_{i-1}, ...) [n, 2 + history].
    predict: weights of (corrected state, that of the call before, m_i, m_{i-1}, ...) [n, 2 + history].
    noise: weight of new noise in the predicted state [n].
  """

  points: np.ndarray
  correct: np.ndarray
  predict: np.ndarray
  noise: np.ndarray


@runtime_checkable
class Solver(Protocol):
  """Chooses the number of intervals and the weights."""

  def intervals(self, calls: int, *, zero_snr: bool) -> int:
    """Intervals of a grid on which the solver calls the network so often; `zero_snr`: it starts at gamma = 0."""
    ...

  def weights(self, gammas: np.ndarray, calls: int) -> Weights:
    """The weights for `gammas` at the grid's points, ascending to 1, float64 [intervals + 1]."""
    ...


class _Levels:
  """a, s and L = log(a / s) at the points of a grid."""

  def __init__(self, gammas: np.ndarray):
    self.a, self.s = np.sqrt(gammas), np.sqrt(1 - gammas)
    with np.errstate(divide="ignore"):
      self.log_snr = np.log(self.a) - np.log(self.s)

  def decay(self, here: int, there: int) -> float:
    """s' / s: the weight of the state."""
    return self.s[there] / self.s[here]

  def gain(self, here: int, there: int) -> float:
    """a' - a s' / s: the sum of the weights of estimates."""
    return self.a[there] - self.a[here] * self.decay(here, there)

  def h(self, here: int, there: int) -> float:
    """L' - L."""
    return self.log_snr[there] - self.log_snr[here]


def _row(state: float, before: float, estimates: Sequence[float]) -> list[float]:
  return [state, before, *estimates, *[0.0] * (_HISTORY - len(estimates))]


_UNCHANGED = _row(1.0, 0.0, ())


def _of_rows(
  points: Sequence[int],
  predict: Sequence[list[float]],
  *,
  correct: Sequence[list[float]] = (),
  noise: Sequence[float] = (),
) -> Weights:
  n = len(points)
  return Weights(
    np.array(points),
    np.array(list(correct) or [_UNCHANGED] * n),
    np.array(predict),
    np.array(list(noise) or [0.0] * n),
  )


class _OneCall:
  """One call in each interval."""

  def intervals(self, calls: int, *, zero_snr: bool) -> int:
    del zero_snr
    return calls


@dataclasses.dataclass(frozen=True)
class Ddim(_OneCall):
  """DDIM (2010.02502), order 1.

    x_u = a_u m + s_u (sqrt(1 - r^2) eps + r z),    r = eta sqrt((1 - g_t / g_u) / (1 - g_t))

  with g = gamma, eps = (x_t - a_t m) / s_t, and new noise z in each step: Eq. 12 and 16 there, with sigma = s_u r.

  Attributes:
    eta: share of new noise in each step, in [0, 1]: 0 is deterministic, 1 the ancestral sampling of DDPM.
  """

  eta: float = 0.0

  def __post_init__(self):
    if not 0 <= self.eta <= 1:
      raise ValueError(f"Ddim.eta={self.eta}: expected a share in [0, 1]")

  def weights(self, gammas: np.ndarray, calls: int) -> Weights:
    levels = _Levels(gammas)
    here, there = gammas[:-1], gammas[1:]
    share = self.eta * np.sqrt((1 - here / there) / (1 - here))
    kept = np.sqrt(1 - share**2)
    predict = []
    for i in range(calls):
      state = kept[i] * levels.decay(i, i + 1)
      predict.append(_row(state, 0.0, (levels.a[i + 1] - levels.a[i] * state,)))
    return _of_rows(range(calls), predict, noise=(share * levels.s[1:]).tolist())


@dataclasses.dataclass(frozen=True)
class DpmSolverMultistep(_OneCall):
  """DPM-Solver++(2M) (2211.01095, Algorithm 2), order 2: extrapolates through the two newest estimates."""

  def weights(self, gammas: np.ndarray, calls: int) -> Weights:
    levels, predict = _Levels(gammas), []
    for i in range(calls):
      gain, share = levels.gain(i, i + 1), 0.0
      if i and i + 1 < calls:
        # 1 / (2 r): the step over twice the one before, 0 if that one is infinite.
        share = levels.h(i, i + 1) / levels.h(i - 1, i) / 2
      predict.append(_row(levels.decay(i, i + 1), 0.0, (gain * (1 + share), -gain * share)))
    return _of_rows(range(calls), predict)


@dataclasses.dataclass(frozen=True)
class DpmSolverSinglestep(_OneCall):
  """DPM-Solver++(2S) (2211.01095, Algorithm 1), order 2, on pairs of intervals.

  The point between two is the intermediate one: from it, the state at the start of the pair is stepped again, over both
  intervals. A pair that begins at infinite L, and the last interval, are DDIM's steps.
  """

  def weights(self, gammas: np.ndarray, calls: int) -> Weights:
    levels, predict, start = _Levels(gammas), [], None
    for i in range(calls):
      if start is None or i + 1 == calls:
        predict.append(_row(levels.decay(i, i + 1), 0.0, (levels.gain(i, i + 1),)))
        start = i if np.isfinite(levels.log_snr[i]) else None
        continue
      gain = levels.gain(start, i + 1)
      share = levels.h(start, i + 1) / levels.h(start, i) / 2
      row = _row(0.0, levels.decay(start, i + 1), (gain * share, gain * (1 - share)))
      predict.append(row)
      start = None
    return _of_rows(range(calls), predict)


@dataclasses.dataclass(frozen=True)
class Heun:
  """Heun's method in x / a over s / a (2206.00364, Algorithm 1 without new noise), order 2, two calls per interval.

  The first interval has one call at zero SNR, and the last one always; if a number of calls cannot be divided so, so
  has the one before the last.
  """

  def intervals(self, calls: int, *, zero_snr: bool) -> int:
    return min((calls + 2 + zero_snr) // 2, calls)

  def weights(self, gammas: np.ndarray, calls: int) -> Weights:
    levels = _Levels(gammas)
    intervals, points, predict = len(gammas) - 1, [], []
    left = calls - intervals
    for i in range(intervals):
      points.append(i)
      predict.append(_row(levels.decay(i, i + 1), 0.0, (levels.gain(i, i + 1),)))
      if left and levels.a[i] > 0 and i + 1 < intervals:
        left -= 1
        a, s = levels.a[[i, i + 1]], levels.s[[i, i + 1]]
        half = np.diff(s / a)[0] / 2
        # x / a plus the mean of both slopes, (x / a - m) / (s / a), times the step; times the new a.
        before, now = half * a[0] / s[0], half * a[1] / s[1]
        points.append(i + 1)
        predict.append(_row(now, a[1] / a[0] * (1 + before), (-now * a[1], -before * a[1])))
    return _of_rows(points, predict)


@dataclasses.dataclass(frozen=True)
class UniPC(_OneCall):
  """UniPC (2302.04867), estimates of x_0, B(h) = e^h - 1: a multistep predictor, corrected by the estimate at its end.

  Attributes:
    order: 1 to 3, of the predictor; corrected, a step has one more. Fewer estimates exist at the start.
  """

  order: int = 2

  def __post_init__(self):
    if self.order not in (1, 2, 3):
      raise ValueError(f"UniPC.order={self.order}: expected 1, 2 or 3")

  def weights(self, gammas: np.ndarray, calls: int) -> Weights:
    levels, predict, correct, order = _Levels(gammas), [], [_UNCHANGED], 0
    finite = np.isfinite(levels.log_snr)
    for i in range(calls):
      if i:
        correct.append(self._corrected(levels, i, order) if finite[i - 1] else _UNCHANGED)
      # Estimates whose L is finite, and how many intervals are left, limit the order.
      order = max(min(self.order, int(finite[: i + 1].sum()), calls - i), 1)
      ratios = [levels.h(i, i - k) / levels.h(i, i + 1) for k in range(1, order)]
      parts = [0.5] if order == 2 else self._solved(levels.h(i, i + 1), ratios)
      gain = levels.gain(i, i + 1)
      shares = [part / ratio for part, ratio in zip(parts, ratios)]
      row = _row(
        levels.decay(i, i + 1), 0.0, (gain * (1 - sum(shares)), *(gain * p for p in shares))
      )
      predict.append(row)
    return _of_rows(range(calls), predict, correct=correct)

  def _corrected(self, levels: _Levels, i: int, order: int) -> list[float]:
    """The step to point i again, with its estimate: the state there and m at i - 1, i, and before."""
    h = levels.h(i - 1, i)
    ratios = [*(levels.h(i - 1, i - 1 - k) / h for k in range(1, order)), 1.0]
    parts = [0.5] if order == 1 else self._solved(h, ratios)
    gain = levels.gain(i - 1, i)
    *shares, newest = (part / ratio for part, ratio in zip(parts, ratios))
    own = gain * (1 - sum(shares) - newest)
    return _row(
      0.0, levels.decay(i - 1, i), (gain * newest, own, *(gain * share for share in shares))
    )

  @staticmethod
  def _solved(h: float, ratios: Sequence[float]) -> np.ndarray:
    """Parts of the difference quotients: those with which polynomials in L are integrated exactly (Theorem 3.1)."""
    if not ratios:
      return np.zeros(0)
    phi, factorial, wanted = np.expm1(-h) / -h - 1, 1, []
    for j in range(1, len(ratios) + 1):
      factorial *= j
      wanted.append(phi * factorial / np.expm1(-h))
      phi = phi / -h - 1 / (factorial * (j + 1))
    return np.linalg.solve(np.vander(ratios, increasing=True).T, wanted)
