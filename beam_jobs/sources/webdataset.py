"""Samples of webdataset shards: tar files in which the members of a sample share the name up to the first dot.

Only headers and small text members are read here; media are referenced by their address (`members`).
"""

import itertools
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from beam_jobs.sources.columns import Columns, bad_row, to_line, to_row
from beam_jobs.sources.members import Member
from beam_jobs.sources.rows import is_media, load_json
from walt_t5x.files import storage
from walt_t5x.media.containers import is_hidden

_TEXTS = {".txt": "caption", ".caption": "caption", ".cls": "label", ".json": ""}
_MAX_TEXT = 1 << 22


def tar_lines(
  path: str,
  uri: str,
  columns: Columns,
  *,
  skipped: Callable[[str], None] = lambda name: None,
) -> Iterator[str]:
  """Manifest lines of one shard; `uri` names the tar file in them, `columns` maps the fields of JSON members.

  `skipped` is called with members that are neither media nor texts, or hidden.
  """
  damage: list[Exception] = []
  seen: set[str] = set()
  for key, sample in itertools.groupby(_members(path, damage, skipped), key=_key):
    if key in seen:
      yield bad_row(
        f"{uri}::{key}",
        f"members of a sample are not adjacent; write {[m.name for m, _ in sample]} directly after the others",
      )
    else:
      seen.add(key)
      yield from _lines(key, sample, uri, columns)
  for error in damage:
    yield bad_row(
      uri, f"tar file: {error}; expected an uncompressed tar; complete samples before this are used"
    )


def _members(
  path: str, damage: list[Exception], skipped: Callable[[str], None]
) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
  """Files of a tar that are not hidden, with the content of texts; a damage ends them and is added to the list."""
  try:
    with storage.open_raw(path) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
      while member := tar.next():
        # The list of members would grow with the file; it is not public.
        tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
        if not member.isfile():
          continue
        hidden, known = is_hidden(member.name), _extension(member) in _TEXTS
        if hidden or not (known or is_media(member.name)):
          skipped(f"{path}::{member.name}")
        if not hidden:
          is_text = known and member.size <= _MAX_TEXT
          content = tar.extractfile(member) if is_text else None
          yield member, content.read() if content else b""
  except (tarfile.TarError, EOFError) as error:
    damage.append(error)


def _extension(member: tarfile.TarInfo) -> str:
  return os.path.splitext(member.name)[1].lower()


def _key(member: tuple[tarfile.TarInfo, bytes]) -> str:
  folder, _, name = member[0].name.rpartition("/")
  return f"{folder}/{name.partition('.')[0]}"


def _lines(
  key: str, sample: Iterable[tuple[tarfile.TarInfo, bytes]], uri: str, columns: Columns
) -> Iterator[str]:
  """One manifest line per media member of a sample."""
  media: list[Member] = []
  # Separate caption and class members take precedence over JSON.
  described: dict[str, Any] = {}
  stated: dict[str, Any] = {}
  error = ""
  for member, content in sample:
    field = _TEXTS.get(_extension(member))
    if is_media(member.name):
      media.append(Member(uri, member.name, member.offset_data, member.size))
    elif field is not None and member.size > _MAX_TEXT:
      error = f"{member.name} has {member.size} bytes, expected at most {_MAX_TEXT}"
    elif field is not None:
      try:
        text = content.decode()
        if field:
          stated[field] = text.strip()
        elif isinstance(fields := load_json(text), dict):
          described = fields | described
        else:
          error = f"{member.name}: got {type(fields).__name__}, expected an object"
      except UnicodeDecodeError as problem:
        error = f"{member.name} is not UTF-8 text ({problem})"
      except ValueError as problem:
        error = f"{member.name}: {problem}"
  # `a.mask.png` next to `a.mp4` is another kind of data.
  media = [one for one in media if os.path.basename(one.name).count(".") == 1] or media
  names = [one.name for one in media]
  if twice := sorted({name for name in names if names.count(name) > 1}):
    error = error or f"{twice[0]} is in the tar file twice"
  if not media:
    error = error or f"sample {key!r} has no member that is an image or a video"
  if error:
    yield bad_row(f"{uri}::{key}", error)
    return
  for member in media:
    fields = {name: value for name, value in (described | stated).items() if name != "uri"}
    yield to_line(to_row(fields | {columns.by_field["uri"]: str(member)}, columns))
