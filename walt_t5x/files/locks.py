"""One program at a time in a folder: a lock is a small file that its holder renews, on any store.

The file is created if it is absent, in one step where the store has one (local disks, GCS, S3: `storage.create`).
Otherwise, and after a lock has expired, a program writes the file, waits `SETTLE` seconds and reads it back: the last
writer holds the lock. A holder that finds another lock in place of its lock ends at once.

A lock expires as soon as its holder's process has ended, if that ran on this machine, else `EXPIRY` seconds after it
was last renewed. A program that finds the lock of another machine waits until it is renewed or expires. Clocks may
differ, so it watches at least for the time in which a living holder would renew the lock.
"""

import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any, NoReturn

from walt_t5x.files import storage

# Seconds.
RENEWAL, EXPIRY, SETTLE = 15.0, 60.0, 2.0
_LEAVING = 5.0
_HELD: set["_Lock"] = set()


class Held(ValueError):
  """Another program holds the lock; the message names it."""


@contextlib.contextmanager
def held(
  path: storage.PathLike, *, program: str, instead: str, sigterm: bool = True
) -> Iterator[None]:
  """Holds the lock at `path` inside the block.

  Args:
    path: the lock's file, in the folder that it protects.
    program: name of this program, for messages.
    instead: what its user can do in place of waiting, such as "set another --output".
    sigterm: release it also before a SIGTERM ends the process; False where C++ code handles that signal.

  Raises:
    Held: another program holds it.
  """
  lock = _Lock(os.fspath(path), program)
  lock.take(instead)
  _HELD.add(lock)
  threading.Thread(target=lock.renew, name="lock", daemon=True).start()
  try:
    with _released_by_sigterm() if sigterm else contextlib.nullcontext():
      yield
  finally:
    _HELD.discard(lock)
    lock.release()


def leave(code: int) -> NoReturn:
  """Releases the locks of this process, if the store answers within a few seconds, and ends it at once."""
  locks = list(_HELD)
  for lock in locks:
    threading.Thread(target=lock.release, daemon=True).start()
  for lock in locks:
    lock.released.wait(_LEAVING)
  os._exit(code)


class _Lock:
  """A lock that this process holds, or wants to."""

  def __init__(self, path: str, program: str):
    self._path, self._ended, self.released = path, threading.Event(), threading.Event()
    self._record = {
      "owner": uuid.uuid4().hex,
      "program": program,
      "host": socket.gethostname(),
      "machine": _machine(),
      "process": os.getpid(),
      "started": _start(os.getpid()),
      "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
    }
    # Between a read and the write that depends on it, `release` has to wait.
    self._writing = threading.Lock()

  def take(self, instead: str) -> None:
    """Creates the file, or takes over one that has expired; raises `Held`."""
    storage.make_folder(storage.parent(self._path))
    created = storage.create(self._path, self._content())
    if created or self._is_mine(_read(self._path)):
      return
    # None: the store cannot create a file only if it is absent.
    found = _read(self._path)
    if found is not None:
      if not self._has_expired(found):
        raise Held(self._told(_read(self._path) or found, instead))
      logging.warning("%s has expired: %s", self._path, _holder(found))
    storage.write(self._path, self._content())
    time.sleep(SETTLE)
    found = _read(self._path)
    if not self._is_mine(found):
      raise Held(self._told(found or {}, instead))

  def renew(self) -> None:
    """Renews the lock until it is released; ends the process if another program has taken it over."""
    while not self._ended.wait(RENEWAL):
      try:
        with self._writing:
          if self._ended.is_set():
            return
          found = _read(self._path)
          # A folder that was deleted gets its lock again.
          mine = found is None or self._is_mine(found)
          if mine:
            storage.write(self._path, self._content())
      except Exception as error:  # The store may be back before the lock expires.
        logging.warning("cannot renew %s: %s", self._path, error)
        continue
      if not mine:
        name = self._record["program"]
        print(
          f"{name}: this process was silent for more than {EXPIRY:g} s, and lost {self._path} to "
          f"{_holder(found or {})}; it ends, as two programs would overwrite each other's files",
          file=sys.stderr,
          flush=True,
        )
        os._exit(1)

  def release(self) -> None:
    """Deletes the file."""
    self._ended.set()
    with self._writing, contextlib.suppress(OSError):
      if self._is_mine(_read(self._path)):
        storage.delete(self._path)
    self.released.set()

  def _content(self) -> bytes:
    return json.dumps({**self._record, "renewed": time.time()}, indent=1).encode() + b"\n"

  def _is_mine(self, found: dict[str, Any] | None) -> bool:
    return found is not None and found.get("owner") == self._record["owner"]

  def _has_expired(self, found: dict[str, Any]) -> bool:
    """Whether the holder has ended: as this machine sees it, or because it does not renew its lock."""
    if _is_here(found):
      return found.get("started") != _start(found.get("process", 0))
    silent = max(0.0, time.time() - found.get("renewed", 0.0))
    watched = max(1.2 * RENEWAL, EXPIRY - silent)
    print(
      f"{self._record['program']}: {self._path} is the lock of {_holder(found)}; waiting up to {watched:.0f} s for a "
      "sign of life",
      file=sys.stderr,
      flush=True,
    )
    end = time.monotonic() + watched
    while time.monotonic() < end:
      time.sleep(RENEWAL / 15)
      if (now := _read(self._path)) != found:
        return now is None
    return True

  def _told(self, found: dict[str, Any], instead: str) -> str:
    stop = f"stop it (kill {found['process']})" if _is_here(found) else "stop it there"
    return f"{storage.parent(self._path)} is in use by {_holder(found)}.\nWait for it, {stop}, or {instead}."


