"""The contents of a page about prepared data: facts, histograms, channels and one card per example."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from walt_t5x.html.inspection import Shard, false_colors, psnr, source_clip
from walt_t5x.html.page import ShownClip, embed

_EDGE = 176
_STRIP_FRAMES = 5
_BINS = 24
_WIDTH, _HEIGHT = 260, 90
# Column of a shard -> its title and unit.
_QUANTITIES = {
  "tokens": ("tokens per caption", ""),
  "words": ("words per caption", ""),
  "captions": ("captions per example", ""),
  "motion": ("motion", ""),
  "start_seconds": ("start of the clip", " s"),
  "label": ("label", ""),
  "kilobytes": ("record", " kB"),
}


def page_facts(shard: Shard, origin: Any, totals: Mapping[str, Any]) -> dict[str, object]:
  """The table at the top."""
  sidecar = shard.sidecar
  rows = len(shard.columns["kilobytes"])
  facts: dict[str, object] = {
    "folder": shard.folder,
    "records in this shard": rows,
    "megabytes": f"{sum(shard.columns['kilobytes']) / 1e3:.2f}",
  }
  if sidecar:
    facts["rows of this shard"] = _outcomes(sidecar)
    if sidecar.get("quarantined"):
      facts["QUARANTINED"] = "; ".join(sidecar["quarantine"]["violations"])
    facts |= {
      f"decode PSNR {name}": f"{value['sum'] / value['count']:.2f} dB over {value['count']} rows"
      for name, value in sidecar.get("psnr", {}).items()
      if isinstance(value, Mapping) and value.get("count")
    }
  if totals:
    facts["rows of the split"] = _outcomes(totals)
  if origin is None:
    facts["provenance"] = "none: the job has not finished"
    return facts
  facts["clip"] = f"{origin.num_frames} frames at {origin.fps:g} fps"
  for name, part in (("VAE", origin.vae), ("text encoder", origin.text_encoder)):
    if part:
      place = part.get("checkpoint") or part.get("folder")
      facts[name] = f"{part['fingerprint'][:16]} ({place})"
  return facts


def _outcomes(counts: Mapping[str, int]) -> str:
  return "{rows}: {written} written, {rejected} rejected, {dead} dead".format_map(counts)


def channel_tables(shard: Shard, origin: Any) -> list[dict[str, Any]]:
  """Moments of the shard's latent channels next to those of the corpus; a channel is odd if they differ much."""
  from beam_jobs.shards.moments import Moments

  tables = []
  for name, raw in sorted(shard.sidecar.get("moments", {}).items()):
    mean, std = map(np.array, Moments.from_json(raw).mean_std())
    columns = {"mean": mean, "std": std}
    odd = std <= 0
    if corpus := origin.latents.get(name) if origin else None:
      expected, spread = np.array(corpus.mean), np.array(corpus.std)
      columns |= {"corpus mean": expected, "corpus std": spread}
      ratio = std / np.maximum(spread, 1e-12)
      odd |= (spread <= 0) | (np.abs(mean - expected) > spread) | ~((ratio >= 0.5) & (ratio <= 2))
    rows = list(zip(odd, zip(*columns.values())))
    tables.append({"field": name, "head": list(columns), "rows": rows})
  return tables


def histograms(shard: Shard, origin: Any) -> list[dict[str, Any]]:
  """Distributions over the shard of the quantities that have a finite value."""
  limit = origin.text_encoder.get("max_length") if origin and origin.text_encoder else None
  found = []
  for key, (title, unit) in _QUANTITIES.items():
    values = np.asarray(shard.columns[key], np.float64)
    values = values[np.isfinite(values)]
    if len(values):
      found.append(_histogram(title, values, unit, limit if key == "tokens" else None))
  return found


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


def _histogram(title: str, values: np.ndarray, unit: str, marker: float | None) -> dict[str, Any]:
  """A histogram; `marker` is a limit to draw, such as the longest caption kept."""
  counts, edges = bin_counts(values)

  def x_of(value: float) -> str:
    return f"{_WIDTH * (value - edges[0]) / (edges[-1] - edges[0]):.1f}"

  low, middle, high = np.quantile(values, (0, 0.5, 1))
  caption = f"{len(values)} values, {low:.4g} to {high:.4g}{unit}, median {middle:.4g}, mean {values.mean():.4g}"
  if marker is not None:
    caption += f", limit {marker:.4g}"
  heights = _HEIGHT * counts / counts.max()
  return {
    "title": title,
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


def cards(
  shard: Shard,
  *,
  decoder: Callable[[np.ndarray], np.ndarray] | None,
  media_root: str | None,
  origin: Any,
) -> Iterator[dict[str, Any]]:
  """One card per sampled record."""
  from data import schema

  colored: dict[str, np.ndarray] = {}
  if decoder is None:
    for name in {name for record in shard.sample for name in record.latents}:
      holders = [record for record in shard.sample if name in record.latents]
      pictures = false_colors([record.latents[name] for record in holders])
      colored |= {f"{record.id}{name}": frames for record, frames in zip(holders, pictures)}
  for record in shard.sample:
    clips, notes, source = [], {}, {}
    decoded = {name: decoder(z) for name, z in record.latents.items()} if decoder else {}
    sizes = {frames.shape[1:3] for frames in (*decoded.values(), *record.pixels.values())}
    if media_root and sizes and origin:
      source = source_clip(record, sorted(sizes), media_root, origin)
      if isinstance(source, str):
        notes["source"], source = source, {}
    for _, frames in sorted(source.items()):
      clips.append(ShownClip(name="source", frames=frames, fps=record.fps))
    for name, frames in sorted(decoded.items()):
      note = f"PSNR {psnr(frames, source[frames.shape[1:3]]):.1f} dB" if source else ""
      clips.append(ShownClip(name=f"decoded {name}", frames=frames, fps=record.fps, note=note))
    for name, frames in sorted(record.pixels.items()):
      clips.append(ShownClip(name=name, frames=frames, fps=record.fps))
    if decoder is None:
      for name in sorted(record.latents):
        frames = colored[f"{record.id}{name}"]
        fps = record.fps * len(frames) / max(1, origin.num_frames if origin else len(frames))
        clips.append(ShownClip(name=f"{name} in false colors", frames=frames, fps=fps or 2.0))
    facts = {"uri": record.uri, "label": record.label, "crop": record.crop, "id": record.id[:16]}
    if record.label == schema.NO_LABEL:
      facts.pop("label")
    if record.modality == "video":
      facts |= {"start": f"{record.start_seconds:.3f} s", "motion": f"{record.motion:.4f}"}
    facts |= notes
    searched = [*record.captions, *map(str, facts.values())]
    yield {
      "searched": " ".join(searched).lower(),
      "captions": list(zip(record.captions, record.caption_weights, map(len, record.text_ids))),
      "facts": facts,
      "clips": [embed(clip, edge=_EDGE, strip=_STRIP_FRAMES) for clip in clips],
    }
