"""Shows prepared data: one self-contained HTML page about a shard.

  python -m walt_t5x.inspect_data CACHE/shapes_videos --output=/tmp/shapes.html
  python -m walt_t5x.inspect_data CACHE/shapes_videos/train.tfrecord-00003-of-00064 --rows=48 \\
    --vae_checkpoint=runs/vae --media_root=/data --output=/tmp/shard3.html

The page shows thumbnails and clips of some examples with their captions, distributions over the shard, latent channels
compared with the statistics that training uses, and rejected rows and dead letters by reason. Pixel caches are shown
directly. Latents are decoded with the VAE checkpoint that made them; without it they are shown in false colors.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from walt_t5x.html.inspection import (
  SHARD_NAME,
  LatentDecoder,
  Shard,
  false_colors,
  find_shard,
  psnr,
  read_ledgers,
  read_shard,
  source_clip,
)


def cards(
  shard: Shard, *, decoder: LatentDecoder | None, media_root: str | None, origin: Any
) -> Iterator[Any]:
  """One card per sampled record."""
  from data import schema
  from walt_t5x.html.data_page import RowCard, ShownClip

  colored: dict[str, np.ndarray] = {}
  if decoder is None:
    for name in {name for record in shard.sample for name in record.latents}:
      holders = [record for record in shard.sample if name in record.latents]
      pictures = false_colors([record.latents[name] for record in holders])
      colored |= {f"{record.id}{name}": frames for record, frames in zip(holders, pictures)}
  for record in shard.sample:
    clips, notes = [], {}
    decoded = {name: decoder(z) for name, z in record.latents.items()} if decoder else {}
    shown = {name: frames.shape[1:3] for name, frames in {**decoded, **record.pixels}.items()}
    source = None
    if media_root and shown and origin:
      source = source_clip(record, sorted(set(shown.values())), media_root, origin)
      if isinstance(source, str):
        notes["source"], source = source, None
    for _, frames in sorted((source or {}).items()):
      clips.append(ShownClip(name="source", frames=frames, fps=record.fps))
    for name, frames in sorted(decoded.items()):
      note = ""
      if source is not None:
        note = f"PSNR {psnr(frames, source[frames.shape[1:3]]):.1f} dB"
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
    captions = [
      (caption, weight, len(ids))
      for caption, weight, ids in zip(record.captions, record.caption_weights, record.text_ids)
    ]
    yield RowCard(captions=captions, clips=clips, facts=facts | notes)


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
    facts["rows of this shard"] = (
      f"{sidecar['rows']}: {sidecar['written']} written, {sidecar['rejected']} rejected, {sidecar['dead']} dead"
    )
    if sidecar.get("quarantined"):
      facts["QUARANTINED"] = "; ".join(sidecar["quarantine"]["violations"])
    facts |= {
      f"decode PSNR {name}": f"{value['sum'] / value['count']:.2f} dB over {value['count']} rows"
      for name, value in sidecar.get("psnr", {}).items()
      if isinstance(value, Mapping) and value.get("count")
    }
  if totals:
    facts["rows of the split"] = (
      f"{totals['rows']}: {totals['written']} written, {totals['rejected']} rejected, {totals['dead']} dead"
    )
  if origin is None:
    facts["provenance"] = "none: the job has not finished"
    return facts
  facts["clip"] = f"{origin.num_frames} frames at {origin.fps:g} fps"
  for name, part in (("VAE", origin.vae), ("text encoder", origin.text_encoder)):
    if part:
      place = part.get("checkpoint") or part.get("folder")
      facts[name] = f"{part['fingerprint'][:16]} ({place})"
  return facts


def channel_tables(shard: Shard, origin: Any) -> list[Any]:
  """Moments of the shard's latents next to those of the corpus."""
  from beam_jobs.shards.moments import Moments
  from walt_t5x.html.data_page import Channels

  tables = []
  for name, raw in sorted(shard.sidecar.get("moments", {}).items()):
    mean, std = Moments.from_json(raw).mean_std()
    corpus = origin.latents.get(name) if origin else None
    tables.append(
      Channels(
        field=name,
        mean=np.array(mean),
        std=np.array(std),
        corpus_mean=np.array(corpus.mean) if corpus else None,
        corpus_std=np.array(corpus.std) if corpus else None,
      )
    )
  return tables


