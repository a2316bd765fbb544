"""Files on any file system that Beam supports: reads of complete files with a size limit, and atomic writes."""

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
# Reading a small file from an object store takes about 50 ms, nearly all of it latency.
_AT_ONCE = 32
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


class TooLarge(ValueError):
  """A file larger than the limit of the read."""


class CannotWrite(OSError):
  """A write error that is independent of the row: a full disk, a quota, a folder without write permission."""


def is_local(path: str) -> bool:
  """Whether a path is on the local file system."""
  return "://" not in path


def join(folder: str, *names: str) -> str:
  """Path of a file in a folder."""
  from apache_beam.io.filesystems import FileSystems

  return FileSystems.join(folder, *names)


def parent(path: str) -> str:
  """Folder that contains a path; '.' for a bare name."""
  head, separator, _ = path.rpartition("/")
  return head or ("/" if separator else ".")


def exists(path: str) -> bool:
  """Whether a file exists."""
  from apache_beam.io.filesystems import FileSystems

  return FileSystems.exists(path)


def size(path: str) -> int:
  """Size of a file in bytes."""
  from apache_beam.io.filesystems import FileSystems

  return FileSystems.get_filesystem(path).size(path)


def names(folder: str) -> list[str]:
  """Sorted names of the files directly in a folder; empty if the folder does not exist."""
  from apache_beam.io.filesystems import FileSystems

  if is_local(folder):
    if not os.path.isdir(folder):
      return []
    with os.scandir(folder) as entries:
      return sorted(entry.name for entry in entries if entry.is_file())
  found = FileSystems.match([join(folder, "*")])[0].metadata_list
  return sorted(entry.path.rstrip("/").rpartition("/")[2] for entry in found)


def match(pattern: str) -> Iterator[str]:
  """Sorted paths of the files that match a pattern with `*`."""
  from apache_beam.io.filesystems import FileSystems

  if is_local(pattern):
    # Beam skips folders that are symbolic links, and walks the entire tree below the first `*`.
    yield from sorted(filter(os.path.isfile, glob.iglob(pattern, include_hidden=True)))
    return
  for entry in sorted(FileSystems.match([pattern])[0].metadata_list, key=lambda entry: entry.path):
    yield entry.path


def delete(path: str) -> None:
  """Deletes a file if it exists."""
  from apache_beam.io.filesystems import FileSystems

  if exists(path):
    FileSystems.delete([path])


def rename(source: str, target: str) -> None:
  """Renames a file; an existing target is replaced."""
  from apache_beam.io.filesystems import FileSystems

  delete(target)
  FileSystems.rename([source], [target])


def for_each(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
  """Results of a function that reads a small file, in the order of the items; calls run concurrently.

  Raises:
    Exception: of the first call that fails, in the order of the items.
  """
  with ThreadPoolExecutor(_AT_ONCE) as pool:
    yield from pool.map(function, items)


def open_raw(path: str) -> BinaryIO:
  """Opens a file without decompression; Beam would otherwise decompress it by its extension."""
  from apache_beam.io.filesystem import CompressionTypes
  from apache_beam.io.filesystems import FileSystems

  return FileSystems.open(path, compression_type=CompressionTypes.UNCOMPRESSED)


def open_text(path: str) -> TextIO:
  """Lines of a UTF-8 file, `.gz` decompressed; a byte order mark is dropped, invalid bytes become surrogates."""
  stream = open_raw(path)
  if path.endswith(".gz"):
    stream = gzip.GzipFile(fileobj=stream)
  return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")


def read(path: str, *, max_bytes: int | None = None) -> bytes:
  """Reads a complete file.

  Raises:
    FileNotFoundError: if it does not exist.
    TooLarge: if it has more than `max_bytes`.
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
  """Opens a temporary file that is renamed to `path` when the block ends without an error.

  The temporary name is unique, so that two workers with the same shard do not write to the same file.

  Raises:
    CannotWrite: if the file system rejects the write.
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
    # On a full disk, close fails too; the temporary file is deleted anyway.
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
    f"cannot write {path}: {error.strerror or error}; free some space or set a writable --output, and run the "
    "same command again: finished shards are kept"
  )


def write(path: str, content: bytes) -> None:
  """Writes a file atomically."""
  with writer(path) as stream:
    stream.write(content)
