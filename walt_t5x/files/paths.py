"""Paths of files that may be in an object store: `pathlib.Path` for local ones, `Address` for others.

Both have the methods that programs here use, so that code for one serves the other.
"""

import fnmatch
import io
import os
import pathlib
import posixpath
from collections.abc import Iterator
from typing import IO

from walt_t5x.files import storage


class Address(os.PathLike[str]):
  """An address such as gs://bucket/folder/name, with methods of `pathlib.Path` that go through the file layer."""

  def __init__(self, address: str):
    self._address = address.rstrip("/")

  def __fspath__(self) -> str:
    return self._address

  def __str__(self) -> str:
    return self._address

  def __repr__(self) -> str:
    return f"Address({self._address!r})"

  def __eq__(self, other: object) -> bool:
    return isinstance(other, Address) and self._address == other._address

  def __hash__(self) -> int:
    return hash(self._address)

  def __lt__(self, other: "Address") -> bool:
    return self._address < other._address

  def __truediv__(self, name: str | os.PathLike[str]) -> "Address":
    return Address(storage.join(self._address, os.fspath(name)))

  @property
  def name(self) -> str:
    return posixpath.basename(self._address)

  @property
  def stem(self) -> str:
    return pathlib.PurePosixPath(self.name).stem

  @property
  def suffix(self) -> str:
    return pathlib.PurePosixPath(self.name).suffix

  @property
  def parts(self) -> tuple[str, ...]:
    return tuple(self._address.split("/"))

  @property
  def parent(self) -> "Address":
    return Address(storage.parent(self._address))

  def with_name(self, name: str) -> "Address":
    return self.parent / name

  def with_suffix(self, suffix: str) -> "Address":
    return self.parent / (self.stem + suffix)

  def absolute(self) -> "Address":
    return self

  resolve = absolute

  def exists(self) -> bool:
    return storage.exists(self._address)

  def is_dir(self) -> bool:
    return storage.is_folder(self._address)

  def is_file(self) -> bool:
    return self.exists() and not self.is_dir()

  def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
    """Object stores need no folders."""

  def glob(self, pattern: str) -> Iterator["Address"]:
    """Files directly in this folder that match a pattern."""
    return (
      self / name for name in storage.names(self._address) if fnmatch.fnmatchcase(name, pattern)
    )

  def iterdir(self) -> Iterator["Address"]:
    names = storage.names(self._address) + storage.folders(self._address)
    return (self / name for name in names)

  def rglob(self, pattern: str) -> Iterator["Address"]:
    """Files in this folder and those below it whose names match a pattern."""
    yield from self.glob(pattern)
    for name in storage.folders(self._address):
      yield from (self / name).rglob(pattern)

  def relative_to(self, folder: os.PathLike[str]) -> pathlib.PurePosixPath:
    """The path below a folder."""
    return pathlib.PurePosixPath(self._address.removeprefix(f"{os.fspath(folder)}/"))

  def unlink(self, missing_ok: bool = False) -> None:
    """Deletes the file if it exists."""
    storage.delete(self._address)

  def read_bytes(self) -> bytes:
    return storage.read(self._address)

  def read_text(self, encoding: str = "utf-8") -> str:
    return self.read_bytes().decode(encoding)

  def open(self, mode: str = "r", encoding: str = "utf-8") -> IO[str] | IO[bytes]:
    """Opens the file for reading."""
    if mode not in ("r", "rb"):
      raise ValueError(
        f"{self._address}: got {mode=}, expected 'r' or 'rb'; write with `storage.writer`"
      )
    stream = io.BytesIO(self.read_bytes())
    return stream if mode == "rb" else io.TextIOWrapper(stream, encoding=encoding)


AnyPath = pathlib.Path | Address


def as_path(name: storage.PathLike) -> AnyPath:
  """The path of a file or folder, local or at an address."""
  if isinstance(name, Address):
    return name
  return pathlib.Path(name) if storage.is_local(name) else Address(os.fspath(name))