def histograms(shard: Shard, origin: Any) -> list[Any]:
  """Distributions over the shard."""
  from walt_t5x.html.data_page import Histogram

  limit = origin.text_encoder.get("max_length") if origin and origin.text_encoder else None
  titles = {
    "tokens": "tokens per caption",
    "words": "words per caption",
    "captions": "captions per example",
    "motion": "motion",
    "start_seconds": "start of the clip",
    "label": "label",
    "kilobytes": "record",
  }
  units = {"start_seconds": "s", "kilobytes": "kB"}
  return [
    Histogram(
      title=title,
      values=np.array(shard.columns[key]),
      unit=units.get(key, ""),
      marker=limit if key == "tokens" else None,
    )
    for key, title in titles.items()
  ]


def inspect(
  path: str,
  output: str,
  *,
  rows: int = 24,
  seed: int = 0,
  vae_checkpoint: str | None = None,
  media_root: str | None = None,
) -> str:
  """Writes the page; returns its path.

  Args:
    path: a shard, or a cached task folder.
    output: .html file.
    rows: number of records to show.
    seed: selects the records.
    vae_checkpoint: checkpoint to decode latents with.
    media_root: base of the records' uris, to show the source next to each clip.

  Raises:
    FileNotFoundError: the shard does not exist.
    ValueError: the VAE did not make the cache.
  """
  from data.provenance import FILE_NAME, read_provenance
  from walt_t5x.files import storage
  from walt_t5x.html.data_page import write_data_page

  folder, name = find_shard(path)
  shard = read_shard(folder, name, rows=rows, seed=seed)
  finished = storage.exists(storage.join(folder, FILE_NAME))
  origin = read_provenance(folder) if finished else None
  split, _, _ = name.partition(".tfrecord-")
  stats_path = storage.join(folder, f"stats.{split}.json")
  totals = storage.read_json(stats_path) if storage.exists(stats_path) else {}
  alone = path.rpartition("/")[2] == name
  shards = [name] if alone else [n for n in storage.names(folder) if SHARD_NAME.fullmatch(n)]
  decoder, notes = None, []
  if vae_checkpoint:
    if origin is None or not origin.vae:
      raise ValueError(f"--vae_checkpoint: {folder} has no provenance.json that names a VAE")
    decoder = LatentDecoder(vae_checkpoint, origin)
  elif any(record.latents for record in shard.sample):
    notes.append(
      "Latents in false colors: the three principal components of the examples shown. --vae_checkpoint decodes them."
    )
  notes.append(f"{len(shard.sample)} of {len(shard.columns['kilobytes'])} records, seed {seed}.")
  title = f"{os.path.basename(folder)} / {name}"
  write_data_page(
    output,
    title=title,
    facts=page_facts(shard, origin, totals),
    ledgers=read_ledgers(folder, shards),
    histograms=histograms(shard, origin),
    channels=channel_tables(shard, origin),
    cards=cards(shard, decoder=decoder, media_root=media_root, origin=origin),
    notes=notes,
  )
  return output


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the program; returns 2 for an error that the user can fix."""
  parser = argparse.ArgumentParser(
    prog="python -m walt_t5x.inspect_data",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add(
    "path", help="a shard (<split>.tfrecord-<i>-of-<n>), or a cached task folder: its first shard"
  )
  add("--output", default="inspect.html", help="the page (inspect.html)")
  add("--rows", type=int, default=24, help="records to show (24)")
  add("--seed", type=int, default=0, help="selects the records (0)")
  add("--vae_checkpoint", help="the VAE that made the latents, to decode them")
  add("--media_root", help="base of the records' uris, to show the source and measure PSNR")
  args = parser.parse_args(argv)
  if args.rows < 0:
    parser.error(f"--rows: got {args.rows}, expected 0 or more")
  try:
    page = inspect(
      args.path,
      args.output,
      rows=args.rows,
      seed=args.seed,
      vae_checkpoint=args.vae_checkpoint,
      media_root=args.media_root,
    )
  except (FileNotFoundError, ValueError) as error:
    print(f"inspect_data: {error}", file=sys.stderr)
    return 2
  print(f"{page}: {os.path.getsize(page) / 1e6:.1f} MB")
  return 0


if __name__ == "__main__":
  sys.exit(main())
