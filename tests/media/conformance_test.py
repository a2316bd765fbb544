"""Cells of `benchmarks/media_conformance.py`: some videos against FFmpeg's command line, pictures against Pillow."""

from pathlib import Path

import pytest

from tests.media import conformance, picture_cells

CELLS = conformance.cells()
# Words whose cells would only repeat others, or laws of other files.
COMMON = {
  "1",
  "59.94",
  "60",
  "90",
  "0",
  "none",
  "both",
  "second",
  "hevc",
  "interlaced",
  "deinterlaced",
}


def _diagonal():
  """Cells that have a word or a suffix with B-frames that no earlier one has: each codec, variant, format, matrix."""
  seen = COMMON | {
    word for cell in CELLS if "format: ffv1" in cell.name for word in cell.name.split()
  }
  for cell in CELLS:
    words = set(cell.name.split())
    words |= {cell.suffix + " B-frames"} if "3 B-frames" in cell.name else set()
    if not words <= seen:
      seen |= words
      yield cell


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  """Name of a cell -> its file, or the error of its command, and what FFmpeg shows of it."""
  cells, folder = [*_diagonal()], tmp_path_factory.mktemp("cells")
  try:
    paths = conformance.encode_together(cells, folder)
  except RuntimeError:  # It has not all encoders.
    paths = [_encoded(cell, tmp_path_factory.mktemp("cell")) for cell in cells]
  made = [(path, cell) for path, cell in zip(paths, cells, strict=True) if isinstance(path, Path)]
  alone = [(path, cell) for path, cell in made if conformance.several_tracks(cell)]
  together = [file for file in made if file not in alone and not file[1].rejected]
  shown = {}
  for group in (together, *([file] for file in alone)):
    names = [cell.name for _, cell in group]
    shown |= dict(zip(names, conformance.show_together(group), strict=True))
  return {c.name: (path, shown.get(c.name)) for c, path in zip(cells, paths, strict=True)}


def _encoded(cell, folder):
  try:
    return conformance.encode(cell, folder)
  except RuntimeError as error:
    return error


@pytest.mark.skipif(conformance.FFMPEG is None, reason="needs the ffmpeg command")
@pytest.mark.parametrize("cell", _diagonal(), ids=lambda cell: cell.name)
def test_the_reader_shows_what_ffmpeg_shows(cell, files):
  path, shown = files[cell.name]
  if isinstance(path, RuntimeError):
    pytest.skip(f"this FFmpeg cannot write it: {path}")
  assert conformance.difference(path, cell, shown) == ""


@pytest.mark.parametrize("cell", picture_cells.cells(), ids=lambda cell: cell.name)
def test_the_reader_shows_what_pillow_shows(cell):
  assert picture_cells.difference(cell) == ""


def test_there_are_at_least_three_hundred_cells():
  assert len(CELLS) >= 300
