"""How much of a job's time trained it, over all its starts, in the terms of Google's `ml-goodput-measurement`.

Each start has a small file, `<model_dir>/goodput/<milliseconds since 1970>.json`, which process 0 replaces at summaries
(object stores cannot append): the seconds of each phase, and how many had trained the steps before each checkpoint. A
restart repeats the steps after its checkpoint, so the seconds that trained them before are lost. Until the next start
begins, a job that has not reached its last step waits for its infrastructure. A start that ends before it has a state
is part of that time.

The library estimates `PROGRAM_STARTUP` from the first step of a start; here it is the compilation. `DATA_LOADING_SYNC`
is every wait for data, and evaluations are `CUSTOM_BADPUT_EVENTS`.
"""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from absl import logging

from walt_t5x.files import storage

FOLDER = "goodput"
# Phases of the main thread, and the library's names for their seconds.
STEP = "step"  # Dispatching, and waiting for the devices: the productive phase.
BADPUT = {
  "backend": "tpu_initialization",
  "init": "training_prep",  # Data pipeline, initial parameters, records.
  "restore": "unproductive_checkpoint_restore_time",
  "compile": "program_startup",
  "data": "data_loading_sync",  # Waiting for data.
  "eval": "custom_badput_events",  # Evaluations and samples.
  # Starting a checkpoint, and waiting for the previous one to be written.
  "checkpoint": "unproductive_checkpoint_save_time",
}
PHASES = (STEP, *BADPUT)
WASTED = "wasted_progress_from_disruption"
RECOVERY = "infrastructure_recovery_from_disruption"
OTHER = "other"
# Seconds between two writes of a record on a local disk, and at an address.
_PAUSES = {True: 1.0, False: 30.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
  """A start of a job.

  Attributes:
    began, written: when it and its record did, in seconds since 1970.
    first_step: the step that it continued from.
    step: the last step of the record.
    finished: whether it reached the job's last step.
    seconds: of each phase.
    saved: (step, seconds of `STEP` until then) of each checkpoint.
  """

  began: float
  written: float
  first_step: int
  step: int
  finished: bool
  seconds: Mapping[str, float]
  saved: Sequence[tuple[int, float]]

  def productive(self, until: int | None = None) -> float:
    """Seconds that trained the steps up to `until`; between two checkpoints, in proportion."""
    if until is None:
      return self.seconds[STEP]
    points = [(self.first_step, 0.0), *self.saved, (self.step, self.seconds[STEP])]
    steps, seconds = np.array(points, float).T
    return float(np.interp(until, steps, seconds))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Account:
  """The seconds of a job.

  Attributes:
    elapsed: from its first start to its newest record, without the time between a finished and a later start.
    productive: those of steps that count.
    badput: the rest, by the library's names.
  """

  elapsed: float
  productive: float
  badput: Mapping[str, float]

  @property
  def share(self) -> float:
    """The job's goodput, from 0 to 1."""
    return self.productive / max(self.elapsed, 1e-9)


def account(starts: Sequence[Start]) -> Account:
  """The account of a job from its starts, oldest first."""
  elapsed = productive = 0.0
  badput = dict.fromkeys((*BADPUT.values(), WASTED, RECOVERY, OTHER), 0.0)
  for n, start in enumerate(starts):
    later = starts[n + 1 :]
    kept = start.productive(min((s.first_step for s in later), default=None))
    productive += kept
    badput[WASTED] += start.productive() - kept
    for phase, name in BADPUT.items():
      badput[name] += start.seconds[phase]
    elapsed += start.written - start.began
    if later and not start.finished:
      gap = max(0.0, later[0].began - start.written)  # Clocks of two machines may differ.
      badput[RECOVERY] += gap
      elapsed += gap
  badput[OTHER] = max(0.0, elapsed - productive - sum(badput.values()))
  return Account(elapsed=elapsed, productive=productive, badput=badput)


def read(model_dir: storage.PathLike) -> list[Start]:
  """The recorded starts of a run, oldest first, without those that cannot be read."""
  folder, found = storage.join(model_dir, FOLDER), []
  for name in storage.names(folder):
    if name.endswith(".json"):
      try:
        found.append(Start(**storage.read_json(storage.join(folder, name))))
      except (TypeError, ValueError) as error:
        logging.warning("%s cannot be read: %s", storage.join(folder, name), error)
  return sorted(found, key=lambda start: start.began)


class Goodput:
  """Seconds per phase of the main thread; every moment belongs to exactly one phase. Tests replace the clocks.

  Args:
    before: seconds of "backend" until now.
  """

  def __init__(
    self,
    *,
    before: float = 0.0,
    clock: Callable[[], float] = time.monotonic,
    date: Callable[[], float] = time.time,
  ):
    self._clock, self._date = clock, date
    self._spent = dict.fromkeys(PHASES, 0.0) | {"backend": before}
    self._began = date() - before
    self._since, self.phase = clock(), "init"
    self._lock = threading.Lock()  # Another thread writes the record.
    self._model_dir: str | None = None
    self._earlier: Sequence[Start] = ()
    self._first_step, self._saved = 0, list[tuple[int, float]]()
    self._written = -float("inf")

  def enter(self, phase: str) -> None:
    """Starts `phase`."""
    with self._lock:
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
    """Seconds of each phase since the start began."""
    with self._lock:
      now = self._clock() - self._since
      return self._spent | {self.phase: self._spent[self.phase] + now}

  def scalars(self) -> dict[str, float]:
    """The start's seconds as metrics, the fraction of them spent training, and the job's while it is recorded."""
    spent = self.seconds()
    metrics = {f"goodput/{phase}_seconds": seconds for phase, seconds in spent.items()}
    metrics["goodput/share"] = spent[STEP] / max(sum(spent.values()), 1e-9)
    if self._model_dir is not None:
      job = account([*self._earlier, self._start(self._first_step, finished=False)])
      metrics["goodput/job_share"] = job.share
      metrics |= {f"badput/{name}_seconds": seconds for name, seconds in job.badput.items()}
    return metrics

  def record(self, model_dir: str, first_step: int) -> None:
    """Starts the record of this start, which continues from `first_step`."""
    self._earlier = read(model_dir)
    self._model_dir, self._first_step = model_dir, first_step
    self.write(first_step)

  def saved(self, step: int) -> None:
    """A checkpoint of this step is being written: no start from it loses what was spent until now."""
    self._saved.append((step, self.seconds()[STEP]))

  def write(self, step: int, *, finished: bool = False, wait: bool = False) -> None:
    """Replaces the record, if there is one; with `wait`, not sooner than some seconds after the last time."""
    folder, now = self._model_dir, self._clock()
    if folder is None or (wait and now - self._written < _PAUSES[storage.is_local(folder)]):
      return
    self._written = now
    path = storage.join(folder, FOLDER, f"{1000 * self._began:.0f}.json")
    try:
      storage.write_json(path, dataclasses.asdict(self._start(step, finished=finished)))
    except OSError as error:  # The next one may succeed.
      logging.warning("%s could not be written: %s", path, error)

  def _start(self, step: int, *, finished: bool) -> Start:
    return Start(
      began=self._began,
      written=self._date(),
      first_step=self._first_step,
      step=step,
      finished=finished,
      seconds=self.seconds(),
      saved=list(self._saved),
    )
