"""Local folders whose files are copied to an address, for libraries that append to files or know no object stores."""

import functools
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator

from absl import logging

from walt_t5x.files import storage


class Mirror:
  """A folder to write to, and the address to which its files are copied; for a local folder, that folder alone.

  Object stores replace files and cannot append to them, so a file that has grown is copied again.

  Attributes:
    folder: the local folder.
  """

  def __init__(self, address: storage.PathLike):
    self._address = os.fspath(address)
    self._local = storage.is_local(self._address)
    self._copied: dict[str, tuple[int, int]] = {}
    self._last, self._lock = -float("inf"), threading.Lock()
    if self._local:
      self.folder = self._address
    else:
      self._temporary = tempfile.TemporaryDirectory(prefix="walt-")
      self.folder = self._temporary.name

  def fetch(self, prefix: str) -> None:
    """Copies the files at the address whose names begin with `prefix` into the folder."""
    if self._local:
      return
    for name in storage.names(self._address):
      if name.startswith(prefix):
        content = storage.read(storage.join(self._address, name))
        storage.write(os.path.join(self.folder, name), content)

  def upload(self, *, at_most_every: float = 0.0) -> None:
    """Copies the files that have changed, unless the last call that copied is less than so many seconds ago."""
    if self._local or time.monotonic() - self._last < at_most_every:
      return
    with self._lock:
      self._last = time.monotonic()
      for name, path in _files(self.folder):
        now = os.stat(path)
        state = now.st_size, now.st_mtime_ns
        if self._copied.get(name) != state:
          with open(path, "rb") as source, storage.writer(self._of(name)) as target:
            shutil.copyfileobj(source, target)
          self._copied[name] = state

  def try_upload(self, *, at_most_every: float = 0.0) -> None:
    """`upload`, with a warning in place of an error: what is missing is copied by the next call."""
    try:
      self.upload(at_most_every=at_most_every)
    except OSError as error:
      logging.warning("The files of %s could not be copied: %s", self._address, error)

  def _of(self, name: str) -> str:
    return storage.join(self._address, name)


def _files(folder: str) -> Iterator[tuple[str, str]]:
  """Names relative to a folder, and paths, of all files below it."""
  for parent, _, names in os.walk(folder):
    for name in names:
      path = os.path.join(parent, name)
      yield os.path.relpath(path, folder), path


@functools.cache
def shared(address: str) -> Mirror:
  """The one mirror of a folder in this process, for writers of the same files."""
  return Mirror(address)
