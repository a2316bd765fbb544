"""A few cells of `benchmarks/media_conformance.py`: the reader shows what FFmpeg's command line shows."""

import pytest

from tests.media import conformance

CELLS = conformance.cells()


def _diagonal():
  """Cells that have a word or a suffix with B-frames that no earlier one has: each codec, variant, format, matrix."""
  seen = {"1", "59.94", "60", "90"}
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


def test_there_are_at_least_three_hundred_cells():
  assert len(CELLS) >= 300
