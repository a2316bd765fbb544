"""The file layer: complete reads, atomic writes and listings, on local disks and in object stores.

Local paths use the operating system. Addresses use fsspec: gs:// needs `gcsfs`, s3:// needs `s3fs` (`clients`). Errors
that may pass are retried (`retries`).
"""

import contextlib
import errno
import gzip
import io
import json
import os
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, TextIO, TypeVar

from walt_t5x.files import clients, damage
from walt_t5x.files.retries import retried
from walt_t5x.files.store_errors import CannotWrite as CannotWrite
from walt_t5x.files.store_errors import cannot_write, is_beyond_end, is_object_store

# Etils' paths, which Orbax uses, then use fsspec too, and not TensorFlow, which takes no endpoint.
os.environ.setdefault("EPATH_USE_TF", "false")

_Item, _Result = TypeVar("_Item"), TypeVar("_Result")
PathLike = str | os.PathLike[str]
TEMPORARY = ".tmp-"
_remote = clients.file_system
# Reading a small file from an object store takes about 50 ms, nearly all of it latency.
_AT_ONCE = 32
_CHUNK = 1 << 24
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


class TooLarge(ValueError):
  """A file larger than the limit of the read."""


def is_local(path: PathLike) -> bool:
  """Whether a path is on the local file system."""
  return "://" not in os.fspath(path)


def join(folder: PathLike, *names: str) -> str:
  """Path of a file in a folder."""
  return os.path.join(folder, *names)


def parent(path: str) -> str:
  """Folder that contains a path; '.' for a bare name."""
  head, separator, _ = path.rpartition("/")
  return head or ("/" if separator else ".")


def absolute(path: PathLike) -> str:
  """A path that is the same from any folder; an address stays as it is."""
  return os.path.abspath(path) if is_local(path) else os.fspath(path)


def run_folder(path: PathLike) -> str:
  """Folder of a training run, given that folder or a `checkpoint_<step>` in it."""
  folder = os.fspath(path).rstrip("/")
  return parent(folder) if os.path.basename(folder).startswith("checkpoint_") else folder


def exists(path: PathLike) -> bool:
  """Whether a file or folder exists."""
  path = os.fspath(path)
  return os.path.exists(path) if is_local(path) else bool(_kind_at(path))


def is_file(path: PathLike) -> bool:
  """Whether a path is that of a file."""
  path = os.fspath(path)
  return os.path.isfile(path) if is_local(path) else _kind_at(path) == "file"


def _kind_at(path: str) -> str:
  """Type of what is at an address, "" for nothing; fsspec's own `exists` is False after any error."""
  try:
    return retried("look for", path, lambda: _remote(path).info(path))["type"]
  except FileNotFoundError:
    return ""


def is_folder(path: PathLike) -> bool:
  """Whether there is a folder at a path; in an object store, one with files."""
  path = os.fspath(path)
  return os.path.isdir(path) if is_local(path) else _kind_at(path) == "directory"


def reject_special(path: PathLike) -> None:
  """Raises OSError for a local pipe, socket or device, of which a read may never end."""
  path = os.fspath(path)
  if is_local(path) and os.path.exists(path):
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
      raise OSError(errno.EINVAL, "got a pipe, a socket or a device, expected a file", path)


def size(path: PathLike) -> int:
  """Size of a file in bytes."""
  path = os.fspath(path)
  if is_local(path):
    return os.path.getsize(path)
  return retried("measure", path, lambda: _remote(path).info(path)["size"])


def names(folder: PathLike) -> list[str]:
  """Sorted names of the files directly in a folder, and of links that lead nowhere; empty if it does not exist."""
  return sorted(name for name, entry in _listed(folder) if _kind(entry) == "file")


def folders(folder: PathLike) -> list[str]:
  """Sorted names of the folders directly in a folder; empty if the folder does not exist."""
  return sorted(name for name, entry in _listed(folder) if _kind(entry) == "directory")


def sizes(folder: PathLike) -> dict[str, int]:
  """Name -> bytes of every file directly in a folder, from one listing of a store."""
  return {
    name: entry["size"] if isinstance(entry, dict) else entry.stat().st_size
    for name, entry in _listed(folder)
    if _kind(entry) == "file"
  }


