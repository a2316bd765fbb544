"""Class folders: `<class>/<file>` as in UCF-101, `<split>/<class>/<file>` as in ImageNet.

A split may also be flat, `val/<file>` as in Kaggle's ImageNet, with a table of its classes. Hidden files and folders
(`.ipynb_checkpoints`) are not read. The label is the index of the class in the sorted class names, or in the list of
class names; the caption is the class in words.
"""

import csv
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

from beam_jobs.sources.columns import Columns, bad_row, to_line, to_row
from beam_jobs.sources.rows import is_media
from walt_t5x.files import storage
from walt_t5x.media.containers import is_hidden

SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation"}


def class_folders(root: str) -> list[tuple[str, str]]:
  """(split folder or '', class folder) of every class below a root, sorted; the class folder of a flat split is ''.

  Raises:
    ValueError: if no class folder contains a media file, or one may not be read.
  """
  folders = _visible(root)
  found = {
    (split, name)
    for split in SPLITS.keys() & set(folders)
    for name in _with_media(storage.join(root, split), _visible(storage.join(root, split)))
  }
  direct = _with_media(root, folders)
  if found:
    found |= {(split, "") for split in direct & SPLITS.keys() - {split for split, _ in found}}
  else:
    found = {("", name) for name in direct}
  if not found:
    raise ValueError(
      f"{root} has no files in class folders; expected <class>/<file> or <split>/<class>/<file> with splits "
      f"{sorted(SPLITS)}"
    )
  return sorted(found)


def parts(root: str) -> list[tuple[str, str]]:
  """`class_folders`, and folders at their level and above, whose media become bad rows."""
  found = set(class_folders(root))
  splits = {split for split, _ in found}
  found |= {(split, name) for split in splits for name in _visible(storage.join(root, split))}
  for split in splits | {""}:
    if any(map(is_media, storage.names(storage.join(root, split)))):
      found.add((split, ""))
  return sorted(found)


def _visible(folder: str) -> list[str]:
  try:
    return [name for name in storage.folders(folder) if not is_hidden(name)]
  except PermissionError as error:
    raise _unreadable(folder) from error


def _with_media(root: str, folders: Sequence[str]) -> set[str]:
  """Folders that directly contain media files."""

  def has_media(folder: str) -> bool:
    try:
      return any(map(is_media, storage.names(storage.join(root, folder))))
    except PermissionError as error:
      raise _unreadable(storage.join(root, folder)) from error

  return {name for name, has in zip(folders, storage.for_each(has_media, folders)) if has}


def _unreadable(folder: str) -> ValueError:
  return ValueError(f"--manifest: no permission to read the folder {folder}; change it, or hide it")


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
  folder = storage.join(root, split, name)
  if name:
    for path in _nested(folder, tuple(map(os.path.realpath, (root, folder)))):
      uri = storage.join(split, name, path.removeprefix(folder + "/"))
      yield bad_row(uri, "got a file in a folder of a class, expected <class>/<file>")
  for file in storage.names(folder):
    if not is_media(file):
      skipped(storage.join(split, name, file))
    else:
      row = {"uri": storage.join(split, name, file), "split": SPLITS.get(split)}
      row["class"] = name or labels.get(os.path.splitext(file)[0])
      if row["class"] is None:
        message = "class: got none, expected a folder of its class or a row in --validation_labels"
        yield bad_row(row["uri"], message)
        continue
      if f"{name}/{file}" in validation_files:
        row["split"] = "validation"
      yield to_line(to_row(row, columns))


def _nested(folder: str, above: tuple[str, ...]) -> Iterator[str]:
  """Media files in the folders of a folder, at any depth; a link to a folder above is not followed."""
  for name in storage.folders(folder):
    below = storage.join(folder, name)
    real = os.path.realpath(below)
    if not is_hidden(name) and real not in above:
      yield from (storage.join(below, file) for file in storage.names(below) if is_media(file))
      yield from _nested(below, (*above, real))


def parse_labels(text: str) -> dict[str, str]:
  """File name without extension -> class: the first column of a CSV file, and the first word of the second."""
  rows = [row for row in csv.reader(text.splitlines()) if len(row) > 1 and row[1].split()]
  return {os.path.splitext(row[0])[0]: row[1].split()[0] for row in rows}


def parse_file_list(text: str) -> frozenset[str]:
  """First word of each line, as in UCF-101's testlist01.txt."""
  return frozenset(line.split()[0] for line in text.splitlines() if line.strip())
