"""Addresses answer as `pathlib.Path` does for the same files."""

import pathlib
import uuid

import pytest

from walt_t5x.files import storage
from walt_t5x.files.paths import Address, as_path

FILES = {
  "a.json": b"{}",
  "b.tar.gz": b"12",
  "below/00001.json": b"[1]",
  "below/deep/c.txt": b"\xc3\xa9\n",
}


def _answers(root):
  """What a path says about the files below it and their names."""
  json = root / "a.json"
  below = root / "below"

  def names(found):
    return sorted(str(path.relative_to(root)) for path in found)

  return {
    "glob": names(root.glob("*.json")),
    "glob of numbers": names(below.glob("[0-9]*.json")),
    "rglob": names(file for file in root.rglob("*") if file.is_file()),
    "iterdir": names(root.iterdir()),
    "parents": [str(below.parent.relative_to(root.parent)), json.parent == root],
    "names": [json.name, json.stem, json.suffix, (root / "b.tar.gz").stem],
    "changed": names([json.with_name("z"), json.with_suffix(".html"), root / "b.tar.gz" / "x"]),
    "exists": [p.exists() for p in (root, json, below, root / "no", root / "below" / "no")],
    "is_file": [p.is_file() for p in (root, json, below, root / "no")],
    "is_dir": [p.is_dir() for p in (root, json, below, root / "no")],
    "content": [json.read_bytes(), (below / "deep" / "c.txt").read_text("utf-8")],
    "lines": [*(below / "deep" / "c.txt").open(encoding="utf-8")],
    "last part": root.absolute().parts[-1],
    "sorted": [path.name for path in sorted(below.glob("*.json")) + sorted([json, below])],
    "equal": [root / "a.json" == json, root == json, len({json, root / "a.json"})],
  }


def test_an_address_answers_as_a_path(tmp_path):
  roots = [as_path(tmp_path / "root"), as_path(f"memory://{uuid.uuid4().hex}/root/")]
  assert isinstance(roots[0], pathlib.Path) and isinstance(roots[1], Address)
  for root in roots:
    for name, content in FILES.items():
      storage.write(root / name, content)
  local, address = map(_answers, roots)
  assert address == local
  for root in roots:
    (root / "a.json").unlink()
    (root / "a.json").unlink(missing_ok=True)
    assert not (root / "a.json").exists()
    with pytest.raises(FileNotFoundError, match=r"a\.json"):
      (root / "a.json").read_bytes()


def test_an_address_is_not_opened_for_writing():
  with pytest.raises(ValueError, match=r"memory://b/a: got mode='w', expected 'r' or 'rb'"):
    as_path("memory://b/a").open("w")
