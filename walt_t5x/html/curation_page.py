"""The page about a curated corpus: where its seconds went, scores with thresholds to try, and shots of some videos."""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from walt_t5x.files.paths import AnyPath
from walt_t5x.html.curve_chart import ticks
from walt_t5x.html.page import data_uri, write_page
from walt_t5x.media.rules import Rule

_WIDTH, _TOP, _BOTTOM, _HEIGHT = 440, 30, 140, 160
_MARGIN = 12
_COLORS = 8
_NARROWEST = 128
# Scores whose smaller values are the better ones, as far as a new rule is concerned.
_AT_MOST = ("shake", "still", "repeated", "black", "bars", "text")


@dataclass(frozen=True, kw_only=True)
class ShownSegment:
  """A segment of a video in seconds.

  reason: why it is rejected; "" for a clip.
  scores: values by name; `seconds` among them.
  picture: [H, W, 3] uint8, or the reason why there is none.
  """

  uri: str
  start: float
  end: float
  reason: str
  scores: Mapping[str, float]
  picture: np.ndarray | str


@dataclass(frozen=True, kw_only=True)
class Histogram:
  """Bins (from, to, count) with values in order, the axis, the smallest and the largest value.

  The first and the last bin may begin before the axis and end after it.
  """

  bins: Sequence[tuple[float, float, int]]
  axis: tuple[float, float]
  low: float
  high: float


@dataclass(frozen=True, kw_only=True)
class Threshold:
  """A rule, how many candidates fail it, and those closest to its threshold."""

  rule: Rule
  failing: int
  below: Sequence[ShownSegment]
  above: Sequence[ShownSegment]


@dataclass(frozen=True, kw_only=True)
class Timeline:
  """Adjacent segments of a video.

  first: number of the first of them, of `count`.
  dead: (start, end, reason) of the part that could not be read, or None.
  """

  uri: str
  segments: Sequence[ShownSegment]
  first: int
  count: int
  dead: tuple[float, float, str] | None


@dataclass(frozen=True, kw_only=True)
class DuplicatePair:
  """A duplicate and the clip that is kept.

  clips: both, the duplicate first.
  score: name of the one that decided which is kept.
  bits: mean number of bits by which their perceptual hashes differ.
  cosine: of their embeddings, or None.
  """

  clips: Sequence[ShownSegment]
  score: str
  bits: float
  cosine: float | None


def write_curation(
  path: str,
  *,
  totals: Mapping[str, Any],
  segments: Mapping[str, int],
  histograms: Mapping[str, Histogram],
  thresholds: Sequence[Threshold],
  candidates: int,
  sample: Sequence[Mapping[str, float]],
  flags: Sequence[str],
  pairs: Sequence[DuplicatePair],
  videos: Sequence[Timeline],
) -> AnyPath:
  """Writes the page atomically.

  Args:
    path: ends in .html.
    totals: contents of the job's summary.json.
    segments: number of segments by reason, "" for clips.
    histograms: of each score, over all shots.
    thresholds: those of the rules that made the clips, in order.
    candidates: number of shots that are clips or that a rule rejects.
    sample: scores of some of them, from which the page counts for other thresholds.
    flags: those of the job that the page shows before the rules.
    pairs: some of the duplicates.
    videos: sampled videos.
  """
  outcomes = _outcomes(totals, segments)
  colors = {outcome["name"]: outcome["color"] for outcome in outcomes}
  names = [*dict.fromkeys(t.rule.name for t in thresholds), *histograms]
  names = [name for name in dict.fromkeys(names) if name in histograms]
  return write_page(
    path,
    "curation",
    title="Curation",
    totals=totals,
    outcomes=outcomes,
    scores=[
      _score(name, histograms[name], [t for t in thresholds if t.rule.name == name], colors)
      for name in names
    ],
    candidates=candidates,
    clips=segments.get("", 0),
    sample={
      "names": names,
      "rows": [[scores.get(name) for name in names] for scores in sample],
      "candidates": candidates,
      "flags": flags,
    },
    pairs=[_pair(pair, colors) for pair in pairs],
    duplicates=sum(segments.get(reason, 0) for reason in {p.clips[0].reason for p in pairs}),
    videos=[_timeline(video, colors) for video in videos],
  )


def _outcomes(totals: Mapping[str, Any], segments: Mapping[str, int]) -> list[dict[str, Any]]:
  """What became of the seconds: clips, then reasons by their seconds, then dead videos."""
  rejected = sorted(totals["seconds_rejected"].items(), key=lambda pair: (-pair[1], pair[0]))
  rows = [("clips", "--kept", segments.get("", 0), totals["seconds_in_clips"])]
  rows += [
    (reason, f"--reason-{i % _COLORS}", segments.get(reason, 0), seconds)
    for i, (reason, seconds) in enumerate(rejected)
  ]
  dead = totals["dead_videos"]
  reasons = "".join(f", {reason} {count}" for reason, count in dead.items())
  rows.append((f"dead{reasons}", "--dead", sum(dead.values()), totals["seconds_dead"]))
  return [
    {
      "name": name,
      "color": f"var({color})",
      "count": count,
      "seconds": seconds,
      "share": seconds / (totals["seconds"] or 1.0),
    }
    for name, color, count, seconds in rows
  ]


