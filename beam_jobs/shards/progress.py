"""Progress lines on stderr while a job runs: rows done, rate and remaining time."""

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


def line_of(
  total: tuple[int, bool] | None,
  poll: Callable[[], tuple[int, int]],
  *,
  program: str = "preprocess",
) -> Callable[[], str]:
  """A function that returns the line of a job of this program which starts now.

  `poll` gives the rows done so far and those skipped among them; `total` is the number of all rows and whether it is
  exact, None if unknown.
  """
  started, before = time.monotonic(), poll()

  def line() -> str:
    done, skipped = (now - base for now, base in zip(poll(), before))
    rate = (done - skipped) / (time.monotonic() - started)
    if total is None:
      return f"{program}: {done} rows, {rate:.1f} rows/s"
    rows, exact = total
    left = f"{max(0, rows - done) / rate:.0f} s left" if rate > 0 else "starting"
    about = "" if exact else "about "
    return f"{program}: {done}/{about}{rows} rows, {rate:.1f} rows/s, {left}"

  return line
