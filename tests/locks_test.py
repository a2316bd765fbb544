"""The locks: a hash for every package, and one version of each package in all locks."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LOCKS = sorted(ROOT.glob("requirements*.lock"))


def _entries(lock):
  """(name, version, the rest of the entry) of each package."""
  text = lock.read_text(encoding="utf-8")
  return re.findall(r"^([a-z0-9.-]+)==(\S+)(.*(?:\n    .*)*)", text, re.MULTILINE)


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_every_package_is_pinned_and_has_a_hash(lock):
  entries = _entries(lock)
  starts = [line for line in lock.read_text().splitlines() if re.match(r"[^\s#]", line)]
  assert len(entries) == len(starts) > 0
  for name, _, rest in entries:
    assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", rest), name


def test_the_locks_agree_on_versions():
  versions = {}
  for lock in LOCKS:
    for name, version, rest in _entries(lock):
      marker = rest.split("\\")[0].split("--hash")[0].strip()
      # The CPU build of torch has another version.
      versions.setdefault((name, marker), set()).add(version.removesuffix("+cpu"))
  assert {key: found for key, found in versions.items() if len(found) > 1} == {}