def _listed(folder: PathLike) -> Iterator[tuple[str, Any]]:
  """Names and entries of a folder: `os.DirEntry`, or fsspec's description."""
  folder = os.fspath(folder)
  if is_local(folder):
    if os.path.isdir(folder):
      with os.scandir(folder) as entries:
        yield from [(entry.name, entry) for entry in entries]
    return
  try:
    store = _remote(folder)
    found = retried("list", folder, lambda: store.ls(folder, detail=True))
  except FileNotFoundError:
    return
  here = store._strip_protocol(folder).strip("/")
  for one in found:
    path = one["name"].strip("/")
    # Some programs mark a folder by an empty object with its name.
    if path != here:
      yield os.path.basename(path), one


def _kind(entry: Any) -> str:
  """'file', 'directory' or '' for a pipe or a device; a link that leads nowhere is a file that does not exist."""
  if isinstance(entry, dict):
    return entry["type"]
  if entry.is_symlink():
    return "directory" if os.path.isdir(entry.path) else "file"
  return "file" if entry.is_file() else "directory" if entry.is_dir() else ""


def delete(path: PathLike) -> None:
  """Deletes a file if it exists."""
  path = os.fspath(path)
  remove = os.remove if is_local(path) else _remote(path).rm_file
  with contextlib.suppress(FileNotFoundError, NotADirectoryError):
    retried("delete", path, lambda: remove(path))


def rename(source: str, target: str) -> None:
  """Renames a file; an existing target is replaced."""
  if is_object_store(source):
    _move([source], [target])
  else:
    move = os.replace if is_local(source) else _remote(source).mv
    retried("rename", source, lambda: move(source, target))


def rename_folder(source: str, target: str) -> None:
  """Renames a folder; `target` must not exist. Object stores copy the files, then delete the old ones."""
  if is_local(source):
    return retried("rename", source, lambda: os.replace(source, target))
  store = _remote(source)
  if is_object_store(source):
    head = f"{store._strip_protocol(source)}/"
    found = retried("list", source, lambda: store.find(source))
    below = [name.removeprefix(head) for name in found if name.startswith(head)]
    if not below:
      raise FileNotFoundError(f"no folder at {source}")
    return _move([join(source, name) for name in below], [join(target, name) for name in below])

  def move() -> None:
    # Without the slashes, a second attempt would copy into the target.
    store.copy(f"{source}/", f"{target}/", recursive=True)
    store.rm(source, recursive=True)

  retried("rename", source, move)


def _move(sources: list[str], targets: list[str]) -> None:
  """Copies objects, then deletes exactly these: a second listing may have more of them."""
  retried("rename", sources[0], lambda: _remote(sources[0]).copy(sources, targets))
  list(for_each(delete, sources))


def make_folder(path: PathLike) -> None:
  """Creates a folder and those above it, if missing; object stores need none."""
  path = os.fspath(path)
  if is_local(path):
    os.makedirs(path, exist_ok=True)
  elif not is_object_store(path):
    retried("create", path, lambda: _remote(path).makedirs(path, exist_ok=True))


