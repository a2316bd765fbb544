"""Samples of webdataset shards: tar files in which the members of a sample share the name up to the first dot.

Only headers and small text members are read here; media are referenced by their address (`members`).
"""

import json
import os
import tarfile
from collections.abc import Iterator
from typing import Any

from beam_jobs.sources.columns import Columns, bad_row, to_line, to_row
from beam_jobs.sources.members import Member
from beam_jobs.sources.rows import IMAGE_EXTENSIONS, VIDEO_EXTENSIONS
from walt_t5x.files import storage

_CAPTIONS = (".txt", ".caption")
_MAX_TEXT = 1 << 22


class _Sample:
  """Members of one key."""

  def __init__(self, key: str):
    self.key = key
    self.media: list[Member] = []
    self.fields: dict[str, Any] = {}
    self.error = ""

  def add(self, member: tarfile.TarInfo, tar: tarfile.TarFile, path: str) -> None:
    """Adds one member."""
    extension = os.path.splitext(member.name)[1].lower()
    if extension in IMAGE_EXTENSIONS | VIDEO_EXTENSIONS:
      self.media.append(Member(path, member.name, member.offset_data, member.size))
    elif extension in (*_CAPTIONS, ".json", ".cls"):
      if member.size > _MAX_TEXT:
        self.error = f"{member.name} has {member.size} bytes, expected at most {_MAX_TEXT}"
        return
      content = tar.extractfile(member)
      assert content is not None, "only regular files are added"
      try:
        text = content.read().decode()
      except UnicodeDecodeError as error:
        self.error = f"{member.name} is not UTF-8 text ({error})"
        return
      self._note(extension, member.name, text)

  def _note(self, extension: str, name: str, text: str) -> None:
    if extension in _CAPTIONS:
      self.fields["caption"] = text.strip()
    elif extension == ".cls":
      self.fields["label"] = text.strip()
    else:
      try:
        fields = json.loads(text)
        if not isinstance(fields, dict):
          raise ValueError(f"got {type(fields).__name__}, expected an object")
        # Separate caption and class members take precedence.
        self.fields = fields | self.fields
      except ValueError as error:
        self.error = f"{name}: {error}"

  def lines(self, path: str, columns: Columns) -> Iterator[str]:
    """One manifest line per media member."""
    if self.error or not self.media:
      message = self.error or f"sample {self.key!r} has no member that is an image or a video"
      yield bad_row(f"{path}::{self.key}", message)
      return
    for member in self.media:
      fields = {name: value for name, value in self.fields.items() if name != "uri"}
      row = to_row(fields | {columns.column("uri"): str(member)}, columns)
      yield to_line(row)


def tar_lines(path: str, uri: str, columns: Columns) -> Iterator[str]:
  """Manifest lines of one shard.

  Args:
    path: path of the tar file.
    uri: name of the tar file in uris of rows.
    columns: mapping of the fields of JSON members.
  """
  sample: _Sample | None = None
  try:
    with storage.open_raw(path) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
      while member := tar.next():
        # The list of members would grow with the file; it is not public.
        tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
        if not member.isfile():
          continue
        folder, _, name = member.name.rpartition("/")
        key = f"{folder}/{name.partition('.')[0]}"
        if sample is None or sample.key != key:
          if sample:
            yield from sample.lines(uri, columns)
          sample = _Sample(key)
        sample.add(member, tar, uri)
  except (tarfile.TarError, EOFError) as error:
    if sample:
      yield from sample.lines(uri, columns)
    yield bad_row(
      uri, f"tar file: {error}; expected an uncompressed tar; complete samples before this are used"
    )
  else:
    if sample:
      yield from sample.lines(uri, columns)
