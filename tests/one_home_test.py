"""One concept has one home: a pattern that belongs to it is in one file of the product code."""

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOMES = {
  "PSNR": (r"-10 \* \w+\.log10", "walt_t5x/metrics/pixel_distances.py"),
  "floats to bytes of pixels": (r"clip\([^()]*, 0(?:\.0)?, 1(?:\.0)?\) \* 255", "walt_t5x/media/pixels.py"),
  "bytes of pixels to floats": (r"astype\([^()]*\) / 255", "walt_t5x/media/pixels.py"),
  "restricted unpickler": (r"pickle\.Unpickler\b", "walt_t5x/files/array_pickle.py"),
  "fingerprint of weights": (r"def weights_fingerprint\b", "walt_t5x/files/fingerprint.py"),
  "mismatch": (r"class \w*Mismatch\b", "walt_t5x/files/mismatch.py"),
  "class names in words": (r"\(\?<=\[a-z0-9\]\)\(\?=\[A-Z\]\)", "data/class_names.py"),
  "peaks of chips": (r"\b459e12\b", "walt_t5x/engine/chips.py"),
  "opening a video": (r"\bav\.open\((?![^()]*\"w\")[^()]*options", "walt_t5x/media/reading.py"),
  "opening a picture": (r"\bImage\.open\(", "walt_t5x/media/pictures.py"),
  "features of the batch": (r"\"text_mask\"\] = Feature", "data/batch_spec.py"),
  "a file written atomically": (r"\bos\.(?:replace|rename)\b", "walt_t5x/files/storage.py"),
  "a change of Orbax": (r"orbax\.checkpoint\._src", "walt_t5x/engine/orbax_s3.py"),
}  # fmt: skip
# Networks with public weights keep the names of their papers, and the surrogate's trainer that of flax.
SHARED = {"Dense", "RelativePositionBias", "Trainer"}


def _files():
  for package in ("walt_t5x", "data", "beam_jobs"):
    yield from (ROOT / package).rglob("*.py")


@pytest.mark.parametrize("concept", HOMES)
def test_a_concept_has_one_home(concept):
  pattern, home = HOMES[concept]
  found = {
    file.relative_to(ROOT).as_posix()
    for file in _files()
    if re.search(pattern, file.read_text(encoding="utf-8"))
  }
  assert found == {home}


def test_no_two_classes_have_one_name():
  files = defaultdict(set)
  for file in _files():
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
      if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
        files[node.name].add(file.relative_to(ROOT).as_posix())
  assert {name for name, places in files.items() if len(places) > 1} <= SHARED
