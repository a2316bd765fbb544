"""Files on any file system Beam knows: whole reads with a limit, writes that appear complete or not at all."""

import contextlib
import errno
import glob
import gzip
import io
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, TextIO, TypeVar

_Item, _Result = TypeVar("_Item"), TypeVar("_Result")
TEMPORARY = ".tmp-"
# A small file of an object store takes some 50 ms, nearly all of it waiting.
_AT_ONCE = 32
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


class TooLarge(ValueError):
  """A file over the limit of the read."""


class CannotWrite(OSError):
  """A full disk, a quota, a folder that only others may write: nothing that a row has to do with."""


def is_local(path: str) -> bool:
  """Whether a path is one of this machine's file system."""
  return "://" not in path


def join(folder: str, *names: str) -> str:
  """Path of a file in a folder."""
  from apache_beam.io.filesystems import FileSystems

  return FileSystems.join(folder, *names)


def parent(path: str) -> str:
  """Folder that holds a path; '.' for a bare name."""
  head, separator, _ = path.rpartition("/")
  return head or ("/" if separator else ".")


def exists(path: str) -> bool:
  """Whether a file is there."""
  from apache_beam.io.filesystems import FileSystems

  return FileSystems.exists(path)


def size(path: str) -> int:
  """Bytes of a file."""
  from apache_beam.io.filesystems import FileSystems

  return FileSystems.get_filesystem(path).size(path)


def names(folder: str) -> list[str]:
  """Sorted names of the files right in a folder; none where there is no folder."""
  from apache_beam.io.filesystems import FileSystems

  if is_local(folder):
    if not os.path.isdir(folder):
      return []
    with os.scandir(folder) as entries:
      return sorted(entry.name for entry in entries if entry.is_file())
  found = FileSystems.match([join(folder, "*")])[0].metadata_list
  return sorted(entry.path.rstrip("/").rpartition("/")[2] for entry in found)


def match(pattern: str) -> Iterator[str]:
  """Paths of the files that a pattern with `*` matches, in order."""
  from apache_beam.io.filesystems import FileSystems

  if is_local(pattern):
    # Beam passes over folders that are symbolic links, and walks all that lies below the first `*`.
    yield from sorted(filter(os.path.isfile, glob.iglob(pattern, include_hidden=True)))
    return
  for entry in sorted(FileSystems.match([pattern])[0].metadata_list, key=lambda entry: entry.path):
    yield entry.path


def delete(path: str) -> None:
  """Remove a file if it is there."""
  from apache_beam.io.filesystems import FileSystems

  if exists(path):
    FileSystems.delete([path])


def rename(source: str, target: str) -> None:
  """Give a file another name; a file that has it already is replaced."""
  from apache_beam.io.filesystems import FileSystems

  delete(target)
  FileSystems.rename([source], [target])


def for_each(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
  """Results of a call that waits for a small file, in the order of the items; many wait at once.

  Raises:
    Exception: of the first call that fails, in the order of the items.
  """
  with ThreadPoolExecutor(_AT_ONCE) as pool:
    yield from pool.map(function, items)


def open_raw(path: str) -> BinaryIO:
  """A file as it stands; Beam would otherwise unpack it by its extension."""
  from apache_beam.io.filesystem import CompressionTypes
  from apache_beam.io.filesystems import FileSystems

  return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)


def open_text(path: str) -> TextIO:
  """Lines of a UTF-8 file, `.gz` unpacked; a byte order mark is dropped, bytes that are no UTF-8 become surrogates."""
  stream = open_raw(path)
  if path.endswith(".gz"):
    stream = gzip.GzipFile(fileobj=stream)
  return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")


def read(path: str, *, max_bytes: int | None = None) -> bytes:
  """A whole file.

  Raises:
    FileNotFoundError: where there is none.
    TooLarge: where it has more than `max_bytes`.
  """
  if not exists(path):
    raise FileNotFoundError(f"no file at {path}")
  with open_raw(path) as stream:
    content = stream.read() if max_bytes is None else stream.read(max_bytes + 1)
  if max_bytes is not None and len(content) > max_bytes:
    raise TooLarge(f"{path} has more than {max_bytes} bytes")
  return content


@contextlib.contextmanager
def writer(path: str) -> Iterator[BinaryIO]:
  """A stream whose file takes its name only when the block ends well.

  The temporary name is unique: two workers that a runner gave the same shard do not write into one file.

  Raises:
    CannotWrite: where the file system does not take the file.
  """
  from apache_beam.io.filesystem import CompressionTypes
  from apache_beam.io.filesystems import FileSystems

  folder, name = parent(path), path.rpartition("/")[2]
  temporary = join(folder, f"{TEMPORARY}{uuid.uuid4().hex}-{name}")
  try:
    stream = FileSystems.create(temporary, compression_type=CompressionTypes.UNCOMPRESSED)
  except OSError as error:
    raise _cannot_write(path, error) from error
  try:
    yield stream
    stream.close()
  except BaseException as error:
    # On a full disk closing fails too; what is left of the file must go all the same.
    with contextlib.suppress(Exception):
      stream.close()
    with contextlib.suppress(Exception):
      delete(temporary)
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
      raise _cannot_write(path, error) from error
    raise
  FileSystems.rename([temporary], [path])


def _cannot_write(path: str, error: OSError) -> CannotWrite:
  return CannotWrite(
    f"cannot write {path}: {error.strerror or error}; make room or set an --output that can be written, and run the "
    "same command again: shards that are closed are kept"
  )


def write(path: str, content: bytes) -> None:
  """A whole file, atomically."""
  with writer(path) as stream:
    stream.write(content)
