"""Progress lines on stderr while a job runs: rows done, rate and remaining time."""

import sys
import threading
import time
from collections.abc import Callable


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


class Reporter:
  """Prints a line every few seconds inside a `with` block.

  Args:
    total: rows of the manifest, None if unknown.
    poll: rows done and skipped so far; `ROWS` if all workers run in this process.
    every_seconds: interval between lines.
  """

  def __init__(
    self,
    total: int | None,
    *,
    poll: Callable[[], tuple[int, int]] = ROWS,
    every_seconds: float = 5.0,
  ):
    self._total, self._poll, self._every = total, poll, every_seconds
    self._stop = threading.Event()
    self._thread = threading.Thread(target=self._run, daemon=True)
    self._started, self._base = time.monotonic(), (0, 0)

  def __enter__(self) -> "Reporter":
    self._started, self._base = time.monotonic(), self._poll()
    self._thread.start()
    return self

  def __exit__(self, *unused) -> None:
    self._stop.set()
    self._thread.join()

  def _run(self) -> None:
    while not self._stop.wait(self._every):
      print(self.line(), file=sys.stderr, flush=True)

  def line(self) -> str:
    """The progress line."""
    done, skipped = (now - base for now, base in zip(self._poll(), self._base))
    rate = (done - skipped) / max(time.monotonic() - self._started, 1e-9)
    if self._total is None:
      return f"preprocess: {done} rows, {rate:.1f} rows/s"
    left = f"{(self._total - done) / rate:.0f} s left" if rate > 0 else "starting"
    return f"preprocess: {done}/{self._total} rows, {rate:.1f} rows/s, {left}"
