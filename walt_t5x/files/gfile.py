"""TensorFlow's gfile as a file system of fsspec, for processes that have loaded TensorFlow anyway."""

import os
from typing import Any

from etils.epath import backend
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem


class GfileSystem(AbstractFileSystem):
  """Paths are complete addresses, such as gs://bucket/name."""

  protocol = "gfile"

  def info(self, path: str, **_: Any) -> dict[str, Any]:
    """Name, size in bytes and type ("file" or "directory")."""
    found = backend.tf_backend.stat(path)
    kind = "directory" if found.is_directory else "file"
    return {"name": path, "size": found.length, "type": kind}

  def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
    """Entries of a folder, without sizes."""
    if not backend.tf_backend.isdir(path):
      raise FileNotFoundError(path)
    names = {
      os.path.join(path, name.rstrip("/")): "directory" if name.endswith("/") else "file"
      for name in backend.tf_backend.listdir(path)
    }
    if not detail:
      return list(names)
    return [{"name": name, "size": None, "type": kind} for name, kind in names.items()]

  def rm_file(self, path: str) -> None:
    """Deletes a file."""
    backend.tf_backend.remove(path)

  def put_file(self, lpath: str, rpath: str, **_: Any) -> None:
    """Copies a local file."""
    backend.tf_backend.copy(lpath, rpath, overwrite=True)

  def makedirs(self, path: str, exist_ok: bool = False) -> None:
    """Creates a folder and those above it."""
    backend.tf_backend.makedirs(path, exist_ok=exist_ok)

  def mv(self, path1: str, path2: str, **_: Any) -> None:
    """Renames a file or folder; an existing file is replaced."""
    backend.tf_backend.replace(path1, path2)

  def _open(self, path: str, mode: str = "rb", **options: Any) -> "_Reader":
    return _Reader(self, path, mode, size=self.info(path)["size"])


class _Reader(AbstractBufferedFile):
  def _fetch_range(self, start: int, end: int) -> bytes:
    with backend.tf_backend.gfile.GFile(self.path, "rb") as file:
      file.seek(start)
      return file.read(end - start)
