"""How a run ends before its last step: exit codes, SIGTERM, Ctrl-C, and a watchdog for hangs.

  0  the run reached its last step, or an action stopped it
  1  an error; the message describes it (bad configuration, foreign checkpoint, unreadable data, ...)
 65  NOT_FINITE: too many consecutive steps without a finite loss and gradient. A restart repeats them.
 70  HUNG: no progress for `RunSettings.watchdog_seconds`; the stacks are in the log. A restart resumes.
 75  PREEMPTED: SIGTERM was received and everything is saved. A restart resumes and loses nothing.
130  INTERRUPTED: Ctrl-C (SIGINT) was received and everything is saved. A restart resumes and loses nothing.
"""

import contextlib
import dataclasses
import faulthandler
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from absl import logging
from jax.experimental import multihost_utils

from walt_t5x.files import locks, storage

NOT_FINITE = 65
HUNG = 70
PREEMPTED = 75
INTERRUPTED = 128 + signal.SIGINT


class TrainingStopped(RuntimeError):
  """The run ended early by design."""

  exit_code = 1


class Preempted(TrainingStopped):
  """SIGTERM was received; the state is saved if checkpoints are enabled."""

  exit_code = PREEMPTED


class Interrupted(Preempted):
  """Ctrl-C (SIGINT) was received; the state is saved if checkpoints are enabled."""

  exit_code = INTERRUPTED


class NotFinite(TrainingStopped):
  """Too many consecutive steps were skipped."""

  exit_code = NOT_FINITE

  def __init__(self, last_good_step: int, skipped: int):
    super().__init__(
      f"The loss or the gradient was not finite for {skipped} consecutive steps; the last good step is "
      f"{last_good_step}. The same command would read the same examples again: lower the learning rate, inspect the "
      "data, or raise RunSettings.max_nonfinite_steps."
    )
    self.last_good_step = last_good_step


class StopRequest:
  """Whether the run should stop before a step: `f(step)`; the received signals are in `signals`."""

  def __init__(self) -> None:
    self.signals: list[int] = []

  def __call__(self, step: int) -> bool:
    if jax.process_count() > 1:
      return multihost_utils.reached_preemption_sync_point(step)
    return bool(self.signals)

  def error(self, message: str) -> Preempted:
    """The error that ends the run."""
    return (Interrupted if signal.SIGINT in self.signals else Preempted)(message)


@contextlib.contextmanager
def preemption_notice() -> Iterator[StopRequest]:
  """Listens for SIGTERM and SIGINT inside the block. A second SIGINT ends the process at once.

  A single process notices on its own. Several processes coordinate through JAX's coordination service, which reports a
  SIGTERM to any of them: all stop after the same step, which none of them has completed yet. They call the request
  once per step.
  """
  request = StopRequest()
  if threading.current_thread() is not threading.main_thread():  # Has no signals.
    yield request
    return
  several = jax.process_count() > 1

  def handle(signum: int, frame: Any) -> None:
    request.signals.append(signum)
    if several:
      os.kill(os.getpid(), signal.SIGTERM)  # For the coordination service.

  before = {signal.SIGINT: signal.signal(signal.SIGINT, handle)}
  if not several:
    before[signal.SIGTERM] = signal.signal(signal.SIGTERM, handle)
  # Python calls a handler between two of its instructions, so after a compilation; the thread answers immediately.
  received, sent = os.pipe()
  os.set_blocking(sent, False)
  old = signal.set_wakeup_fd(sent)
  threading.Thread(target=_announce, args=(received,), daemon=True).start()
  try:
    yield request
  finally:
    signal.set_wakeup_fd(old)
    os.close(sent)  # Ends the thread.
    for number, handler in before.items():
      signal.signal(number, handler)


def _announce(received: int) -> None:
  """Reports each signal whose number arrives in the pipe, and exits at the second SIGINT."""
  interrupts = 0
  with open(received, "rb", buffering=0) as numbers:
    while byte := numbers.read(1):
      if byte[0] == signal.SIGTERM:
        logging.warning("SIGTERM: saving and stopping after the current step.")
      elif byte[0] == signal.SIGINT and interrupts:
        locks.leave(INTERRUPTED)
      elif byte[0] == signal.SIGINT:
        interrupts += 1
        logging.warning(
          "Ctrl-C: saving and stopping after the current step; a second Ctrl-C ends the run at once."
        )


@dataclasses.dataclass(kw_only=True)
class Watchdog:
  """Ends the process after too long without progress.

  A collective that waits for a lost host, a reader that waits for a failed disk and a device that does not respond
  look the same to the process: the main thread does not return. Another thread therefore watches it. Time in which that
  thread did not run either does not count.

  Args:
    seconds: the time limit; None disables the watchdog.
    model_dir: folder for `hang_step<n>_host<i>.txt` with the stacks, which also go to stderr.
    phase: the phase of the main thread (`Goodput.phase`), for the message.
    on_hang: `f(step, seconds)`, called a few seconds before the exit, to write a metric.
  """

  seconds: float | None
  model_dir: str
  phase: Callable[[], str]
  on_hang: Callable[[int, float], None]

  def __post_init__(self) -> None:
    self._step, self._last = 0, time.monotonic()
    self._stop = threading.Event()
    self._thread: threading.Thread | None = None

  def start(self, step: int) -> None:
    """Starts to watch."""
    self.beat(step)
    if self.seconds is not None and self._thread is None:
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
    assert self.seconds is not None
    tick, before = min(self.seconds / 10, 5.0), time.monotonic()
    while not self._stop.wait(tick):
      now = time.monotonic()
      # Of a process that was suspended (SIGSTOP, a frozen container or machine) no progress is expected.
      suspended, before = now - before - tick, now
      if suspended > tick:
        self._last = min(now, self._last + suspended)
      silent = now - self._last
      if silent > self.seconds and not self._stop.is_set():
        self._report(silent)
        locks.leave(HUNG)  # Not sys.exit: the main thread would have to end first.
        return

  def _report(self, silent: float) -> None:
    logging.error(
      "No progress for %.0f s after step %d (limit %.0f s, while: %s). Stacks of all threads follow; then this "
      "process exits with code %d. Start the same command again to resume from the newest checkpoint.",
      silent,
      self._step,
      self.seconds,
      self.phase(),
      HUNG,
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
    head = f"no progress for {silent:.0f} s after step {self._step}, while: {self.phase()}\n"
    storage.write(storage.join(self.model_dir, name), head + stacks)
    self.on_hang(self._step, silent)
