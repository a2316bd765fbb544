"""Draws curves as one SVG image without a plotting library, so that a report needs none and opens offline."""

import html
import math
from collections.abc import Mapping, Sequence

_WIDTH, _HEIGHT = 340, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 8, 8, 22
_COLOURS = ("var(--line-1)", "var(--line-2)", "var(--line-3)", "var(--line-4)")
_TICKS = 3


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


def chart(title: str, curves: Mapping[str, Sequence[tuple[int, float]]]) -> str:
  """An HTML figure with all curves on the same axes, and the newest value of each below.

  Args:
    title: heading.
    curves: name -> [(step, value)], steps ascending, values finite. A curve of one point is drawn as a dot.

  Raises:
    ValueError: `curves` has no points.
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
    return _LEFT + (_WIDTH - _LEFT - _RIGHT) * (step - left) / max(1, right - left)

  def y_of(value: float) -> float:
    return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - value) / (high - low)

  parts = []
  for value in ticks(low, high):
    y = y_of(value)
    parts.append(
      f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    )
    parts.append(f'<text x="{_LEFT - 4}" y="{y + 3:.1f}" text-anchor="end">{value:.3g}</text>')
  for step in ticks(left, right):
    parts.append(
      f'<text x="{x_of(step):.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{step:,.0f}</text>'
    )
  legend = []
  for index, (name, points) in enumerate(drawn.items()):
    colour = _COLOURS[index % len(_COLOURS)]
    if len(points) == 1:
      (step, value) = points[0]
      parts.append(f'<circle cx="{x_of(step):.1f}" cy="{y_of(value):.1f}" r="3" fill="{colour}"/>')
    else:
      path = " ".join(f"{x_of(step):.1f},{y_of(value):.1f}" for step, value in points)
      parts.append(f'<polyline points="{path}" stroke="{colour}"/>')
    step, value = points[-1]
    legend.append(
      f'<span><i style="background:{colour}"></i>{html.escape(name)} {value:.4g}</span>'
    )
  return (
    f'<figure class="chart"><figcaption><b>{html.escape(title)}</b></figcaption>'
    f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img" '
    f'aria-label="{html.escape(title, quote=True)}">{"".join(parts)}</svg>'
    f'<figcaption class="legend">{"".join(legend)}</figcaption></figure>'
  )


def grouped(
  curves: Mapping[str, Sequence[tuple[int, float]]],
) -> dict[str, dict[str, Sequence[tuple[int, float]]]]:
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
