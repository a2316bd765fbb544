"""Every cell of `tests/media/{conformance,picture_cells}.py`: the reader against FFmpeg's command line and Pillow.

  python -m benchmarks.media_conformance      # 3 minutes on 2 cores; writes benchmarks/media_conformance.{md,json}

Needs the `ffmpeg` command with its usual encoders. A video is right if the number of frames, their size, their times
and their pixels are (2 of 255 on average per frame), a picture if each pixel is (1 of 255); what cannot be read right
is rejected with the reason that the cell expects. A file that this FFmpeg cannot write is listed as not made. The
command fails if a cell is wrong.
"""

import argparse
import collections
import os
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import PIL

from benchmarks import results
from tests.media import conformance, picture_cells

HERE = Path(__file__).resolve().parent


def measure(cell: conformance.Cell | picture_cells.PictureCell) -> dict[str, str]:
  """The outcome of a cell."""
  if isinstance(cell, picture_cells.PictureCell):
    why = picture_cells.difference(cell)
  else:
    with tempfile.TemporaryDirectory() as folder:
      try:
        path = conformance.encode(cell, Path(folder))
      except RuntimeError as error:
        return {"cell": cell.name, "outcome": "not made", "why": str(error).splitlines()[-1]}
      why = conformance.difference(path, cell)
  if why:
    return {"cell": cell.name, "outcome": "wrong", "why": why}
  return {
    "cell": cell.name,
    "outcome": "rejected" if cell.rejected else "right",
    "why": cell.rejected,
  }


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--only", default="", help="cells whose names contain this")
  args = parser.parse_args()
  if conformance.FFMPEG is None:
    sys.exit(
      "media_conformance: no `ffmpeg` command on PATH; install it (Debian: apt-get install ffmpeg)"
    )
  every = [*conformance.cells(), *picture_cells.cells()]
  cells = [cell for cell in every if args.only in cell.name]
  found = []
  with ThreadPoolExecutor(os.cpu_count()) as pool:
    for outcome in pool.map(measure, cells):
      found.append(outcome)
      if sys.stderr.isatty() or len(found) == len(cells):
        print(f"\r{len(found)}/{len(cells)} cells", end="", file=sys.stderr, flush=True)
  print(file=sys.stderr)
  version = conformance.ffmpeg("-version").decode().splitlines()[0].split(" Copyright")[0]
  counts = collections.Counter(outcome["outcome"] for outcome in found)
  page = _page(found, counts, version)
  if args.only:
    print(page)
  else:
    results.write(HERE, "media_conformance", page, {"ffmpeg": version, "cells": found})
  sys.exit(1 if counts["wrong"] else 0)


def _page(found: list[dict[str, str]], counts: collections.Counter[str], version: str) -> str:
  lines = [
    "# Media: the reader against FFmpeg's command line and Pillow",
    "",
    "`python -m benchmarks.media_conformance` writes this page. Cells of videos: container x codec x B-frames x odd "
    "size, variable rate, late start; format x matrix x range, up to 16 bits; HDR; pixel aspect, display matrices, "
    "crop rectangles of the stream; edit lists, negative and wrapped times; the default of two tracks; rates; "
    "interlaced and deinterlaced; alpha, over white. Cells of pictures: format x mode; orientation; animations.",
    "",
    f"PyAV {av.__version__}, {version}, Pillow {PIL.__version__}.",
    "",
    "| outcome | cells |",
    "| --- | --- |",
    *(
      f"| {outcome} | {counts[outcome]} |" for outcome in ("right", "rejected", "wrong", "not made")
    ),
  ]
  rest = [outcome for outcome in found if outcome["outcome"] != "right"]
  if rest:
    lines += ["", "| cell | outcome | why |", "| --- | --- | --- |"]
    lines += [f"| {o['cell']} | {o['outcome']} | {o['why']} |" for o in rest]
  return "\n".join(lines) + "\n"


if __name__ == "__main__":
  main()
