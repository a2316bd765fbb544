"""Lines on stderr about waits and progress, whatever the log level, at a pace that all of them share."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator

FIRST_SECONDS, NEXT_SECONDS = 3.0, 15.0
STEADY_LINES, DOUBLINGS = 7, 4
# Where the lines go; another one while stderr is redirected.
_DESCRIPTORS = [2]


class Pace:
  """When a process that has said nothing for a while says what it does.

  The first line is due after `FIRST_SECONDS`. The next ones are due when nothing was written for `NEXT_SECONDS`; after
  `STEADY_LINES` lines that time doubles with each line, up to `DOUBLINGS` times. However slow the machine is, these are
  at most 7 lines in 93 seconds and 10 in five minutes. Lines that are not held back, such as results, count too.
  """

  def __init__(self):
    self._lines, self._last = 0, time.monotonic()
    self._lock = threading.Lock()

  def left(self) -> float:
    """Seconds until a line is due; 0 or less if it is."""
    doublings = min(max(0, self._lines - STEADY_LINES + 1), DOUBLINGS)
    pause = NEXT_SECONDS * 2**doublings if self._lines else FIRST_SECONDS
    return self._last + pause - time.monotonic()

  def take(self) -> bool:
    """Whether a line is due; the caller then writes it."""
    with self._lock:
      due = self.left() <= 0
      if due:
        self.count()
      return due

  def count(self) -> None:
    """Counts a line that is written now."""
    self._lines, self._last = self._lines + 1, time.monotonic()


PACE = Pace()


@contextlib.contextmanager
def reporting(line: Callable[[], str]) -> Iterator[None]:
  """Writes `line()` whenever a line is due, once the block has run for `FIRST_SECONDS`."""
  ended = threading.Event()

  def report() -> None:
    pause = FIRST_SECONDS
    while not ended.wait(max(pause, PACE.left())):
      pause = 0.0
      if PACE.take():
        _write_line(line())

  thread = threading.Thread(target=report, name="reporting", daemon=True)
  thread.start()
  try:
    yield
  finally:
    ended.set()
    thread.join()


@contextlib.contextmanager
def waiting(
  program: str, what: str, *, expected: float | None = None, enabled: bool = True
) -> Iterator[None]:
  """Says what a program does if the block takes longer than `FIRST_SECONDS`, and again; see `Pace`.

  Args:
    program: its name.
    what: what it does, such as "compiling the training step".
    expected: seconds that it took the last time, if known.
    enabled: False says nothing: for all processes of a run but one.
  """
  started = time.monotonic()
  last_time = "" if expected is None else f", {expected:.0f} s the last time"

  def line() -> str:
    seconds = time.monotonic() - started
    so_far = f", {seconds:.0f} s so far" if seconds > NEXT_SECONDS else ""
    return f"{program}: {what}{so_far}{last_time}"

  with reporting(line) if enabled else contextlib.nullcontext():
    yield


def _write_line(line: str) -> None:
  """Writes a line to stderr, above a progress bar if there is one."""
  tqdm = sys.modules.get("tqdm")
  if tqdm is not None and sys.stderr.isatty():
    tqdm.tqdm.write(line, file=sys.stderr)
    return
  with contextlib.suppress(OSError):  # stderr is closed.
    os.write(_DESCRIPTORS[-1], f"{line}\n".encode())


@contextlib.contextmanager
def redirected(descriptor: int) -> Iterator[None]:
  """Inside the block, file descriptor 2 is not the terminal, but `descriptor` is."""
  _DESCRIPTORS.append(descriptor)
  try:
    yield
  finally:
    _DESCRIPTORS.pop()
