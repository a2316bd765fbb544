"""Addresses of files inside tar files, and the function that reads a row's media.

`shards/000.tar::dog.mp4@1536+20480` is the member `dog.mp4` of `shards/000.tar`: 20,480 bytes from byte 1,536. A worker
reads only these bytes of the tar file and the header block before them.
"""

import dataclasses
import functools
import os
import re
import tarfile
import urllib.parse
from collections.abc import Iterator
from typing import NamedTuple

from walt_t5x.files import storage

_MEMBER = re.compile(
  r"(?P<archive>.+?\.(?i:tar))::(?P<name>.+)@(?P<offset>\d{1,18})\+(?P<size>\d{1,18})", re.DOTALL
)
# Headers may be far apart, so that more bytes would be read for nothing.
_CHUNK = 1 << 20


class StaleMember(ValueError):
  """An address whose tar file has other contents at that offset."""


class Member(NamedTuple):
  """A file inside a tar file; `offset` is that of its first byte."""

  archive: str
  name: str
  offset: int
  size: int

  def __str__(self) -> str:
    return f"{self.archive}::{self.name}@{self.offset}+{self.size}"


def parse_member(path: str) -> Member | None:
  """The member that a path addresses; None for the path of a plain file."""
  match = _MEMBER.fullmatch(path)
  if not match:
    return None
  return Member(match["archive"], match["name"], int(match["offset"]), int(match["size"]))


def file_name(path: str) -> str:
  """Path without the offset of a member, so that it ends with the extension of the media."""
  member = parse_member(path)
  return f"{member.archive}::{member.name}" if member else path


def read_media(path: str, *, max_bytes: int | None = None) -> bytes:
  """Content of a file, or of a member of a tar file.

  Raises:
    FileNotFoundError: if the file does not exist; it names another spelling that does.
    OSError: if it cannot be read, or is a pipe, a socket or a device.
    storage.TooLarge: if it has more than `max_bytes`.
    StaleMember: if the tar file has no such member at that offset.
  """
  member = parse_member(path)
  storage.reject_special(member.archive if member else path)
  if member is None:
    try:
      return storage.read(path, max_bytes=max_bytes)
    except FileNotFoundError as error:
      raise FileNotFoundError(f"{error}{_other_spelling(path)}") from error
  if max_bytes is not None and member.size > max_bytes:
    raise storage.TooLarge(f"{path} has more than {max_bytes} bytes")
  block = tarfile.BLOCKSIZE
  # A member's own header is the block before its bytes, even if extended headers come first.
  begin, end = max(0, member.offset - block), member.offset + member.size
  try:
    content = storage.read_range(member.archive, begin, end)
  except FileNotFoundError as error:
    raise FileNotFoundError(f"no file at {member.archive}") from error
  try:
    header = tarfile.TarInfo.frombuf(content[:block], "utf-8", "surrogateescape")
  except tarfile.HeaderError:
    header = None
  # A plain header truncates long names and cannot state sizes above 8 GiB.
  if not header or not member.name.startswith(header.name) or header.size not in (member.size, 0):
    return _listed_member(member)
  if len(content) != block + member.size:
    raise StaleMember(f"{path}: the tar file ends {block + member.size - len(content)} bytes early")
  return content[block:]


def media_source(path: str) -> str | bytes:
  """What a reader of media opens: the path of a plain file, or the content of a member; raises as `read_media`."""
  if parse_member(path):
    return read_media(path)
  storage.reject_special(path)
  return path


def _listed_member(member: Member) -> bytes:
  """Reads a member whose name or map of holes is in extended headers: PAX names other than ASCII, sparse files."""
  listed = _listed(member.archive).get(member.offset)
  if listed is None or (listed.name, listed.size) != (member.name, member.size):
    found = f"{listed.name!r} of {listed.size} bytes" if listed else "no member"
    raise StaleMember(f"{member}: the tar file has {found} there; list it again")
  with storage.open_raw(member.archive) as stream, tarfile.open(fileobj=stream, mode="r:") as tar:
    file = tar.extractfile(listed)
    content = file.read() if file else b""
  if len(content) != member.size:
    raise StaleMember(f"{member}: the tar file ends {member.size - len(content)} bytes early")
  return content


@functools.lru_cache(maxsize=4)
def _listed(archive: str) -> dict[int, tarfile.TarInfo]:
  """Every file of a tar by the offset of its bytes, up to a damage."""
  return {one.offset_data: one for _, one in tar_members(archive, Damage()) if one.isfile()}


@dataclasses.dataclass
class Damage:
  """What is wrong with a tar file, in words: `within` ends its members, `after` follows their end marker."""

  within: str = ""
  after: str = ""


def tar_members(archive: str, damage: Damage) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
  """Members of a tar, each with the open file to read it from; `damage` states why they end early.

  `tarfile` itself ends silently at a broken header, without an end marker, and before files that were concatenated.
  """
  with storage.open_raw(archive, ahead=_CHUNK) as stream:
    end, length = 0, stream.seek(0, os.SEEK_END)
    stream.seek(0)
    try:
      with tarfile.open(fileobj=stream, mode="r:") as tar:
        while member := tar.next():
          # The list of members would grow with the file; it is not public.
          tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]
          # A negative size would lead back to an earlier header.
          if member.size < 0 or tar.offset <= end:
            raise tarfile.ReadError(f"{member.name!r} has a size of {member.size} bytes")
          end = tar.offset
          yield tar, member
          if end > length:
            raise tarfile.ReadError(f"{member.name!r} ends at byte {end}, the file at {length}")
        end = tar.offset
    except OSError:
      raise  # Of the file system; the runner tries again.
    except Exception as error:  # `tarfile` raises different errors for headers that are damaged.
      damage.within = str(error) or type(error).__name__
      return
    stream.seek(end)
    block = stream.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
      damage.within = f"it ends at byte {end + len(block)} without an end marker"
    elif any(block):
      damage.within = f"the header at byte {end} is broken"
    while not damage.within and (chunk := stream.read(_CHUNK)):
      if any(chunk):
        damage.after = f"bytes follow its end marker at byte {end}, as in concatenated files"
        return


def _other_spelling(path: str) -> str:
  """What to change in a path without a file, if its name may be spelt in another way."""
  if "\\" in path:
    return "; a backslash is a character of a name here, expected / between folders"
  decoded = urllib.parse.unquote(path)
  if decoded != path and storage.is_local(path) and storage.exists(decoded):
    return f"; there is {decoded}, expected names that are not URL-encoded"
  return ""