def for_each(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
  """Results, or the first error, of a function that reads a small file, in the items' order; calls run concurrently."""
  with ThreadPoolExecutor(_AT_ONCE) as pool:
    yield from pool.map(function, items)


def open_raw(path: PathLike, *, ahead: int = 1 << 22) -> BinaryIO:
  """Opens a file for reading, without decompression; of a store, `ahead` bytes more than needed are read at once."""
  path = os.fspath(path)
  if is_local(path):
    return retried("open", path, lambda: open(path, "rb"))
  return retried("open", path, lambda: _remote(path).open(path, "rb", block_size=ahead))


def open_text(path: str) -> TextIO:
  """Lines of a UTF-8 file, `.gz` decompressed; a byte order mark is dropped, invalid bytes become surrogates."""
  stream = open_raw(path)
  if path.lower().endswith(".gz"):
    stream = gzip.GzipFile(fileobj=stream)
  return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")


def read(path: PathLike, *, max_bytes: int | None = None) -> bytes:
  """Reads a complete file. Raises FileNotFoundError, or `TooLarge` if it has more than `max_bytes`."""
  path = os.fspath(path)
  try:
    content = read_range(path, 0, None if max_bytes is None else max_bytes + 1)
  except (FileNotFoundError, NotADirectoryError) as error:
    raise FileNotFoundError(f"no file at {path}") from error
  if max_bytes is not None and len(content) > max_bytes:
    raise TooLarge(f"{path} has more than {max_bytes} bytes")
  return content


def read_range(path: PathLike, begin: int, end: int | None) -> bytes:
  """Bytes `begin` to `end`, or fewer if the file ends before; of a store in one request."""
  path = os.fspath(path)

  def attempt() -> bytes:
    if not is_local(path):
      # A complete object is one request without a range, so it is of one version, and compared with its checksum.
      part = {} if (begin, end) == (0, None) else {"start": begin, "end": end}
      return _remote(path).cat_file(path, **part)
    with open(path, "rb") as stream:
      stream.seek(begin)
      return stream.read(-1 if end is None else end - begin)

  try:
    return retried("read", path, attempt)
  except Exception as error:
    if is_beyond_end(error):
      return b""
    raise


def chunks(path: PathLike) -> Iterator[bytes]:
  """The content of a file in parts, each of which is read and retried for itself."""
  begin = 0
  while part := read_range(path, begin, begin + _CHUNK):
    yield part
    begin += len(part)
    if len(part) < _CHUNK:
      return


def read_json(path: PathLike) -> Any:
  """The content of a JSON file, without its digest (`files.damage`); raises `Damaged` as `damage.parsed` does."""
  return damage.parsed(read(path), name=os.fspath(path))


@contextlib.contextmanager
def writer(path: PathLike) -> Iterator[BinaryIO]:
  """Opens a temporary file that becomes `path` when the block ends without an error, and disappears otherwise.

  It is a local file, `stream.name`: next to `path`, or in the folder for temporary files if `path` is an address. Its
  name is unique, so that two workers with the same shard do not write to the same file. Missing folders are created.

  Raises:
    CannotWrite: if the file system rejects the write.
  """
  path = os.fspath(path)
  folder, name = os.path.split(path)
  folder = folder if is_local(path) else tempfile.gettempdir()
  temporary = os.path.join(folder, f"{TEMPORARY}{uuid.uuid4().hex}-{name}.tmp")
  try:
    os.makedirs(folder or ".", exist_ok=True)
    stream = open(temporary, "xb")
  except OSError as error:
    raise cannot_write(path, error) from error
  try:
    yield stream
    stream.close()
    if is_local(path):
      os.replace(temporary, path)
    else:
      upload(temporary, path)
  except OSError as error:
    if error.errno in _NO_ROOM:
      raise cannot_write(path, error) from error
    raise
  finally:
    # On a full disk, close fails too; the temporary file is deleted anyway.
    with contextlib.suppress(OSError):
      stream.close()
    with contextlib.suppress(OSError):
      os.remove(temporary)


def download(path: str, target: PathLike) -> None:
  """Copies the file at an address to a local file."""
  with open(target, "wb") as stream:
    stream.writelines(chunks(path))


def upload(source: PathLike, path: str) -> None:
  """Copies a local file to an address, where it appears complete or not at all.

  Raises:
    CannotWrite: the store rejects it.
  """
  source, store = os.fspath(source), _remote(path)

  def put() -> None:
    if is_object_store(path):
      store.put_file(source, path)
    else:
      store.put_file(source, temporary)
      store.mv(temporary, path)

  temporary = join(parent(path), os.path.basename(source))
  try:
    retried("write", path, put)
  except OSError as error:
    with contextlib.suppress(Exception):
      store.rm_file(temporary)
    raise cannot_write(path, error) from error


def write(path: PathLike, content: bytes | str) -> None:
  """Writes a file atomically; text becomes UTF-8."""
  with writer(path) as stream:
    stream.write(content.encode() if isinstance(content, str) else content)


def create(path: PathLike, content: bytes) -> bool | None:
  """Writes a small file unless it exists, in one step: whether it did, or None if the store has no such step.

  Local disks have it, and fsspec's mode "create": a precondition of the request to GCS and S3. After a lost answer, the
  file exists because this call wrote it, so the content has to tell writers apart.
  """
  path = os.fspath(path)
  if is_local(path):
    try:
      with open(path, "xb") as stream:
        stream.write(content)
    except FileExistsError:
      return False
    except OSError as error:
      raise cannot_write(path, error) from error
    return True
  try:
    store = _remote(path)
    retried("create", path, lambda: store.pipe_file(path, content, mode="create"))
  except FileExistsError:
    with contextlib.suppress(FileNotFoundError):
      return read(path) == content
    return False
  except (NotImplementedError, TypeError, ValueError):
    return None
  return True


def write_json(
  path: PathLike, tree: Any, *, indent: int = 1, sort_keys: bool = False, seal: bool = False
) -> None:
  """Writes a JSON file atomically; `seal` adds a digest, which `read_json` checks."""
  if seal:
    write(path, damage.sealed_json(tree, indent=indent, sort_keys=sort_keys))
  else:
    write(path, json.dumps(tree, indent=indent, sort_keys=sort_keys) + "\n")