def _score(
  name: str, histogram: Histogram, thresholds: Sequence[Threshold], colors: Mapping[str, str]
) -> dict[str, Any]:
  """A histogram with its rules, and a blank one to try."""
  low, high = first, last = histogram.axis
  if high - low < 1e-5:  # All values are the same.
    high = low + 1.0
  span = high - low
  # A threshold far from all values is drawn at the edge.
  for threshold in thresholds:
    value = threshold.rule.value
    if low - span <= value <= high + span:
      low, high = min(low, value - 0.02 * span), max(high, value + 0.02 * span)
  most = max(count for *_, count in histogram.bins)

  def x_of(value: float) -> float:
    return _MARGIN + (_WIDTH - 2 * _MARGIN) * (value - low) / (high - low)

  def bar(begin: float, end: float, count: int) -> dict[str, str]:
    left, right = x_of(max(begin, first)), x_of(min(end, last))
    height = max(1.5, (_BOTTOM - _TOP) * count / most)
    digits = 6 if f"{begin:.6g}" != f"{end:.6g}" else 9
    return {
      "x": f"{left:.1f}",
      "width": f"{max(2.0, right - left - 0.5):.1f}",
      "height": f"{height:.1f}",
      "y": f"{_BOTTOM - height:.1f}",
      "label": f"{begin:.{digits}g} to {end:.{digits}g}: {count}",
    }

  rules = [
    {"op": t.rule.op, "value": str(t.rule.value).removesuffix(".0"), "failing": t.failing}
    for t in thresholds
  ]
  at_most = thresholds[0].rule.op in (">=", ">") if thresholds else name in _AT_MOST
  return {
    "name": name,
    "caption": f"{sum(count for *_, count in histogram.bins):,} shots, {histogram.low:.4g} to {histogram.high:.4g}",
    "low": low,
    "high": high,
    "step": f"{10.0 ** math.floor(math.log10((high - low) / 20)):.12f}".rstrip("0").rstrip("."),
    "width": _WIDTH,
    "height": _HEIGHT,
    "left": _MARGIN,
    "right": _WIDTH - _MARGIN,
    "bottom": _BOTTOM,
    "bars": [bar(*one) for one in histogram.bins],
    "ticks": [(f"{x_of(value):.1f}", f"{value:.6g}") for value in ticks(low, high)],
    "rules": [*rules, {"op": "<=" if at_most else ">=", "value": "", "failing": None}],
    "examples": [group for t in thresholds for group in _examples(t, colors)],
  }


def _examples(threshold: Threshold, colors: Mapping[str, str]) -> Iterator[dict[str, Any]]:
  """The clips on both sides of a threshold, if there are any."""
  rule = threshold.rule
  sides = ("up to", "above") if rule.op in (">", "<=") else ("below", "from")
  for side, clips in zip(sides, (threshold.below, threshold.above), strict=True):
    if clips:
      holds = rule.holds(clips[0].scores[rule.name])
      yield {
        "head": f"{side} {rule.value:g}: {'pass' if holds else 'fail'}",
        "clips": [_clip(clip, colors, rule.name) for clip in clips],
      }


def _pair(pair: DuplicatePair, colors: Mapping[str, str]) -> dict[str, Any]:
  cosine = "" if pair.cosine is None else f", cosine {pair.cosine:.4f}"
  return {
    "head": f"{pair.bits:.1f} of 128 bits differ{cosine}",
    "clips": [_clip(clip, colors, pair.score) for clip in pair.clips],
  }


def _timeline(video: Timeline, colors: Mapping[str, str]) -> dict[str, Any]:
  """Segments of a video as rectangles, in thousandths of the time shown."""
  shown = [_clip(clip, colors, "") for clip in video.segments]
  spans = [(c.start, c.end, one["color"], one["title"]) for c, one in zip(video.segments, shown)]
  last = video.first + len(shown)
  if video.dead and last == video.count and video.dead[1] > video.dead[0]:
    start, end, reason = video.dead
    spans.append((start, end, "var(--dead)", f"{start:.3f} to {end:.3f} s\ndead: {reason}"))
  begin, end = spans[0][0], spans[-1][1]
  scale = 1000 / ((end - begin) or 1.0)
  facts = f"{begin:.2f} to {end:.2f} s, "
  facts += (
    f"segments {video.first + 1:,} to {last:,} of {video.count:,}"
    if len(shown) < video.count
    else f"{video.count} segment{'s' if video.count > 1 else ''}"
  )
  return {
    "uri": video.uri,
    "facts": facts,
    "spans": [
      {
        "x": f"{scale * (a - begin):.2f}",
        "width": f"{scale * (b - a):.2f}",
        "color": color,
        "title": title,
      }
      for a, b, color, title in spans
    ],
    "ticks": [(scale * (value - begin) / 10, f"{value:.6g}") for value in ticks(begin, end)],
    "clips": shown,
  }


def _clip(clip: ShownSegment, colors: Mapping[str, str], score: str) -> dict[str, Any]:
  outcome = clip.reason or "clip"
  values = "\n".join(f"{name} {value:.6g}" for name, value in clip.scores.items())
  picture = {"width": _NARROWEST, "image": "", "missing": clip.picture}
  if not isinstance(clip.picture, str):
    width = max(_NARROWEST, clip.picture.shape[1])
    picture = {"width": width, "image": _jpeg_uri(clip.picture), "missing": ""}
  return picture | {
    "uri": clip.uri,
    "time": f"{clip.start:.2f}–{clip.end:.2f} s",
    "value": f"{score} {clip.scores[score]:.6g}" if score else "",
    "outcome": outcome,
    "color": colors.get(clip.reason or "clips", "var(--dead)"),
    "title": f"{clip.uri}\n{clip.start:.3f} to {clip.end:.3f} s\n{outcome}\n{values}",
  }


def _jpeg_uri(picture: np.ndarray) -> str:
  """An image, [H, W, 3] uint8, as a URI."""
  from PIL import Image

  stream = io.BytesIO()
  Image.fromarray(np.ascontiguousarray(picture)).save(stream, format="JPEG", quality=82)
  return data_uri("image/jpeg", stream.getvalue())
