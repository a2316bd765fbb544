"""Shows prepared data: one self-contained HTML page about a shard.

  python -m walt_t5x.inspect_data CACHE/shapes_videos --output=/tmp/shapes.html
  python -m walt_t5x.inspect_data CACHE/shapes_videos/train.tfrecord-00003-of-00064 --rows=48 \\
    --vae_checkpoint=runs/vae --media_root=/data --output=/tmp/shard3.html

The page shows thumbnails and clips of some examples with their captions, distributions over the shard, latent channels
compared with the statistics that training uses, and rejected rows and dead letters by reason. Pixel caches are shown
directly. Latents are decoded with the VAE checkpoint that made them; without it they are shown in false colors.
"""

import os
import sys
from collections.abc import Sequence

from walt_t5x.config import programs
from walt_t5x.config.waiting import waiting
from walt_t5x.html.inspection import (
  SHARD_NAME,
  find_shard,
  latent_decoder,
  read_ledgers,
  read_shard,
)


def inspect(
  path: str,
  output: str,
  *,
  rows: int = 24,
  seed: int = 0,
  vae_checkpoint: str | None = None,
  media_root: str | None = None,
) -> str:
  """Writes the page that the flags describe; returns its path.

  Raises:
    FileNotFoundError: the shard does not exist.
    ValueError: the VAE did not make the cache.
  """
  from data.provenance import FILE_NAME, read_provenance
  from walt_t5x.files import storage
  from walt_t5x.html import data_page
  from walt_t5x.html.page import write_page

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
    decoder = latent_decoder(vae_checkpoint, origin)
  elif any(record.latents for record in shard.sample):
    notes.append(
      "Latents in false colors: the three principal components of the examples shown. --vae_checkpoint decodes them."
    )
  notes.append(f"{len(shard.sample)} of {len(shard.columns['kilobytes'])} records, seed {seed}.")
  title = f"{os.path.basename(folder)} / {name}"
  write_page(
    output,
    "data",
    title=title,
    facts=data_page.page_facts(shard, origin, totals),
    ledgers=read_ledgers(folder, shards),
    histograms=data_page.histograms(shard, origin),
    channels=data_page.channel_tables(shard, origin),
    cards=data_page.cards(shard, decoder=decoder, media_root=media_root, origin=origin),
    notes=notes,
  )
  return output


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the program; returns 2 for an error that the user can fix."""
  parser = programs.parser("walt_t5x.inspect_data", __doc__)
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
    with waiting("inspect_data", "reading records and media"):
      page = inspect(**vars(args))
  except (FileNotFoundError, ValueError) as error:
    print(f"inspect_data: {error}", file=sys.stderr)
    return 2
  print(f"{page}: {os.path.getsize(page) / 1e6:.1f} MB")
  return 0


if __name__ == "__main__":
  sys.exit(main())
