"""Addresses of files inside tar files, and the function that reads a row's media.

`shards/000.tar::dog.mp4@1536+20480` is the member `dog.mp4` of `shards/000.tar`: 20,480 bytes from byte 1,536. A worker
reads only these bytes of the tar file and the header block before them.
"""

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
  except tarfile.HeaderError as error:
    raise StaleMember(f"{path}: no tar header before byte {member.offset} ({error})") from error
  # A plain header truncates long names and cannot state sizes above 8 GiB.
  if not member.name.startswith(header.name) or header.size not in (member.size, 0):
    raise StaleMember(
      f"{path}: the tar file has {header.name!r} of {header.size} bytes there; list it again"
    )
  if len(content) != block + member.size:
    raise StaleMember(f"{path}: the tar file ends {block + member.size - len(content)} bytes early")
  return content[block:]
