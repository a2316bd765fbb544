"""After a start that failed or was interrupted, the corrected command writes what it writes to a fresh folder.

These are the points of `benchmarks.failed_starts` that take little time; the others are in its table.
"""

import pytest

from benchmarks import failed_starts

POINTS = {point.name: point for point in failed_starts.POINTS if point.quick}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("starts")


@pytest.mark.parametrize("name", POINTS)
def test_the_corrected_command_writes_what_it_writes_to_a_fresh_folder(folder, name):
  _, differing = failed_starts.check(POINTS[name], folder)
  assert differing == []
