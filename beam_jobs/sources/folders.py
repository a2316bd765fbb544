"""Class folders: `<class>/<file>` as in UCF-101, `<split>/<class>/<file>` as in ImageNet.

The label is the index of the class in the sorted class names, or in the list of class names; the caption is the class
in words.
"""

import os
from collections.abc import Iterator

from beam_jobs.sources.columns import Columns, to_line, to_row
from beam_jobs.sources.rows import is_media
from walt_t5x.files import storage

SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation"}


def class_folders(root: str) -> list[tuple[str, str]]:
  """(split folder or '', class folder) of every class below a root, sorted.

  Raises:
    ValueError: if no class folder contains a media file.
  """
  pairs = {os.path.split(folder) for folder in _folders(root, "*/*/*")}
  found = {(split, name) for split, name in pairs if split in SPLITS}
  found = found or {("", name) for name in _folders(root, "*/*")}
  if not found:
    raise ValueError(
      f"{root} has no files in class folders; expected <class>/<file> or <split>/<class>/<file> with splits "
      f"{sorted(SPLITS)}"
    )
  return sorted(found)


def _folders(root: str, pattern: str) -> set[str]:
  base = root.rstrip("/") + "/"
  return {
    os.path.dirname(path.removeprefix(base))
    for path in storage.match(storage.join(root, *pattern.split("/")))
    if is_media(path)
  }


def folder_lines(
  root: str, split: str, name: str, columns: Columns, validation_files: frozenset[str]
) -> Iterator[str]:
  """Manifest lines of one class folder.

  `split` is its split folder or '', `columns` has the class names, and `validation_files` are paths `<class>/<file>`.
  """
  for file in storage.names(storage.join(root, split, name)):
    if is_media(file):
      row = {"uri": storage.join(split, name, file), "class": name, "split": SPLITS.get(split)}
      if f"{name}/{file}" in validation_files:
        row["split"] = "validation"
      yield to_line(to_row(row, columns))


def parse_file_list(text: str) -> frozenset[str]:
  """First word of each line, as in UCF-101's testlist01.txt."""
  return frozenset(line.split()[0] for line in text.splitlines() if line.strip())
