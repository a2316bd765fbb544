"""Progress lines on stderr while a job runs: rows done, rate and remaining time."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

_FIRST_SECONDS, _LAST_SECONDS = 3.0, 300.0


class RowCounter:
  """Counts finished rows over all threads of a process."""

  def __init__(self):
    self._lock = threading.Lock()
    self._done = self._skipped = 0

  def add(self, rows: int, *, skipped: bool = False) -> None:
    """Adds rows; `skipped` rows were finished before this run."""
    with self._lock:
      self._done += rows
      self._skipped += rows if skipped else 0

  def __call__(self) -> tuple[int, int]:
    """(rows done, rows skipped among them)."""
    with self._lock:
      return self._done, self._skipped


ROWS = RowCounter()


@contextlib.contextmanager
def reported(
  total: tuple[int, bool] | None, poll: Callable[[], tuple[int, int]], *, every_seconds: float
) -> Iterator[None]:
  """Prints a line every few seconds inside the block, less often while nothing is done.

  `poll` gives the rows done so far and those skipped among them; `total` is the number of all rows and whether it is
  exact, None if unknown.
  """
  started, before = time.monotonic(), poll()
  ended = threading.Event()

  def report() -> None:
    pause, told = min(_FIRST_SECONDS, every_seconds), -1
    while not ended.wait(pause):
      done, skipped = (now - base for now, base in zip(poll(), before))
      # Without progress, less and less often.
      pause = min(2 * max(pause, every_seconds), _LAST_SECONDS) if done == told else every_seconds
      told = done
      rate = (done - skipped) / (time.monotonic() - started)
      line = f"preprocess: {done} rows, {rate:.1f} rows/s"
      if total is not None:
        rows, exact = total
        left = f"{max(0, rows - done) / rate:.0f} s left" if rate > 0 else "starting"
        about = "" if exact else "about "
        line = f"preprocess: {done}/{about}{rows} rows, {rate:.1f} rows/s, {left}"
      print(line, file=sys.stderr, flush=True)

  thread = threading.Thread(target=report, daemon=True)
  thread.start()
  try:
    yield
  finally:
    ended.set()
    thread.join()
