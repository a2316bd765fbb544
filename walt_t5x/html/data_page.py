"""The contents of a page about prepared data: facts, histograms, channels and one card per example."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from walt_t5x.html.inspection import Shards, false_colors, psnr, source_clip
from walt_t5x.html.page import ShownClip, embed

_EDGE = 176
_STRIP_FRAMES = 5
_BINS = 24
_WIDTH, _HEIGHT = 260, 90
# Column of the shards -> its title and unit.
_QUANTITIES = {
  "tokens": ("tokens per caption", ""),
  "words": ("words per caption", ""),
  "captions": ("captions per example", ""),
  "motion": ("motion", ""),
  "start_seconds": ("start of the clip", " s"),
  "label": ("label", ""),
  "kilobytes": ("record", " kB"),
}


def page_facts(
  shards: Shards, origin: Any, *, num_shards: int, totals: Mapping[str, Mapping[str, int]]
) -> dict[str, object]:
  """The table at the top; `num_shards` of the folder, `totals` of each split."""
  facts: dict[str, object] = {
    "folder": shards.folder,
    "shards read": f"{len(shards.names):,} of {num_shards:,}",
    "records read": f"{len(shards.columns['kilobytes']):,}",
    "megabytes read": f"{sum(shards.columns['kilobytes']) / 1e3:.2f}",
  }
  sidecars = shards.sidecars.values()
  if sidecars:
    counts = ("rows", "written", "rejected", "dead")
    facts["rows of these shards"] = _outcomes(
      {name: sum(sidecar[name] for sidecar in sidecars) for name in counts}
    )
  for name, sidecar in shards.sidecars.items():
    if sidecar.get("quarantined"):
      facts[f"QUARANTINED {name}"] = "; ".join(sidecar["quarantine"]["violations"])
  errors: dict[str, list[float]] = {}
  for sidecar in sidecars:
    for name, value in sidecar.get("psnr", {}).items():
      if isinstance(value, Mapping) and value.get("count"):
        total, count = errors.get(name, (0, 0))
        errors[name] = [total + value["sum"], count + value["count"]]
  facts |= {
    f"decode PSNR {name}": f"{total / count:.2f} dB over {count} rows"
    for name, (total, count) in errors.items()
  }
  facts |= {f"rows of {split}": _outcomes(counts) for split, counts in totals.items()}
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


def channel_tables(shards: Shards, origin: Any) -> list[dict[str, Any]]:
  """Moments of the shards' latent channels next to those of the corpus; a channel is odd if they differ much."""
  from beam_jobs.shards.moments import Moments

  moments: dict[str, Moments] = {}
  for sidecar in shards.sidecars.values():
    for name, raw in sidecar.get("moments", {}).items():
      moments[name] = moments.get(name, Moments()) + Moments.from_json(raw)
  tables = []
  for name, found in sorted(moments.items()):
    mean, std = map(np.array, found.mean_std())
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


def histograms(shards: Shards, origin: Any) -> list[dict[str, Any]]:
  """Distributions over the shards of the quantities that have a finite value."""
  limit = origin.text_encoder.get("max_length") if origin and origin.text_encoder else None
  found = []
  for key, (title, unit) in _QUANTITIES.items():
    values = np.asarray(shards.columns[key], np.float64)
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
  shards: Shards,
  *,
  decoder: Callable[[np.ndarray], np.ndarray] | None,
  media_root: str | None,
  origin: Any,
) -> Iterator[dict[str, Any]]:
  """One card per sampled record."""
  from data import schema

  colored: dict[str, np.ndarray] = {}
  if decoder is None:
    for name in {name for _, record in shards.sample for name in record.latents}:
      holders = [record for _, record in shards.sample if name in record.latents]
      pictures = false_colors([record.latents[name] for record in holders])
      colored |= {f"{record.id}{name}": frames for record, frames in zip(holders, pictures)}
  for shard, record in shards.sample:
    clips, notes, source = [], {}, {}
    decoded = {name: decoder(z) for name, z in record.latents.items()} if decoder else {}
    sizes = {frames.shape[1:3] for frames in (*decoded.values(), *record.pixels.values())}
    if media_root and sizes and origin:
      source = source_clip(record, sorted(sizes), media_root, origin)
      if isinstance(source, str):
        notes["source"], source = source, {}
    # By size, each source followed by what was made of it.
    made = {f"decoded {name}": frames for name, frames in decoded.items()} | dict(record.pixels)
    for size in sorted(sizes):
      if source:
        clips.append(ShownClip(name="source", frames=source[size], fps=record.fps))
      for name, frames in sorted(made.items()):
        if frames.shape[1:3] == size:
          note = (
            f"PSNR {psnr(frames, source[size]):.1f} dB"
            if source and name not in record.pixels
            else ""
          )
          clips.append(ShownClip(name=name, frames=frames, fps=record.fps, note=note))
    if decoder is None:
      for name in sorted(record.latents):
        frames = colored[f"{record.id}{name}"]
        fps = record.fps * len(frames) / max(1, origin.num_frames if origin else len(frames))
        clips.append(ShownClip(name=f"{name} in false colors", frames=frames, fps=fps or 2.0))
    facts = {
      "uri": record.uri,
      "label": record.label,
      "crop": record.crop,
      "id": record.id[:16],
      "shard": shard,
    }
    if record.label == schema.NO_LABEL:
      facts.pop("label")
    if record.manifest_crop:
      facts["crop of the manifest"] = record.manifest_crop
    if record.modality == "video":
      facts |= {"start": f"{record.start_seconds:.3f} s", "motion": f"{record.motion:.4f}"}
    facts |= notes
    searched = [*record.captions, *map(str, facts.values())]
    yield {
      "searched": " ".join(searched).lower(),
      "state": "none",
      "prompt": "",
      "captions": list(zip(record.captions, record.caption_weights, map(len, record.text_ids))),
      "facts": facts,
      "clips": [embed(clip, edge=_EDGE, strip=_STRIP_FRAMES) for clip in clips],
    }
