"""Class folders: `<class>/<file>` as in UCF-101, `<split>/<class>/<file>` as in ImageNet.

A split may also be flat, `val/<file>` as in Kaggle's ImageNet, with a table of its classes. Hidden files and folders
(`.ipynb_checkpoints`) are not read. The label is the index of the class in the sorted class names, or in the list of
class names; the caption is the class in words.
"""

import csv
import os
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

from beam_jobs.sources.columns import Columns, bad_row, to_line, to_row
from beam_jobs.sources.rows import is_media
from walt_t5x.files import storage
from walt_t5x.media.containers import is_hidden

SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation"}


def class_folders(root: str) -> list[tuple[str, str]]:
  """(split folder or '', class folder) of every class below a root, sorted; the class folder of a flat split is ''.

  Raises:
    ValueError: if no class folder contains a media file.
  """
  pairs = {os.path.split(folder) for folder in _folders(root, "*/*/*")}
  found = {(split, name) for split, name in pairs if split in SPLITS}
  below = _folders(root, "*/*")
  if found:
    found |= {(split, "") for split in below & SPLITS.keys() - {split for split, _ in found}}
  else:
    found = {("", name) for name in below}
  if not found:
    raise ValueError(
      f"{root} has no files in class folders; expected <class>/<file> or <split>/<class>/<file> with splits "
      f"{sorted(SPLITS)}"
    )
  return sorted(found)


def _folders(root: str, pattern: str) -> set[str]:
  base = root.rstrip("/") + "/"
  matched = storage.match(storage.join(root, *pattern.split("/")))
  files = (path.removeprefix(base) for path in matched)
  return {os.path.dirname(file) for file in files if is_media(file) and not is_hidden(file)}


def folder_lines(
  root: str,
  split: str,
  name: str,
  columns: Columns,
  *,
  validation_files: frozenset[str] = frozenset(),
  labels: Mapping[str, str] = MappingProxyType({}),
  skipped: Callable[[str], None] = lambda name: None,
) -> Iterator[str]:
  """Manifest lines of one class folder, or of a flat split (`class_folders`).

  `columns` has the class names, `validation_files` are paths `<class>/<file>`, and `labels` has the class of each file
  of a flat split, by the name without its extension. `skipped` is called with files that are not media.
  """
  for file in storage.names(storage.join(root, split, name)):
    if not is_media(file):
      skipped(storage.join(split, name, file))
    else:
      row = {"uri": storage.join(split, name, file), "split": SPLITS.get(split)}
      row["class"] = name or labels.get(os.path.splitext(file)[0])
      if row["class"] is None:
        yield bad_row(row["uri"], "class: got none, expected a row in --validation_labels")
        continue
      if f"{name}/{file}" in validation_files:
        row["split"] = "validation"
      yield to_line(to_row(row, columns))


def parse_labels(text: str) -> dict[str, str]:
  """File name without extension -> class: the first column of a CSV file, and the first word of the second."""
  rows = [row for row in csv.reader(text.splitlines()) if len(row) > 1 and row[1].split()]
  return {os.path.splitext(row[0])[0]: row[1].split()[0] for row in rows}


def parse_file_list(text: str) -> frozenset[str]:
  """First word of each line, as in UCF-101's testlist01.txt."""
  return frozenset(line.split()[0] for line in text.splitlines() if line.strip())
