"""Addresses of files inside tar files, and the one read of a row's media.

`shards/000.tar::dog.mp4@1536+20480` is 20,480 bytes from byte 1,536 of `shards/000.tar`, the member `dog.mp4`. A worker
reads these bytes and the header block before them, nothing else of the tar file.
"""

import re
import tarfile
from typing import NamedTuple

from walt_t5x.files import storage

_MEMBER = re.compile(
  r"(?P<archive>.+\.tar)::(?P<name>.+)@(?P<offset>\d+)\+(?P<size>\d+)", re.DOTALL
)


class StaleMember(ValueError):
  """An address whose tar file holds something else at that place."""


class Member(NamedTuple):
  """A file inside a tar file; `offset` is that of its first byte."""

  archive: str
  name: str
  offset: int
  size: int

  def __str__(self) -> str:
    return f"{self.archive}::{self.name}@{self.offset}+{self.size}"


def parse_member(path: str) -> Member | None:
  """The member that a path addresses; None for a path of a plain file."""
  match = _MEMBER.fullmatch(path)
  if not match:
    return None
  return Member(match["archive"], match["name"], int(match["offset"]), int(match["size"]))


def file_name(path: str) -> str:
  """Path without the place of a member, so that it ends in the media's own extension."""
  member = parse_member(path)
  return f"{member.archive}::{member.name}" if member else path


def read_media(path: str, *, max_bytes: int | None = None) -> bytes:
  """Content of a file, or of a member of a tar file.

  Raises:
    FileNotFoundError: where there is no such file.
    storage.TooLarge: where it has more than `max_bytes`.
    StaleMember: where the tar file has no such member at that place.
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
    # A member's own header is the block before its bytes, whatever extended headers come first.
    stream.seek(max(0, member.offset - block))
    content = stream.read(block + member.size)
  try:
    header = tarfile.TarInfo.frombuf(content[:block], "utf-8", "surrogateescape")
  except tarfile.HeaderError as error:
    raise StaleMember(f"{path}: no tar header before byte {member.offset} ({error})") from error
  # A plain header cuts long names off and cannot state more than 8 GiB.
  if not member.name.startswith(header.name) or header.size not in (member.size, 0):
    raise StaleMember(
      f"{path}: the tar file has {header.name!r} of {header.size} bytes there; list it again"
    )
  if len(content) != block + member.size:
    raise StaleMember(f"{path}: the tar file ends {block + member.size - len(content)} bytes early")
  return content[block:]
