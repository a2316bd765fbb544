"""One HTML page about prepared data: facts, histograms, channels, ledgers and one card per example."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from walt_t5x.html.page import ShownClip, embed, write_page

_EDGE = 176
_STRIP_FRAMES = 5
_BINS = 24
_WIDTH, _HEIGHT = 260, 90


@dataclass(frozen=True, kw_only=True)
class Histogram:
  """Values of one quantity; `marker` is a limit to draw, such as the longest caption kept."""

  title: str
  values: np.ndarray
  unit: str = ""
  marker: float | None = None


@dataclass(frozen=True, kw_only=True)
class Ledger:
  """Rows that did not become records: counts by reason, and some examples as (uri, explanation)."""

  title: str
  counts: Mapping[str, int]
  examples: Mapping[str, Sequence[tuple[str, str]]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Channels:
  """Moments of latent channels: of this shard, and those of the entire corpus that training normalizes with."""

  field: str
  mean: np.ndarray
  std: np.ndarray
  corpus_mean: np.ndarray | None = None
  corpus_std: np.ndarray | None = None


@dataclass(frozen=True, kw_only=True)
class RowCard:
  """One record; captions are (text, weight, tokens)."""

  captions: Sequence[tuple[str, float, int]]
  clips: Sequence[ShownClip]
  facts: Mapping[str, object]


def write_data_page(
  path: str | os.PathLike[str],
  *,
  title: str,
  facts: Mapping[str, object],
  ledgers: Sequence[Ledger],
  histograms: Sequence[Histogram],
  channels: Sequence[Channels],
  cards: Iterable[RowCard],
  notes: Sequence[str] = (),
) -> Path:
  """Writes the page atomically.

  Args:
    path: ends in .html.
    title: heading and window title.
    facts: name -> value, in a table.
    ledgers: ledgers of rejected rows and dead letters.
    histograms: histograms; those without a finite value are skipped.
    channels: one table per latents field.
    cards: cards, drawn one at a time.
    notes: sentences above the cards.

  Raises:
    ValueError: the path has another suffix.
  """
  return write_page(
    path,
    "data",
    title=title,
    facts=facts,
    ledgers=[_ledger(ledger) for ledger in ledgers],
    histograms=[_histogram(h) for h in histograms if np.isfinite(h.values).any()],
    channels=[_channels(table) for table in channels],
    cards=map(_card, cards),
    notes=notes,
  )


def bin_counts(values: np.ndarray, bins: int = _BINS) -> tuple[np.ndarray, np.ndarray]:
  """Counts and edges; integers of a small range get one bin each."""
  values = np.asarray(values, np.float64)
  low, high = values.min(), values.max()
  if (values == np.rint(values)).all():
    width = max(1, int(np.ceil((high - low + 1) / bins)))
    edges = np.arange(low - 0.5, high + 0.5 + width, width)
  else:
    edges = np.linspace(low, high if high > low else low + 1, bins + 1)
  return np.histogram(values, edges)


def _ledger(ledger: Ledger) -> dict[str, Any]:
  most = max(ledger.counts.values(), default=1)
  return {
    "title": ledger.title,
    "total": sum(ledger.counts.values()),
    "rows": [
      (reason, count, f"{max(1.0, 100 * count / most):.1f}%", ledger.examples.get(reason, ()))
      for reason, count in sorted(ledger.counts.items(), key=lambda pair: (-pair[1], pair[0]))
    ],
  }


def _histogram(histogram: Histogram) -> dict[str, Any]:
  values = np.asarray(histogram.values, np.float64)
  values = values[np.isfinite(values)]
  counts, edges = bin_counts(values)

  def x_of(value: float) -> str:
    return f"{_WIDTH * (value - edges[0]) / (edges[-1] - edges[0]):.1f}"

  low, middle, high = np.quantile(values, (0, 0.5, 1))
  unit = f" {histogram.unit}" if histogram.unit else ""
  caption = f"{len(values)} values, {low:.4g} to {high:.4g}{unit}, median {middle:.4g}, mean {values.mean():.4g}"
  marker = histogram.marker
  if marker is not None:
    caption += f", limit {marker:.4g}"
  heights = _HEIGHT * counts / counts.max()
  return {
    "title": histogram.title,
    "caption": caption,
    "width": _WIDTH,
    "height": _HEIGHT,
    "bar_width": f"{max(1.0, _WIDTH / len(counts) - 1):.1f}",
    "bars": [
      {
        "x": x_of(left),
        "y": f"{_HEIGHT - height:.1f}",
        "height": f"{height:.1f}",
        "label": f"{left:.4g} to {right:.4g}: {count}",
      }
      for left, right, height, count in zip(edges, edges[1:], heights, counts)
      if count
    ],
    "marker": x_of(marker) if marker is not None and edges[0] <= marker <= edges[-1] else "",
  }


def _channels(channels: Channels) -> dict[str, Any]:
  columns = {"mean": channels.mean, "std": channels.std}
  odd = channels.std <= 0
  if channels.corpus_mean is not None and channels.corpus_std is not None:
    mean, std = channels.corpus_mean, channels.corpus_std
    columns |= {"corpus mean": mean, "corpus std": std}
    ratio = channels.std / np.maximum(std, 1e-12)
    odd |= (std <= 0) | (np.abs(channels.mean - mean) > std) | ~((ratio >= 0.5) & (ratio <= 2))
  return {
    "field": channels.field,
    "head": list(columns),
    "rows": list(zip(odd, zip(*columns.values()))),
  }


def _card(card: RowCard) -> dict[str, Any]:
  searched = [*(text for text, *_ in card.captions), *map(str, card.facts.values())]
  return {
    "searched": " ".join(searched).lower(),
    "captions": card.captions,
    "facts": card.facts,
    "clips": [embed(clip, edge=_EDGE, strip=_STRIP_FRAMES) for clip in card.clips],
  }
