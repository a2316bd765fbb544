"""Addresses of files inside tar files, and the function that reads a row's media.

`shards/000.tar::dog.mp4@1536+20480` is the member `dog.mp4` of `shards/000.tar`: 20,480 bytes from byte 1,536. A worker
reads only these bytes of the tar file and the header block before them.
"""

import contextlib
import functools
import re
import tarfile
from typing import NamedTuple

from walt_t5x.files import storage

_MEMBER = re.compile(
  r"(?P<archive>.+\.tar)::(?P<name>.+)@(?P<offset>\d{1,18})\+(?P<size>\d{1,18})", re.DOTALL
)


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
    FileNotFoundError: if the file does not exist.
    storage.TooLarge: if it has more than `max_bytes`.
    StaleMember: if the tar file has no such member at that offset.
  """
  member = parse_member(path)
  if member is None:
    return storage.read(path, max_bytes=max_bytes)
  if max_bytes is not None and member.size > max_bytes:
    raise storage.TooLarge(f"{path} has more than {max_bytes} bytes")
  if not storage.exists(member.archive):
    raise FileNotFoundError(f"no file at {member.archive}")
  block = tarfile.BLOCKSIZE
  with storage.open_raw(member.archive) as stream:
    # A member's own header is the block before its bytes, even if extended headers come first.
    stream.seek(max(0, member.offset - block))
    content = stream.read(block + member.size)
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
  found: dict[int, tarfile.TarInfo] = {}
  with storage.open_raw(archive) as stream, contextlib.suppress(tarfile.TarError, EOFError):
    with tarfile.open(fileobj=stream, mode="r:") as tar:
      found |= {one.offset_data: one for one in tar if one.isfile()}
  return found
