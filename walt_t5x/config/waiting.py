"""A line on stderr for a wait that takes long, whatever the log level."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator

FIRST_SECONDS = 3.0
NEXT_SECONDS = 60.0
# Where the lines go; another one while stderr is redirected.
_DESCRIPTORS = [2]


@contextlib.contextmanager
def waiting(
  program: str, what: str, *, expected: float | None = None, enabled: bool = True
) -> Iterator[None]:
  """Says what a program does if the block takes longer than `FIRST_SECONDS`, and again, less and less often.

  Args:
    program: its name.
    what: what it does, such as "compiling the training step".
    expected: seconds that it took the last time, if known.
    enabled: False says nothing: for all processes of a run but one.
  """
  ended, started = threading.Event(), time.monotonic()

  def report() -> None:
    last_time = "" if expected is None else f", {expected:.0f} s the last time"
    so_far, pause = "", FIRST_SECONDS
    while not ended.wait(pause):
      if pause > FIRST_SECONDS:
        so_far = f", {time.monotonic() - started:.0f} s so far"
      write_line(f"{program}: {what}{so_far}{last_time}")
      pause = max(NEXT_SECONDS, min(2 * pause, 600.0))

  thread = threading.Thread(target=report, name="waiting", daemon=True)
  if enabled:
    thread.start()
  try:
    yield
  finally:
    ended.set()
    if enabled:
      thread.join()


def write_line(line: str) -> None:
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
