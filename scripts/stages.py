"""Runs commands one after another or side by side: time, memory and result of each; finished ones are skipped."""

import concurrent.futures
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from walt_t5x.files import storage
from walt_t5x.files.paths import AnyPath

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Stage:
  """One command of Python, ["python", ...].

  result: maps the last JSON line that the command printed (or {}) to the table's entry.
  environment: variables that it gets in addition.
  """

  name: str
  command: Sequence[str]
  result: Callable[[dict[str, Any]], str]
  environment: Mapping[str, str] = field(default_factory=dict)

  @property
  def line(self) -> str:
    """What a shell would run."""
    variables = (f"{name}={value}" for name, value in self.environment.items())
    return " ".join([*variables, shlex.join(self.command)])


# One stage, or lanes: sequences of stages that run side by side, each on its share of the cores.
Step = Stage | tuple[Sequence[Stage], ...]


@dataclass(frozen=True)
class Done:
  """Time, memory and result of a stage."""

  name: str
  seconds: float
  peak_mib: float
  result: str


def flat(steps: Sequence[Step]) -> list[Stage]:
  """All stages, lane after lane."""
  found = []
  for step in steps:
    found += [step] if isinstance(step, Stage) else [stage for lane in step for stage in lane]
  return found


def duration(steps: Sequence[Step], seconds: Callable[[Stage], float]) -> float:
  """Seconds of all steps, of lanes those of the longest one."""

  def one(step: Step) -> float:
    return (
      seconds(step) if isinstance(step, Stage) else max(sum(map(seconds, lane)) for lane in step)
    )

  return sum(map(one, steps))


class _Runner:
  """Runs stages and keeps the record of the finished ones."""

  def __init__(self, steps: Sequence[Step], record: AnyPath, expected: Callable[[Stage], float]):
    self._names = [stage.name for stage in flat(steps)]
    self._record, self._expected = record, expected
    self._lock = threading.Lock()
    self._running: set[subprocess.Popen] = set()
    self._failed = False
    self.finished: dict[str, Any] = {}
    self._before = storage.read_json(record) if storage.exists(record) else {}

  def lane(self, stages: Sequence[Stage], *, resume: bool, named: bool = False) -> bool:
    """Runs stages one after another; with `resume`, skips those at the start that have finished before.

    With `named`, every line of output begins with the stage.

    Returns whether all were skipped.
    """
    for stage in stages:
      place = f"{self._names.index(stage.name) + 1} of {len(self._names)}"
      print(f"\n== {place}: {stage.name} (about {self._expected(stage):.0f} s)\n$ {stage.line}")
      resume = resume and self._before.get(stage.name, {}).get("command") == stage.line
      if resume:
        print("finished before", flush=True)
        self.finished[stage.name] = self._before[stage.name]
        continue
      done, printed = self._run(stage, prefix=f"{stage.name} | " if named else "")
      with self._lock:
        entry = {"command": stage.line, "done": vars(done), "printed": printed}
        self.finished[stage.name] = entry
        storage.write_json(self._record, self.finished)
    return resume

  def lanes(self, lanes: Sequence[Sequence[Stage]], *, resume: bool) -> bool:
    """Runs lanes side by side, each on its share of the cores; the first failure stops the others."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

    def one(index: int) -> bool:
      mine = cores[index :: len(lanes)]
      if mine:
        os.sched_setaffinity(0, mine)  # Of this thread; its processes inherit it.
      return self.lane(lanes[index], resume=resume, named=True)

    with concurrent.futures.ThreadPoolExecutor(len(lanes)) as pool:
      futures = [pool.submit(one, index) for index in range(len(lanes))]
      try:
        for future in concurrent.futures.as_completed(futures):
          future.result()
      except BaseException:
        with self._lock:
          self._failed = True
          for process in self._running:
            process.terminate()
        raise
    return all(future.result() for future in futures)

  def _run(self, stage: Stage, *, prefix: str) -> tuple[Done, dict[str, Any]]:
    """Runs one stage; its output is printed, except lines of JSON, of which the last one is returned.

    Raises:
      SystemExit: if it fails, with its command.
    """
    started = time.monotonic()
    with self._lock:
      if self._failed:
        sys.exit(f"{stage.name} was not started, because another stage failed")
      process = subprocess.Popen(
        [sys.executable, *stage.command[1:]],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        # Side by side, every line names its stage.
        stderr=subprocess.STDOUT if prefix else None,
        text=True,
        env=os.environ | dict(stage.environment),
      )
      self._running.add(process)
    last = {}
    for line in process.stdout or ():
      if line.startswith("{"):
        last = json.loads(line)
      else:
        print(f"{prefix}{line}", end="", flush=True)
    # wait4 returns the peak of this child only; getrusage would include earlier children.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    with self._lock:
      self._running.discard(process)
    if status:
      sys.exit(f"{stage.name} failed (status {process.returncode}); its command:\n  {stage.line}")
    seconds = time.monotonic() - started
    return Done(stage.name, seconds, usage.ru_maxrss / 1024, stage.result(last)), last


def run_all(
  steps: Sequence[Step], record: AnyPath, expected: Callable[[Stage], float]
) -> tuple[list[Done], dict[str, dict[str, Any]]]:
  """Runs the steps in order, except stages that have finished.

  A stage has finished if `record` has its command, and if all stages before it have: a changed command also runs the
  later ones again. Stages of another lane are not before it.

  Args:
    steps: what to run; names of stages differ.
    record: JSON file of the finished stages, written after each.
    expected: seconds that a stage is expected to take.

  Returns:
    What each stage took, and its line of JSON by name.

  Raises:
    SystemExit: if a stage fails, with its command.
  """
  runner = _Runner(steps, record, expected)
  resume = True
  for step in steps:
    if isinstance(step, Stage):
      resume = runner.lane([step], resume=resume)
    else:
      resume = runner.lanes(step, resume=resume)
  return (
    [Done(**runner.finished[stage.name]["done"]) for stage in flat(steps)],
    {stage.name: runner.finished[stage.name]["printed"] for stage in flat(steps)},
  )
