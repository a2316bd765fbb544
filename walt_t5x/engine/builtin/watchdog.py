"""Ends a run that hangs: stacks of all threads, a line in the metrics, a documented exit code."""

import faulthandler
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable

import jax
from absl import logging
from etils import epath

from walt_t5x.engine import exits


class Watchdog:
  """Ends the process after too long without progress.

  A collective that waits for a lost host, a reader that waits for a failed disk and a device that does not respond
  look the same to the process: the main thread does not return. Another thread therefore watches it.

  Args:
    seconds: the time limit; None disables the watchdog.
    model_dir: folder for `hang_step<n>_host<i>.txt` with the stacks, which also go to stderr.
    phase: the phase of the main thread (`Goodput.phase`), for the message.
    on_hang: `f(step, seconds)`, called a few seconds before the exit, to write a metric.
  """

  def __init__(
    self,
    seconds: float | None,
    *,
    model_dir: str,
    phase: Callable[[], str],
    on_hang: Callable[[int, float], None],
  ):
    self._limit, self._model_dir, self._phase = seconds, model_dir, phase
    self._on_hang = on_hang
    self._step, self._last = 0, time.monotonic()
    self._stop = threading.Event()
    self._thread: threading.Thread | None = None

  def start(self, step: int) -> None:
    """Starts to watch."""
    self.beat(step)
    if self._limit is not None and self._thread is None:
      self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
      self._thread.start()

  def beat(self, step: int | None = None) -> None:
    """Reports progress; `step` is the last finished one, if it changed."""
    self._last = time.monotonic()
    if step is not None:
      self._step = step

  def stop(self) -> None:
    self._stop.set()

  def _watch(self) -> None:
    assert self._limit is not None
    while not self._stop.wait(min(self._limit / 10, 5.0)):
      silent = time.monotonic() - self._last
      if silent > self._limit and not self._stop.is_set():
        self._report(silent)
        os._exit(exits.HUNG)  # Not sys.exit: the main thread would have to end first.
        return

  def _report(self, silent: float) -> None:
    logging.error(
      "No progress for %.0f s after step %d (limit %.0f s, while: %s). Stacks of all threads follow; then this "
      "process exits with code %d. Start the same command again to resume from the newest checkpoint.",
      silent,
      self._step,
      self._limit,
      self._phase(),
      exits.HUNG,
    )
    faulthandler.dump_traceback(file=sys.__stderr__ or sys.stderr, all_threads=True)
    # Storage may be the cause of the hang, so the rest runs in a separate thread with a short time limit.
    rest = threading.Thread(target=self._record, args=(silent,), daemon=True)
    rest.start()
    rest.join(5.0)

  def _record(self, silent: float) -> None:
    with tempfile.TemporaryFile("w+") as file:
      faulthandler.dump_traceback(file=file, all_threads=True)
      file.seek(0)
      stacks = file.read()
    name = f"hang_step{self._step}_host{jax.process_index()}.txt"
    head = f"no progress for {silent:.0f} s after step {self._step}, while: {self._phase()}\n"
    (epath.Path(self._model_dir) / name).write_text(head + stacks)
    self._on_hang(self._step, silent)