def _read(path: str) -> dict[str, Any] | None:
  """The record in a lock's file, {} if it is incomplete; None without a file."""
  try:
    found = json.loads(storage.read(path))
  except FileNotFoundError:
    return None
  except ValueError:
    return {}
  return found if isinstance(found, dict) else {}


def _holder(found: dict[str, Any]) -> str:
  if not found:
    return "another program"
  return (
    f"{found['program']}: process {found['process']} on {found['host']}, since {found['since']}"
  )


def _is_here(found: dict[str, Any]) -> bool:
  """Whether a holder's process would be visible to this one."""
  return bool(found.get("machine")) and found["machine"] == _machine()


def _machine() -> str:
  """Identifies this machine since it was started, and this container's processes; "" where it does not tell."""
  try:
    with open("/proc/sys/kernel/random/boot_id") as file:
      return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
  except OSError:
    return ""


def _start(process: int) -> str:
  """When a process of this machine was started, which tells it from a later one of that number; "" if it has ended."""
  try:
    with open(f"/proc/{process}/stat", errors="replace") as file:
      fields = file.read().rpartition(")")[2].split()
  except OSError:
    return ""
  return "" if fields[0] in "ZX" else fields[19]


@contextlib.contextmanager
def _released_by_sigterm() -> Iterator[None]:
  """Inside the block, a SIGTERM that would have ended this process releases its locks first."""
  main = threading.current_thread() is threading.main_thread()
  if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
    yield
    return
  # Python calls a handler between two of its instructions, so after a compilation; the thread answers immediately.
  received, sent = os.pipe()
  os.set_blocking(sent, False)
  signal.signal(signal.SIGTERM, lambda *unused: None)
  old = signal.set_wakeup_fd(sent)
  threading.Thread(target=_await_sigterm, args=(received,), daemon=True).start()
  try:
    yield
  finally:
    signal.set_wakeup_fd(old)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.close(sent)  # Ends the thread.


def _await_sigterm(received: int) -> None:
  with open(received, "rb", buffering=0) as numbers:
    while byte := numbers.read(1):
      if byte[0] == signal.SIGTERM:
        leave(128 + signal.SIGTERM)
