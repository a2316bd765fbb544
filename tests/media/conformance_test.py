"""Cells of `benchmarks/media_conformance.py`: some videos against FFmpeg's command line, pictures against Pillow."""

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


@pytest.mark.skipif(conformance.FFMPEG is None, reason="needs the ffmpeg command")
@pytest.mark.parametrize("cell", _diagonal(), ids=lambda cell: cell.name)
def test_the_reader_shows_what_ffmpeg_shows(cell, tmp_path):
  try:
    path = conformance.encode(cell, tmp_path)
  except RuntimeError as error:
    pytest.skip(f"this FFmpeg cannot write it: {error}")
  assert conformance.difference(path, cell) == ""


@pytest.mark.parametrize("cell", picture_cells.cells(), ids=lambda cell: cell.name)
def test_the_reader_shows_what_pillow_shows(cell):
  assert picture_cells.difference(cell) == ""


def test_there_are_at_least_three_hundred_cells():
  assert len(CELLS) >= 300
