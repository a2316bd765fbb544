"""What a run reports in addition to metrics: profiler traces, and its waits and progress on stderr."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from absl import logging
from tqdm import tqdm

from walt_t5x.config.waiting import PACE, reporting, waiting
from walt_t5x.files import storage


def run_waits(
  what: str, *, expected: float | None = None
) -> contextlib.AbstractContextManager[None]:
  """`waiting` for a training run, whose first process speaks for all."""
  return waiting("train", what, expected=expected, enabled=jax.process_index() == 0)


REQUEST = "profile_now"


class Profiler:
  """Writes traces to `<model_dir>/profile`, for TensorBoard's profile plugin, XProf or Perfetto.

  Args:
    model_dir: the run's folder. A file `profile_now` in it that contains a number requests a trace of that many steps
      (checked every few dozen steps, and removed by host 0 once its trace is written; each host checks independently,
      and one that is late writes none).
    steps: (first, last + 1) step to trace, or None.
  """

  def __init__(self, model_dir: str, steps: Sequence[int] | None):
    self._request = storage.join(model_dir, REQUEST)
    self._traces = storage.join(model_dir, "profile")
    self._first, self._end = steps or (-1, -1)
    self._running = False

  def poll(self, step: int) -> None:
    """Checks for a request."""
    if self._running or not storage.exists(self._request):
      return
    text = storage.read(self._request).decode().strip()
    count = int(text) if text.isdecimal() and int(text) > 0 else 3
    self._first, self._end = step, step + count

  def before(self, step: int, wait: Callable[[], None]) -> None:
    """Starts or ends a trace; called before `step` is dispatched. `wait` waits for the steps before it."""
    if self._running and step >= self._end:
      wait()
      self.stop()
    if not self._running and self._first <= step < self._end:
      logging.info("Tracing steps %d to %d to %s.", step, self._end - 1, self._traces)
      jax.profiler.start_trace(self._traces)
      self._running = True

  def stop(self) -> None:
    """Ends the trace if one is active."""
    if self._running:
      jax.profiler.stop_trace()
      self._running, self._first, self._end = False, -1, -1
      if jax.process_index() == 0:
        storage.delete(self._request)


class Progress:
  """Shows step, rate, remaining time and `note`, the newest metric, if enabled. Never accesses the device.

  Lines are written by another thread, so that a loop that waits for data says so.
  """

  def __init__(self, first_step: int, total_steps: int, *, enabled: bool):
    self._first, self._total, self._enabled = first_step, total_steps, enabled
    self._step = first_step
    self.note = ""
    self.begin()
    self._bar: Any = None
    if enabled and sys.stderr.isatty():
      self._bar = tqdm(
        total=total_steps, initial=first_step, unit="step", dynamic_ncols=True, file=sys.stderr
      )

  def begin(self) -> None:
    """The first step starts now."""
    self._start = time.monotonic()

  @contextlib.contextmanager
  def shown(self, phase: Callable[[], str]) -> Iterator[None]:
    """Shows the progress while the block runs, and its end; `phase` is that of `Goodput`."""
    if not self._enabled or self._bar is not None:
      yield
      return
    with reporting(lambda: self._line(phase())):
      yield
    if self._step == self._total:
      PACE.count()
      print(self._line(""), file=sys.stderr, flush=True)

  def update(self, step: int) -> None:
    """Reports that the run is at `step`."""
    self._step = step
    if self._bar is not None:
      self._bar.set_postfix_str(self.note, refresh=False)
      self._bar.update(step - self._bar.n)

  def _line(self, phase: str) -> str:
    rate = (self._step - self._first) / max(time.monotonic() - self._start, 1e-9)
    left = tqdm.format_interval((self._total - self._step) / rate) if rate > 0 else "?"
    line = f"step {self._step}/{self._total}  {rate:.3g} steps/s  {left} left  {self.note}".rstrip()
    return f"{line}  waiting for data" if phase == "data" else line

  def close(self) -> None:
    if self._bar is not None:
      self._bar.close()
