"""Places curves in an SVG image without a plotting library, so that a report needs none and opens offline."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

_WIDTH, _HEIGHT = 340, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 12, 8, 38
_COLORS = ("var(--line-1)", "var(--line-2)", "var(--line-3)", "var(--line-4)")
_TICKS = 3
# Name -> [(step, value)], steps ascending.
Curves = Mapping[str, Sequence[tuple[int, float]]]


def ticks(low: float, high: float) -> list[float]:
  """Three to nine round numbers (spaced by 1, 2 or 5 times a power of ten) within [low, high]; [low] if it is empty."""
  if not high > low:
    return [low]
  widest = (high - low) / _TICKS
  power = 10.0 ** math.floor(math.log10(widest))
  step = next(factor * power for factor in (5, 2, 1) if factor * power <= widest * (1 + 1e-9))
  first = math.ceil(low / step - 1e-9)
  last = math.floor(high / step + 1e-9)
  return [k * step for k in range(first, last + 1)]


def chart(title: str, curves: Curves) -> dict[str, Any]:
  """The values of a figure with all curves on the same axes, and the newest value of each below.

  Values are finite, at least one; a curve of one point is drawn as a dot.
  """
  drawn = {name: points for name, points in curves.items() if points}
  if not drawn:
    raise ValueError(f"The chart {title!r} has no point.")
  steps = [step for points in drawn.values() for step, _ in points]
  values = [value for points in drawn.values() for _, value in points]
  left, right = min(steps), max(steps)
  low, high = min(values), max(values)
  pad = 0.05 * (high - low) or abs(high) * 0.05 or 1.0
  low, high = low - pad, high + pad

  def x_of(step: float) -> float:
    return round(_LEFT + (_WIDTH - _LEFT - _RIGHT) * (step - left) / max(1, right - left), 1)

  def y_of(value: float, below: float = 0) -> float:
    return round(_TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - value) / (high - low) + below, 1)

  return {
    "title": title,
    "quantity": title.rpartition("/")[2].replace("_", " "),
    "width": _WIDTH,
    "height": _HEIGHT,
    "left": _LEFT,
    "right": _WIDTH - _RIGHT,
    "top": _TOP,
    "bottom": _HEIGHT - _BOTTOM,
    "grid": [(y_of(value), y_of(value, 3), f"{value:.3g}") for value in ticks(low, high)],
    "steps": [(x_of(step), f"{step:,.0f}") for step in ticks(left, right)],
    "curves": [
      {
        "name": name,
        "newest": f"{points[-1][1]:.4g}",
        "color": color,
        "points": [(x_of(step), y_of(value), step, f"{value:.4g}") for step, value in points],
      }
      for color, (name, points) in zip(itertools.cycle(_COLORS), drawn.items())
    ],
  }


def grouped(curves: Curves) -> Mapping[str, Curves]:
  """Groups curves by the last part of the metric's name: training and evaluation of one quantity share a chart.

  `loss` and `training_eval/shapes/loss` become {"loss": {"training": ..., "training_eval/shapes": ...}}.
  """
  charts: dict[str, dict[str, Sequence[tuple[int, float]]]] = {}
  for name, points in curves.items():
    collection, title = "training", name
    if name.startswith("training_eval/"):
      head, _, rest = name.removeprefix("training_eval/").partition("/")
      collection, title = (f"held out, {head}", rest) if rest else (collection, name)
    charts.setdefault(title, {})[collection] = points
  return charts
