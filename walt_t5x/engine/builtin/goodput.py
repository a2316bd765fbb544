"""Where the time of a run goes, as its main thread spends it."""

import contextlib
import time
from collections.abc import Callable, Iterator

PHASES = ("init", "compile", "step", "data", "eval", "checkpoint")


class Goodput:
  """Seconds a phase; every moment belongs to exactly one.

      init        until the first compilation: data pipeline, restoring or initialising
      compile     compiling the training step
      step        training: dispatching, and waiting for the devices
      data        waiting for rows
      eval        evaluations and samples
      checkpoint  starting a checkpoint, and waiting where the one before is not written yet

  Args:
    clock: seconds, for tests.
  """

  def __init__(self, clock: Callable[[], float] = time.monotonic):
    self._clock = clock
    self._spent: dict[str, float] = dict.fromkeys(PHASES, 0.0)
    self._since = clock()
    self.phase = "init"

  def enter(self, phase: str) -> None:
    """From now on it is `phase`."""
    now = self._clock()
    self._spent[self.phase] += now - self._since
    self._since, self.phase = now, phase

  @contextlib.contextmanager
  def within(self, phase: str) -> Iterator[None]:
    """It is `phase` inside the block, and what it was before after it."""
    before = self.phase
    self.enter(phase)
    try:
      yield
    finally:
      self.enter(before)

  def seconds(self) -> dict[str, float]:
    """Seconds of each phase since the process began to train."""
    self.enter(self.phase)
    return dict(self._spent)

  def scalars(self) -> dict[str, float]:
    """The seconds as metrics, and the share of all time that was training."""
    spent = self.seconds()
    share = spent["step"] / max(sum(spent.values()), 1e-9)
    return {f"goodput/{k}_seconds": v for k, v in spent.items()} | {"goodput/share": share}
