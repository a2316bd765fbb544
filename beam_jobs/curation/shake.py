"""How much a camera shakes: how its movement changes from frame to frame. In integers, and one division for each axis.

Between two frames, the picture moves by the shift that aligns their profiles best: the sums of columns for a shift to
the side, those of rows for one up or down. The median of nine bands of the picture counts, so that an object that moves
in front of a still background does not. A camera that moves at a constant speed does not shake.
"""

import itertools
from collections.abc import Sequence

import numpy as np

_BANDS = 9
# Shifts are integers in this share of a pixel.
_UNITS = 16
_MICROSECONDS = 1_000_000


def shake(luma: np.ndarray, times: Sequence[int]) -> float:
  """Mean absolute change of the movement from one pair of adjacent frames to the next, sideways plus up and down.

  A movement is that in the mean interval between frames, as a share of the picture's shorter side; up to an eighth is
  found. Where most bands of a pair are flat or do not match, nothing is known, and nothing counts.

  Args:
    luma: integers [T, H, W], 0 to 255.
    times: of the frames, in microseconds.
  """
  side, span = min(luma.shape[1:]), times[-1] - times[0]
  moves = [_movement(one, other, side // 8) for one, other in itertools.pairwise(luma)]
  total = 0.0
  for shifts in zip(*moves):
    # Intervals between sampled frames differ, so speeds are compared: units per second.
    speeds = [
      None if shift is None else shift * _MICROSECONDS // (end - start)
      for shift, (start, end) in zip(shifts, itertools.pairwise(times), strict=True)
    ]
    changes = [
      abs(after - before)
      for before, after in itertools.pairwise(speeds)
      if before is not None and after is not None
    ]
    count = max(1, len(changes)) * len(moves)
    total += sum(changes) * span / (count * _UNITS * side * _MICROSECONDS)
  return total


def _movement(one: np.ndarray, other: np.ndarray, reach: int) -> tuple[int | None, int | None]:
  """Shifts down and to the right from a picture [H, W] to another."""
  down = across = None
  # What only one of the pictures shows would change the profiles along the other axis.
  for _ in range(2):
    across = _shift(*(part.T for part in _common(one.T, other.T, down)), reach=reach)
    down = _shift(*(part.T for part in _common(one, other, across)), reach=reach)
  return down, across


def _common(one: np.ndarray, other: np.ndarray, shift: int | None) -> tuple[np.ndarray, np.ndarray]:
  """The columns that both pictures show."""
  pixels = round((shift or 0) / _UNITS)
  cut, end = abs(pixels), one.shape[1] - abs(pixels)
  return (one[:, :end], other[:, cut:]) if pixels > 0 else (one[:, cut:], other[:, :end])


def _shift(one: np.ndarray, other: np.ndarray, *, reach: int) -> int | None:
  """The shift to the right of less than `reach` pixels, in units; None if most bands do not tell."""
  edges = [len(one) * band // _BANDS for band in range(_BANDS)]
  one, other = (np.add.reduceat(part, edges, axis=0, dtype=np.int64) for part in (one, other))
  length = one.shape[1] - 2 * reach
  kept = one[:, reach : reach + length]
  changes = np.stack([other[:, at : at + length] - kept for at in range(2 * reach + 1)], 1)
  # The variance of the change: that of the light does not count.
  errors = length * np.square(changes).sum(2) - np.square(changes.sum(2))
  told = sorted(shift for one in errors.tolist() if (shift := _least(one, reach)) is not None)
  return told[len(told) // 2] if 2 * len(told) > _BANDS else None


def _least(errors: list[int], reach: int) -> int | None:
  """Where the parabola through the least error and its neighbors is least; None if it does not stand out."""
  if not reach:
    return None
  at = errors.index(min(errors[1:-1]), 1)
  before, least, after = errors[at - 1 : at + 2]
  if min(before, after) < least or 2 * least * len(errors) >= sum(errors):
    return None
  bend = max(1, before - 2 * least + after)
  return _UNITS * (at - reach) + (_UNITS * (before - after) + bend) // (2 * bend)
