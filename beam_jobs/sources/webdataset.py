"""Samples of webdataset shards: tar files in which the members of a sample share the name up to the first dot.

Only headers and small text members are read here; media are referenced by their address (`members`).
"""

import itertools
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from beam_jobs.sources.columns import Columns, bad_row, to_line, to_row
from beam_jobs.sources.members import Damage, Member, tar_members
from beam_jobs.sources.rows import is_media, json_kind, load_json
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

  A damage is a bad row, and so is the sample that it interrupts; samples before it are read. `skipped` is called with
  members that are neither media nor texts, or hidden.
  """
  if not uri.lower().endswith(".tar"):
    yield bad_row(uri, "got another extension, expected an uncompressed tar file named *.tar")
    return
  damage = Damage()
  seen: set[str] = set()
  for key, sample in itertools.groupby(_members(path, damage, skipped), key=_key):
    if key in seen:
      yield bad_row(
        f"{uri}::{key}",
        f"members of a sample are not adjacent; write {[m.name for m, _ in sample]} directly after the others",
      )
    else:
      seen.add(key)
      yield from _lines(key, sample, uri, columns, damage)
  for error in filter(None, (damage.within, damage.after)):
    yield bad_row(
      uri,
      f"tar file: {error}; expected a complete, uncompressed tar; complete samples before this are used",
    )


def _members(
  path: str, damage: Damage, skipped: Callable[[str], None]
) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
  """Members that are neither folders nor hidden, with the content of texts; a damage ends them."""
  for tar, member in tar_members(path, damage):
    if member.isdir():
      continue
    hidden, known = is_hidden(member.name), _extension(member) in _TEXTS
    if hidden or not (known or is_media(member.name)):
      skipped(f"{path}::{member.name}")
    if not hidden:
      content = b""
      if member.isfile() and known and member.size <= _MAX_TEXT:
        try:
          file = tar.extractfile(member)
          content = file.read() if file else b""
        except (tarfile.TarError, ValueError, IndexError) as error:
          damage.within = f"{member.name!r} cannot be read ({error})"
      yield member, content
      if damage.within:
        return


def _extension(member: tarfile.TarInfo) -> str:
  return os.path.splitext(member.name)[1].lower()


def _key(member: tuple[tarfile.TarInfo, bytes]) -> str:
  folder, _, name = member[0].name.rpartition("/")
  return f"{folder}/{name.partition('.')[0]}"


def _lines(
  key: str,
  sample: Iterable[tuple[tarfile.TarInfo, bytes]],
  uri: str,
  columns: Columns,
  damage: Damage,
) -> Iterator[str]:
  """One manifest line per media member of a sample."""
  media: list[Member] = []
  # Separate caption and class members take precedence over JSON.
  described: dict[str, Any] = {}
  stated: dict[str, Any] = {}
  error = ""
  for member, content in sample:
    field = _TEXTS.get(_extension(member))
    if (is_media(member.name) or field is not None) and not member.isfile():
      error = f"{member.name} is a link or a device, expected a file (tar --dereference)"
    elif is_media(member.name):
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
          error = f"{member.name}: got one JSON {json_kind(fields)}, expected one object of fields"
      except UnicodeDecodeError as problem:
        error = f"{member.name} is not UTF-8 text ({problem})"
      except ValueError as problem:
        error = f"{member.name}: {problem}"
  # `a.mask.png` next to `a.mp4` is another kind of data.
  media = [one for one in media if os.path.basename(one.name).count(".") == 1] or media
  names = [one.name for one in media]
  if twice := sorted({name for name in names if names.count(name) > 1}):
    error = error or f"{twice[0]} is in the tar file twice"
  if damage.within:
    error = (
      error or f"the tar file is damaged here, so that members may be missing ({damage.within})"
    )
  if not media:
    error = error or f"sample {key!r} has no member that is an image or a video"
  if error:
    yield bad_row(f"{uri}::{key}", error)
    return
  for member in media:
    fields = {name: value for name, value in (described | stated).items() if name != "uri"}
    yield to_line(to_row(fields | {columns.by_field["uri"]: str(member)}, columns))
