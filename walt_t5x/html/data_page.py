"""One HTML page about prepared data: facts, histograms, channels, ledgers and one card per example.

Media are `data:` URIs and a content security policy blocks every other request, so the page opens from disk and can be
sent by mail.
"""

import html
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from walt_t5x.html.embedded_media import data_uri, picture_uri
from walt_t5x.html.offline_page import PLAY_IN_VIEW, offline_page
from walt_t5x.media import video_io

_EDGE = 176
_STRIP_FRAMES = 5
_BINS = 24


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
class ShownClip:
  """Frames uint8 (T, H, W, 3) and their description."""

  name: str
  frames: np.ndarray
  fps: float
  note: str = ""


@dataclass(frozen=True, kw_only=True)
class RowCard:
  """One record; captions are (text, weight, tokens)."""

  captions: Sequence[tuple[str, float, int]]
  clips: Sequence[ShownClip]
  facts: Mapping[str, object]


def write_page(
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
    histograms: histograms; those without a value are skipped.
    channels: one table per latents field.
    cards: cards, drawn one at a time.
    notes: sentences above the cards.

  Raises:
    ValueError: the path has another suffix.
  """
  with offline_page(path, title=title, style=_STYLE) as page:
    page.write(f"<h1>{html.escape(title)}</h1>")
    page.write(_facts(facts))
    page.write(_section("What became of the rows", "".join(map(_ledger, ledgers))))
    drawn = [histogram for histogram in histograms if len(histogram.values)]
    page.write(_section("Distributions", "".join(map(_histogram, drawn))))
    page.write(_section("Latent channels", "".join(map(_channels, channels))))
    page.write("<h2>Rows</h2>")
    page.write("".join(f"<p class=note>{html.escape(note)}</p>" for note in notes))
    page.write(
      '<p><input id=text type=search placeholder="filter by caption, uri, label"></p><main>'
    )
    for card in cards:
      page.write(_card(card))
    page.write(f"</main><script>{_FILTER}{PLAY_IN_VIEW}</script>")
  return Path(path)


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


def _facts(facts: Mapping[str, object]) -> str:
  rows = "".join(
    f"<tr><th>{html.escape(str(name))}</th><td>{html.escape(str(value))}</td></tr>"
    for name, value in facts.items()
  )
  return f"<table class=facts>{rows}</table>"


def _section(title: str, body: str) -> str:
  return f"<h2>{title}</h2><div class=row>{body}</div>" if body else ""


def _ledger(ledger: Ledger) -> str:
  total = sum(ledger.counts.values())
  most = max(ledger.counts.values(), default=1)
  rows = []
  for reason, count in sorted(ledger.counts.items(), key=lambda pair: (-pair[1], pair[0])):
    examples = "".join(
      f"<li><code>{html.escape(uri)}</code> {html.escape(text)}</li>"
      for uri, text in ledger.examples.get(reason, ())
    )
    bar = f'<span class=bar style="width:{max(1.0, 100 * count / most):.1f}%"></span>'
    head = f"<b>{html.escape(reason)}</b> {count}{bar}"
    rows.append(
      f"<details><summary>{head}</summary><ul>{examples}</ul></details>"
      if examples
      else f"<div class=plain>{head}</div>"
    )
  return (
    f"<section class=ledger><h3>{html.escape(ledger.title)}: {total}</h3>{''.join(rows)}</section>"
  )


def _histogram(histogram: Histogram) -> str:
  values = np.asarray(histogram.values, np.float64)
  values = values[np.isfinite(values)]
  if not len(values):
    return ""
  counts, edges = bin_counts(values)
  width, height, most = 260, 90, counts.max()
  span = edges[-1] - edges[0]

  def x_of(value: float) -> float:
    return width * (value - edges[0]) / span

  bars = "".join(
    f'<rect x="{x_of(edges[i]):.1f}" y="{height - height * count / most:.1f}" '
    f'width="{max(1.0, width / len(counts) - 1):.1f}" height="{height * count / most:.1f}">'
    f"<title>{edges[i]:.4g} to {edges[i + 1]:.4g}: {count}</title></rect>"
    for i, count in enumerate(counts)
    if count
  )
  marker = ""
  if histogram.marker is not None and edges[0] <= histogram.marker <= edges[-1]:
    x = x_of(histogram.marker)
    marker = f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"></line>'
  low, middle, high = np.quantile(values, (0, 0.5, 1))
  unit = f" {histogram.unit}" if histogram.unit else ""
  caption = f"{len(values)} values, {low:.4g} to {high:.4g}{unit}, median {middle:.4g}, mean {values.mean():.4g}"
  if histogram.marker is not None:
    caption += f", limit {histogram.marker:.4g}"
  return (
    f"<figure class=histogram><figcaption><b>{html.escape(histogram.title)}</b></figcaption>"
    f'<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}">{bars}{marker}</svg>'
    f"<figcaption>{html.escape(caption)}</figcaption></figure>"
  )


def _channels(channels: Channels) -> str:
  head = "<tr><th>channel<th>mean<th>std"
  if channels.corpus_mean is not None:
    head += "<th>corpus mean<th>corpus std"
  rows = []
  for k, (mean, std) in enumerate(zip(channels.mean, channels.std)):
    cells = [f"{mean:.3f}", f"{std:.3f}"]
    odd = std <= 0
    if channels.corpus_mean is not None and channels.corpus_std is not None:
      corpus_mean, corpus_std = channels.corpus_mean[k], channels.corpus_std[k]
      cells += [f"{corpus_mean:.3f}", f"{corpus_std:.3f}"]
      odd |= corpus_std <= 0 or abs(mean - corpus_mean) > corpus_std
      odd |= not 0.5 <= std / max(corpus_std, 1e-12) <= 2
    kind = ' class="odd"' if odd else ""
    rows.append(f"<tr{kind}><td>{k}" + "".join(f"<td>{cell}" for cell in cells))
  return f"<table class=channels><caption>{html.escape(channels.field)}</caption>{head}{''.join(rows)}</table>"


def _card(card: RowCard) -> str:
  searched = " ".join([text for text, *_ in card.captions] + [str(v) for v in card.facts.values()])
  captions = "".join(
    f"<li>{html.escape(text) or '<i>no caption</i>'} <small>"
    + (f"{tokens} tokens, " if tokens else "")
    + f"weight {weight:g}</small></li>"
    for text, weight, tokens in card.captions
  )
  facts = " · ".join(
    f"{html.escape(str(name))} <code>{html.escape(str(value))}</code>"
    for name, value in card.facts.items()
  )
  clips = "".join(map(_clip, card.clips))
  return (
    f'<article data-text="{html.escape(searched.lower(), quote=True)}"><ul class=captions>{captions}</ul>'
    f"<div class=clips>{clips}</div><p class=small>{facts}</p></article>\n"
  )


def _clip(clip: ShownClip) -> str:
  frames = video_io.to_uint8(clip.frames)
  count, height, width = frames.shape[:3]
  scale = max(1, round(_EDGE / max(height, width)))
  size = f'width="{width * scale}" height="{height * scale}"'
  poster = picture_uri(video_io.upscale(frames[:1], scale)[0])
  strip = ""
  if count == 1:
    medium = f'<img {size} src="{poster}" alt="">'
  else:
    video = video_io.encode_video(frames, suffix=".mp4", fps=clip.fps or 8.0, crf=16, scale=scale)
    medium = (
      f'<video {size} poster="{poster}" src="{data_uri("video/mp4", video)}" loop muted playsinline>'
      "</video>"
    )
    chosen = np.unique(np.linspace(0, count - 1, _STRIP_FRAMES).round().astype(int))
    sheet = np.concatenate([frames[k] for k in chosen], axis=1)
    strip = f'<img class=strip src="{picture_uri(sheet)}" alt="frames {chosen.tolist()}">'
  rate = f", {clip.fps:g} fps" if count > 1 else ""
  note = f"<br>{html.escape(clip.note)}" if clip.note else ""
  caption = f"<b>{html.escape(clip.name)}</b> {count}×{height}×{width}{rate}{note}"
  return f"<figure>{medium}{strip}<figcaption>{caption}</figcaption></figure>"


_STYLE = """
:root { --bar: #3b6ea8; --wrong: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --bar: #7fb0e6; --wrong: #ff8a80; } }
.facts td { overflow-wrap: anywhere; } .facts th { color: var(--soft); font-weight: 500; white-space: nowrap; }
.channels td, .channels th { text-align: right; font-variant-numeric: tabular-nums; font-size: 12px; }
.channels caption { text-align: left; font-weight: 600; padding: 3px 0; } .odd { color: var(--wrong); }
.clips, main { display: flex; flex-wrap: wrap; gap: 14px; align-items: flex-start; }
.ledger { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 10px 14px;
  min-width: 300px; max-width: 760px; }
.ledger ul { margin: 4px 0 8px; padding-left: 18px; font-size: 12px; overflow-wrap: anywhere; }
.plain { margin-left: 15px; }
.bar { display: block; height: 5px; background: var(--bar); border-radius: 3px; margin: 2px 0 5px; }
.small, small { color: var(--soft); font-size: 12px; }
.histogram { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 8px 12px;
  width: 286px; }
svg rect { fill: var(--bar); } svg line { stroke: var(--wrong); stroke-width: 2; }
.captions { margin: 0 0 8px; padding-left: 18px; max-width: 46em; }
.small { max-width: 60em; overflow-wrap: anywhere; margin: 8px 0 0; }
.strip { height: 40px; width: auto; margin-top: 4px; }
input { font: inherit; color: inherit; background: var(--card); padding: 5px 10px; width: 22em;
  border: 1px solid var(--line); border-radius: 7px; }
"""

_FILTER = """
const cards = [...document.querySelectorAll("article")];
document.getElementById("text").addEventListener("input", (event) => {
  const words = event.target.value.toLowerCase().split(/\\s+/).filter(Boolean);
  for (const card of cards) card.hidden = !words.every((word) => card.dataset.text.includes(word));
});
"""
