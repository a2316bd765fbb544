"""How the built-in engine monitors a run. Bound by gin files; T5X has its own mechanisms and ignores it."""

import dataclasses
from collections.abc import Mapping, Sequence

# Phases of a start, in their order -> seconds that each may take without progress.
START_LIMITS = {
  "backend": 900.0,
  "lock": 900.0,
  "data": 1800.0,
  "restore": 3600.0,
  "initialize": 1800.0,
  "record": 900.0,
  "first_evaluation": 3600.0,
  "first_save": 1800.0,
  "compile": 7200.0,
  "first_batch": 1800.0,
}
STEP = "step"


@dataclasses.dataclass(frozen=True)
class RunSettings:
  """Settings that T5X's `train` has no argument for, kept apart so that one gin file serves both engines.

  The launcher passes the bound settings to the built-in `train`. Under T5X the bindings parse and have no effect.

  Args:
    watchdog_seconds: after this time without a finished step (or evaluation batch, or checkpoint), the process writes
      the stacks of all its threads and exits with `exits.HUNG`. Must exceed the longest evaluation batch or checkpoint.
      None disables it.
    start_limits: the same for phases of the start, which replace those of `START_LIMITS`. None for a phase disables its
      limit; None for the mapping disables all.
    max_nonfinite_steps: a step whose loss or gradient is not finite is skipped: parameters, optimizer and average
      stay unchanged. This many consecutive ones end the run with `exits.NOT_FINITE`. None disables the limit.
    max_steps_in_flight: steps that the host may be ahead of the devices; it then waits until they have finished half
      of them. More hides more of the host's work; fewer makes a preempted run save sooner.
    local_checkpoints: a folder on a disk, or in the memory (/dev/shm), of each host, for checkpoints that a restart
      reads if they are newer than those of the run's folder (`builtin.local_checkpoints`); None disables them.
    local_period: steps between local checkpoints.
    keep_every: checkpoints at multiples of this step are never deleted, regardless of `keep`. None disables it.
    profile_steps: (first, last + 1) step to write a profiler trace of, or None. A trace of the next steps can also
      be requested during the run: `echo 5 > MODEL_DIR/profile_now`.
    peak_flops_per_device: for the utilization metric if the device is not in the table of `walt_t5x.engine.flops`.

  Raises:
    ValueError: a setting is out of range.
  """

  watchdog_seconds: float | None = 1800.0
  start_limits: Mapping[str, float | None] | None = dataclasses.field(default_factory=dict)
  max_nonfinite_steps: int | None = 20
  max_steps_in_flight: int = 4
  local_checkpoints: str | None = None
  local_period: int | None = None
  keep_every: int | None = None
  profile_steps: Sequence[int] | None = None
  peak_flops_per_device: float | None = None

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if isinstance(value, int | float) and value <= 0:
        raise ValueError(f"RunSettings.{field.name}: got {value}, expected more than 0.")
    if (self.local_checkpoints is None) != (self.local_period is None):
      raise ValueError(
        f"RunSettings: got local_checkpoints={self.local_checkpoints!r} and local_period={self.local_period}, expected "
        "both, or neither."
      )
    for phase, limit in (self.start_limits or {}).items():
      if phase not in START_LIMITS:
        raise ValueError(
          f"RunSettings.start_limits: got {phase!r}, expected phases from {', '.join(START_LIMITS)}."
        )
      if limit is not None and limit <= 0:
        raise ValueError(
          f"RunSettings.start_limits: got {limit} for {phase!r}, expected more than 0, or None."
        )
    steps = self.profile_steps
    if steps is not None and (len(steps) != 2 or not 0 <= steps[0] < steps[1]):
      raise ValueError(
        f"RunSettings.profile_steps: got {steps}, expected (first, last + 1), or None."
      )

  def limits(self) -> dict[str, float]:
    """Seconds without progress of each phase of the start, and of a `STEP`, where they are limited."""
    start = {} if self.start_limits is None else {**START_LIMITS, **self.start_limits}
    limits = {**start, STEP: self.watchdog_seconds}
    return {phase: limit for phase, limit in limits.items() if limit is not None}
