"""Folders that are made or copied as one: new ones, and local copies for libraries that cannot open addresses.

Copies are temporary: they are deleted when the block ends, also after an error.
"""

import contextlib
import pathlib
import shutil
import tempfile
import uuid
from collections.abc import Collection, Iterator

from walt_t5x.files import storage


@contextlib.contextmanager
def read_locally(
  folder: storage.PathLike, names: Collection[str] | None = None
) -> Iterator[pathlib.Path]:
  """Yields a local folder with the files directly in a folder: itself, or a copy of one at an address.

  Messages of errors about the copy name the folder.

  Args:
    folder: local path or address.
    names: the files to copy; all by default.
  """
  if storage.is_local(folder):
    yield pathlib.Path(folder)
    return
  with tempfile.TemporaryDirectory(prefix=storage.TEMPORARY) as name:
    copy = pathlib.Path(name)

    def download(file: str) -> None:
      storage.download(storage.join(folder, file), copy / file)

    list(storage.for_each(download, storage.names(folder) if names is None else names))
    try:
      yield copy
    except (ValueError, FileNotFoundError) as error:
      error.args = tuple(str(part).replace(name, str(folder)) for part in error.args)
      raise


@contextlib.contextmanager
def written_locally(folder: storage.PathLike, *, last: str) -> Iterator[pathlib.Path]:
  """Yields the local folder to write to: itself, or one whose files go to an address when the block ends.

  After an error, nothing goes there. The file `last` arrives after all others.
  """
  if storage.is_local(folder):
    yield pathlib.Path(folder)
    return
  # A store that cannot be reached is noticed now, not after the work.
  storage.exists(storage.join(folder, last))
  with tempfile.TemporaryDirectory(prefix=storage.TEMPORARY) as name:
    copy = pathlib.Path(name)
    yield copy
    files = [path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()]

    def upload(file: str) -> None:
      storage.upload(copy / file, storage.join(folder, file))

    list(storage.for_each(upload, sorted(set(files) - {last})))
    upload(last)


@contextlib.contextmanager
def new_folder(path: storage.PathLike) -> Iterator[pathlib.Path]:
  """Yields a temporary folder in the local folder `path`; its entries move there when the block ends without an error.

  After an error or a kill, the next call starts from nothing. The entry that was written last moves last.

  Raises:
    FileExistsError: if `path` has entries other than those of a killed call.
  """
  path = pathlib.Path(path)
  existed = path.exists()
  if existed and (not path.is_dir() or any(not _is_temporary(e) for e in path.iterdir())):
    raise FileExistsError(f"got {path}, which is not empty, expected a new folder")
  path.mkdir(parents=True, exist_ok=True)
  for left in path.iterdir():
    shutil.rmtree(left)
  work = path / f"{storage.TEMPORARY}{uuid.uuid4().hex}"
  work.mkdir()
  try:
    yield work
    for entry in sorted(work.iterdir(), key=lambda entry: entry.stat().st_mtime_ns):
      storage.rename(str(entry), str(path / entry.name))
  finally:
    shutil.rmtree(work)
    if not existed:
      with contextlib.suppress(OSError):  # It is not empty.
        path.rmdir()


def _is_temporary(path: pathlib.Path) -> bool:
  return path.name.startswith(storage.TEMPORARY) and path.is_dir()
