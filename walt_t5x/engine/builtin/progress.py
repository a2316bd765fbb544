"""Reports the progress of a run on stderr: a progress bar on a terminal, occasional lines elsewhere."""

import sys
import time
from typing import Any


class Progress:
  """Shows step, rate, remaining time and one metric. Never accesses the device.

  Args:
    first_step: first step of the run.
    total_steps: last step of the run.
    seconds: least number of seconds between two plain lines.
    enabled: False on hosts that print nothing.
  """

  def __init__(
    self, first_step: int, total_steps: int, *, seconds: float = 10.0, enabled: bool = True
  ):
    self._first, self._total, self._seconds = first_step, total_steps, seconds
    self._enabled = enabled
    self._start = self._last_line = time.monotonic()
    self._note = ""
    self._bar: Any = None
    if enabled and sys.stderr.isatty():
      from tqdm import tqdm

      self._bar = tqdm(
        total=total_steps, initial=first_step, unit="step", dynamic_ncols=True, file=sys.stderr
      )

  def note(self, text: str) -> None:
    """Sets the newest metric, shown with the next update."""
    self._note = text

  def update(self, step: int) -> None:
    """Reports that the run is at `step`."""
    if not self._enabled:
      return
    if self._bar is not None:
      self._bar.set_postfix_str(self._note, refresh=False)
      self._bar.update(step - self._bar.n)
      return
    now = time.monotonic()
    if now - self._last_line >= self._seconds or step == self._total:
      self._last_line = now
      print(self._line(step, now - self._start), file=sys.stderr, flush=True)

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()

  def _line(self, step: int, elapsed: float) -> str:
    rate = (step - self._first) / elapsed if elapsed > 0 else 0.0
    left = (self._total - step) / rate if rate > 0 else float("inf")
    text = f"step {step}/{self._total}  {rate:.3g} steps/s  {_clock(left)} left"
    return f"{text}  {self._note}" if self._note else text


def _clock(seconds: float) -> str:
  if seconds == float("inf"):
    return "?"
  minutes, second = divmod(int(seconds), 60)
  hour, minute = divmod(minutes, 60)
  return f"{hour}:{minute:02}:{second:02}"
