"""Ends a run that makes no progress, with a time limit for each phase of its start and for the steps after it."""

import dataclasses
import faulthandler
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType

import jax
from absl import logging

from walt_t5x.engine.exits import HUNG
from walt_t5x.engine.run_settings import STEP
from walt_t5x.files import locks, storage

_LONGEST_TICK = 5.0


@dataclasses.dataclass(kw_only=True)
class Watchdog:
  """Ends the process after too long without progress, from `start` to `stop`, or inside a `with` block.

  A collective that waits for a lost host, a reader that waits for a failed disk and a device that does not respond
  look the same to the process: the main thread does not return. Another thread therefore watches it. Time in which that
  thread did not run either does not count.

  Args:
    limits: `RunSettings.limits()`.
    model_dir: folder for `hang_<phase>_host<i>.txt` with the stacks, which also go to stderr; None writes no file.

  Attributes:
    activity: what the main thread does during the steps (`Goodput.phase`), for the message.
    on_hang: `f(step, seconds)`, called a few seconds before the exit, to write a metric.
  """

  limits: Mapping[str, float]
  model_dir: str | None
  activity: Callable[[], str] = lambda: ""
  on_hang: Callable[[int, float], None] = lambda step, seconds: None

  def __post_init__(self) -> None:
    self._phase, self._step, self._last = "", 0, time.monotonic()
    self._made = self._last
    self._stop = threading.Event()
    self._thread: threading.Thread | None = None

  def __enter__(self) -> "Watchdog":
    self.start()
    return self

  def __exit__(
    self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
  ) -> None:
    self.stop()

  def start(self, step: int = 0) -> None:
    """Starts to watch, if there is a limit; `step` is the last finished one."""
    self.beat(step)
    if self.limits and self._thread is None:
      self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
      self._thread.start()

  def age(self) -> float:
    """Seconds since this watchdog was made."""
    return time.monotonic() - self._made

  def enter(self, phase: str) -> None:
    """A phase of the start begins, or the first `STEP`."""
    self.beat()  # Before the limit changes, which may become shorter.
    self._phase = phase

  def beat(self, step: int | None = None) -> None:
    """Reports progress; `step` is the last finished one, if it changed."""
    self._last = time.monotonic()
    if step is not None:
      self._step = step

  def stop(self) -> None:
    self._stop.set()

  def _watch(self) -> None:
    tick, before = min(_LONGEST_TICK, min(self.limits.values()) / 10), time.monotonic()
    while not self._stop.wait(tick):
      limit, now = self.limits.get(self._phase), time.monotonic()
      # Of a process that was suspended (SIGSTOP, a frozen container or machine) no progress is expected.
      suspended, before = now - before - tick, now
      if suspended > tick:
        self._last = min(now, self._last + suspended)
      silent = now - self._last
      if limit is not None and silent > limit and not self._stop.is_set():
        self._report(silent, limit)
        locks.leave(HUNG)  # Not sys.exit: the main thread would have to end first.

  def _where(self) -> str:
    if self._phase == STEP:
      return f"after step {self._step}, while: {self.activity()}"
    return f"in the phase {self._phase!r} of the start"

  def _setting(self, limit: float) -> str:
    """How to raise the limit."""
    if self._phase == STEP:
      return f"--gin.WATCHDOG_SECONDS={2 * limit:g}, RunSettings.watchdog_seconds"
    longer = {self._phase: 2 * limit}
    return f'--gin.START_LIMITS="{longer}", RunSettings.start_limits'

  def _report(self, silent: float, limit: float) -> None:
    logging.error(
      "No progress for %.0f s %s. The limit is %.0f s; to raise it: %s. Stacks of all threads follow; then this "
      "process exits with code %d. Start the same command again to resume from the newest checkpoint.",
      silent,
      self._where(),
      limit,
      self._setting(limit),
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
    head = f"no progress for {silent:.0f} s {self._where()}\n"
    if self.model_dir is not None:
      # JAX tells the number of the host once it has a backend.
      host = socket.gethostname() if self._phase == "backend" else jax.process_index()
      phase = f"{STEP}{self._step}" if self._phase == STEP else self._phase
      storage.write(storage.join(self.model_dir, f"hang_{phase}_host{host}.txt"), head + stacks)
    self.on_hang(self._step, silent)
