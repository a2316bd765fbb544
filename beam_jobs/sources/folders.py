"""Folders of media: `<file>`, `<class>/<file>` as in UCF-101, `<split>/<class>/<file>` as in ImageNet.

A split may also be flat, `val/<file>`, and next to one with classes, as in Kaggle's ImageNet, it has a table of them.
Hidden files and folders (`.ipynb_checkpoints`) are not read. The label is the index of the class in the sorted class
names, or in the list of class names. The caption is the text of `NAME.txt` next to `NAME.mp4`, else the class in words.
"""

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from beam_jobs.sources.columns import Columns, bad_row, to_line, to_row
from beam_jobs.sources.rows import is_media
from walt_t5x.files import storage
from walt_t5x.media.containers import is_hidden

SPLITS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation"}
_CAPTION = ".txt"
_MAX_CAPTION = 1 << 22
# Captions that are read at once.
_BLOCK = 256


def class_folders(root: str) -> list[tuple[str, str]]:
  """(split folder or '', class folder) of every class below a root, sorted; the class folder of a flat split is ''.

  A root without such folders is flat: ('', '').

  Raises:
    ValueError: if none of them contains a media file, or one may not be read.
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
  elif direct and direct <= SPLITS.keys() | {"test"} and direct != {"test"}:
    found = {(split, "") for split in direct & SPLITS.keys()}
  else:
    found = {("", name) for name in direct}
  if not found and any(map(is_media, storage.names(root))):
    found = {("", "")}
  if not found:
    raise ValueError(
      f"--manifest: {root} has no image or video where one is expected: <file>, <class>/<file>, or "
      f"<split>/<class>/<file> with splits {sorted(SPLITS)}"
    )
  return sorted(found)


def class_names(root: str) -> list[str]:
  """Names of the class folders below a root, in the order of the labels."""
  return sorted({name for _, name in class_folders(root) if name})


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
) -> Iterator[str]:
  """Manifest lines of one class folder, or of a flat split (`class_folders`).

  `columns` has the class names, `validation_files` are paths `<class>/<file>`, and `labels` has the class of each file
  of a flat split, by the name without its extension.
  """
  folder = storage.join(root, split, name)
  if name:
    for path in _nested(folder, tuple(map(os.path.realpath, (root, folder)))):
      uri = storage.join(split, name, path.removeprefix(folder + "/"))
      yield bad_row(uri, "got a file in a folder of a class, expected <class>/<file>")
  media, captions, _ = _sorted_out(storage.names(folder))

  def line(file: str) -> str:
    stem = os.path.splitext(file)[0]
    row = {"uri": storage.join(split, name, file), "split": SPLITS.get(split)}
    row["class"] = name or labels.get(stem)
    if row["class"] is None and columns.class_names:
      message = "class: got none, expected a folder of its class or a row in --validation_labels"
      return bad_row(row["uri"], message)
    if storage.join(name, file) in validation_files:
      row["split"] = "validation"
    if stem in captions:
      try:
        row["caption"] = _caption(storage.join(folder, stem + _CAPTION))
      except (UnicodeDecodeError, storage.TooLarge, FileNotFoundError) as error:
        return bad_row(row["uri"], f"{stem}{_CAPTION}: {error}; expected its caption in UTF-8")
    return to_line(to_row(row, columns))

  for start in range(0, len(media), _BLOCK):
    yield from storage.for_each(line, media[start : start + _BLOCK])


def other_names(root: str) -> Iterator[str]:
  """Files and folders at the level of the media and above of which no row is made, hidden ones too."""
  found = parts(root)
  splits = {split for split, _ in found}
  if "" not in splits:
    yield from (name for name in _visible(root) if name not in splits)
  for folder in sorted({"", *splits}):
    hidden = filter(is_hidden, storage.folders(storage.join(root, folder)))
    yield from (storage.join(folder, name) for name in hidden)
  for folder in sorted({"", *splits, *(f"{split}/{name}".strip("/") for split, name in found)}):
    names = _sorted_out(storage.names(storage.join(root, folder)))[2]
    yield from (storage.join(folder, name) for name in names)


def _sorted_out(names: Sequence[str]) -> tuple[list[str], set[str], list[str]]:
  """The media among the files of a folder, names without extension that have a caption, and the other files."""
  media = [name for name in names if is_media(name)]
  stems = {os.path.splitext(name)[0] for name in media}
  captions = {stem + _CAPTION for stem in stems} & set(names)
  others = [name for name in names if not is_media(name) and name not in captions]
  return media, {name.removesuffix(_CAPTION) for name in captions}, others


def _caption(path: str) -> str:
  return storage.read(path, max_bytes=_MAX_CAPTION).decode("utf-8-sig").strip()


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
