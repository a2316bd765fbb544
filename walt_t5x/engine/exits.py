"""How a run ends before its last step: exit codes, SIGTERM and Ctrl-C.

  0  the run reached its last step, or an action stopped it
  1  an error; the message describes it (bad configuration, foreign checkpoint, unreadable data, ...)
 65  NOT_FINITE: too many consecutive steps without a finite loss and gradient. A restart repeats them.
 70  HUNG: no progress for longer than a limit of `RunSettings` (`engine.watchdog`). A restart resumes.
 75  PREEMPTED: SIGTERM was received and everything is saved. A restart resumes and loses nothing.
130  INTERRUPTED: Ctrl-C (SIGINT) was received and everything is saved. A restart resumes and loses nothing.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import jax
from absl import logging
from jax.experimental import multihost_utils

from walt_t5x.files import locks

NOT_FINITE = 65
HUNG = 70
PREEMPTED = 75
INTERRUPTED = 128 + signal.SIGINT
# The request of the active `preemption_notice`, if any.
_ACTIVE: list["StopRequest"] = []


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
  """Whether the run should stop before a step: `f(step)`.

  Attributes:
    signals: the received signals.
    trained: whether a step was taken, so that there is something to save; the loop sets it.
  """

  def __init__(self) -> None:
    self.signals: list[int] = []
    self.trained = False

  def __call__(self, step: int) -> bool:
    if jax.distributed.is_initialized():
      return multihost_utils.reached_preemption_sync_point(step)
    return bool(self.signals)

  def error(self, message: str) -> Preempted:
    """The error that ends the run."""
    return (Interrupted if signal.SIGINT in self.signals else Preempted)(message)


@contextlib.contextmanager
def preemption_notice(*, at_once: bool = False) -> Iterator[StopRequest]:
  """Listens for SIGTERM and SIGINT inside the block; inside another such block, yields its request.

  A second SIGINT ends the process at once. A single process notices on its own. Several processes coordinate through
  JAX's coordination service, which reports a SIGTERM to any of them: all stop after the same step, which none of them
  has completed yet. They call the request once per step.

  Args:
    at_once: until `StopRequest.trained`, either signal ends the process at once, even if it hangs. For a program with a
      single process.
  """
  if threading.current_thread() is not threading.main_thread():  # Has no signals.
    yield StopRequest()
    return
  if _ACTIVE:
    yield _ACTIVE[0]
    return
  request = StopRequest()
  several = jax.distributed.is_initialized()

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
  threading.Thread(target=_announce, args=(received, request, at_once), daemon=True).start()
  _ACTIVE.append(request)
  try:
    yield request
  finally:
    _ACTIVE.clear()
    signal.set_wakeup_fd(old)
    os.close(sent)  # Ends the thread.
    for number, handler in before.items():
      signal.signal(number, handler)


def _announce(received: int, request: StopRequest, at_once: bool) -> None:
  """Reports each signal whose number arrives in the pipe, and exits as `preemption_notice` says."""
  interrupts = 0
  codes = {int(signal.SIGTERM): PREEMPTED, int(signal.SIGINT): INTERRUPTED}
  with open(received, "rb", buffering=0) as numbers:
    while byte := numbers.read(1):
      if byte[0] in codes and at_once and not request.trained:
        name = signal.Signals(byte[0]).name
        logging.warning(
          "%s before the first step: nothing is to be saved; this process ends.", name
        )
        locks.leave(codes[byte[0]])
      elif byte[0] == signal.SIGTERM:
        logging.warning("SIGTERM: saving and stopping after the current step.")
      elif byte[0] == signal.SIGINT and interrupts:
        locks.leave(INTERRUPTED)
      elif byte[0] == signal.SIGINT:
        interrupts += 1
        logging.warning(
          "Ctrl-C: saving and stopping after the current step; a second Ctrl-C ends the run at once."
        )
