"""Shows prepared data: one self-contained HTML page about a cached task or one of its shards.

  python -m walt_t5x.inspect_data CACHE/shapes_videos --output=/tmp/shapes.html
  python -m walt_t5x.inspect_data CACHE/shapes_videos/train.tfrecord-00003-of-00064 --rows=48 \\
    --vae_checkpoint=runs/vae --media_root=/data --output=/tmp/shard3.html

The page shows thumbnails and clips of some examples with their captions, distributions, latent channels compared with
the statistics that training uses, and rejected rows and dead letters by reason. Pixel caches are shown directly.
Latents are decoded with the VAE checkpoint that made them; without it they are shown in false colors. Of a folder with
more shards than --max_shards, the seed selects that many, and the page says how many.
"""

import os
import sys
from collections.abc import Sequence

from walt_t5x.config import programs
from walt_t5x.config.waiting import waiting
from walt_t5x.files import storage
from walt_t5x.html.inspection import (
  draw_shards,
  find_shards,
  latent_decoder,
  read_ledgers,
  read_shards,
)


def inspect(
  path: str,
  output: str,
  *,
  rows: int = 24,
  max_shards: int = 16,
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
  from walt_t5x.html import data_page
  from walt_t5x.html.page import write_page

  folder, names = find_shards(path)
  read = draw_shards(folder, names, limit=max_shards, seed=seed)
  shards = read_shards(folder, read, rows=rows, seed=seed)
  finished = storage.exists(storage.join(folder, FILE_NAME))
  origin = read_provenance(folder) if finished else None
  totals = {}
  for split in sorted({name.partition(".tfrecord-")[0] for name in names}):
    stats = storage.join(folder, f"stats.{split}.json")
    totals |= {split: storage.read_json(stats)} if storage.exists(stats) else {}
  decoder, notes = None, []
  if vae_checkpoint:
    if origin is None or not origin.vae:
      raise ValueError(f"--vae_checkpoint: {folder} has no provenance.json that names a VAE")
    decoder = latent_decoder(vae_checkpoint, origin)
  elif any(record.latents for _, record in shards.sample):
    notes.append(
      "Latents in false colors: the three principal components of the examples shown. --vae_checkpoint decodes them."
    )
  notes.append(
    f"{len(shards.sample)} of {len(shards.columns['kilobytes']):,} records from {len(read):,} of "
    f"{len(names):,} shards, selected by seed {seed}. --rows, --max_shards and --seed select others."
  )
  alone = path.rpartition("/")[2] == names[0]
  title = f"{os.path.basename(folder)} / {names[0]}" if alone else os.path.basename(folder)
  write_page(
    output,
    "data",
    title=title,
    facts=data_page.page_facts(shards, origin, num_shards=len(names), totals=totals),
    ledgers=read_ledgers(folder, names),
    histograms=data_page.histograms(shards, origin),
    channels=data_page.channel_tables(shards, origin),
    cards=data_page.cards(shards, decoder=decoder, media_root=media_root, origin=origin),
    notes=notes,
  )
  return output


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the program; returns 2 for an error that the user can fix."""
  parser = programs.parser("walt_t5x.inspect_data", __doc__)
  add = parser.add_argument
  add("path", help="a cached task folder, or one of its shards (<split>.tfrecord-<i>-of-<n>)")
  add("--output", default="inspect.html", help="the page (inspect.html)")
  add("--rows", type=int, default=24, help="records to show (24)")
  add("--max_shards", type=int, default=16, help="shards to read (16)")
  add("--seed", type=int, default=0, help="selects the shards and records (0)")
  add("--vae_checkpoint", help="the VAE that made the latents, to decode them")
  add("--media_root", help="base of the records' uris, to show the source and measure PSNR")
  args = parser.parse_args(argv)
  if args.rows < 0 or args.max_shards < 1:
    parser.error(f"got {args.rows=}, {args.max_shards=}; expected 0 or more rows, 1 or more shards")
  try:
    with waiting("inspect_data", "reading records and media"):
      page = inspect(**vars(args))
  except (FileNotFoundError, ValueError) as error:
    print(f"inspect_data: {error}", file=sys.stderr)
    return 2
  print(f"{page}: {storage.size(page) / 1e6:.1f} MB")
  return 0


if __name__ == "__main__":
  sys.exit(main())
