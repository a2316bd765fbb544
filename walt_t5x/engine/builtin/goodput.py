"""How the main thread of a run spends its time."""

import contextlib
import time
from collections.abc import Callable, Iterator

PHASES = ("init", "compile", "step", "data", "eval", "checkpoint")


class Goodput:
  """Seconds per phase; every moment belongs to exactly one phase.

      init        until the first compilation: data pipeline, restoring or initializing
      compile     compiling the training step
      step        training: dispatching, and waiting for the devices
      data        waiting for data
      eval        evaluations and samples
      checkpoint  starting a checkpoint, and waiting for the previous one to be written

  Args:
    clock: returns seconds; replaced in tests.
  """

  def __init__(self, clock: Callable[[], float] = time.monotonic):
    self._clock = clock
    self._spent: dict[str, float] = dict.fromkeys(PHASES, 0.0)
    self._since = clock()
    self.phase = "init"

  def enter(self, phase: str) -> None:
    """Starts `phase`."""
    now = self._clock()
    self._spent[self.phase] += now - self._since
    self._since, self.phase = now, phase

  @contextlib.contextmanager
  def within(self, phase: str) -> Iterator[None]:
    """Enters `phase` for the duration of the block, then returns to the previous phase."""
    before = self.phase
    self.enter(phase)
    try:
      yield
    finally:
      self.enter(before)

  def seconds(self) -> dict[str, float]:
    """Seconds of each phase since the process started training."""
    self.enter(self.phase)
    return dict(self._spent)

  def scalars(self) -> dict[str, float]:
    """The seconds as metrics, and the fraction of the total time spent training."""
    spent = self.seconds()
    share = spent["step"] / max(sum(spent.values()), 1e-9)
    return {f"goodput/{k}_seconds": v for k, v in spent.items()} | {"goodput/share": share}
