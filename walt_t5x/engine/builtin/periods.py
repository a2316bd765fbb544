"""The steps at which a run does anything other than training."""

import dataclasses
from collections.abc import Set


@dataclasses.dataclass(frozen=True, kw_only=True)
class Periods:
  """Periods count absolute steps, so that a restart does not shift them; 0 disables one. All end with the last step.

  Attributes:
    total: the last step.
    stats: steps per summary.
    evaluate: steps between evaluations.
    save: steps between checkpoints.
    save_steps: additional steps to save at.
    collect: steps between runs of Python's garbage collector.
  """

  total: int
  stats: int
  evaluate: int = 0
  save: int = 0
  save_steps: Set[int] = frozenset()
  collect: int = 0

  def next_event(self, step: int) -> int:
    """The first step after `step` that has an event."""
    periods = (self.stats, self.evaluate, self.save, self.collect)
    ends = [(step // period + 1) * period for period in periods if period]
    return min([*ends, *(s for s in self.save_steps if s > step), self.total])

  def ends_summary(self, step: int) -> bool:
    """Whether a summary ends after this many steps."""
    return self._due(self.stats, step)

  def evaluates(self, step: int, *, last: bool) -> bool:
    """Whether to evaluate after this many steps; `last` if a run is stopped there."""
    return self.evaluate > 0 and (last or self._due(self.evaluate, step))

  def saves(self, step: int, *, last: bool) -> bool:
    """Whether to write a checkpoint after this many steps."""
    return last or self._due(self.save, step) or step in self.save_steps

  def collects(self, step: int, *, last: bool) -> bool:
    """Whether to collect garbage after this many steps."""
    return self.collect > 0 and (last or self._due(self.collect, step))

  def _due(self, period: int, step: int) -> bool:
    return step == self.total or (period > 0 and step % period == 0)
