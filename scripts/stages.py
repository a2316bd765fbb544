"""Runs commands one after another: times, memory and results of each; finished ones are not run again."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class Done:
  """Time, memory and result of a stage."""

  name: str
  seconds: float
  peak_mib: float
  result: str


def run(stage: Stage) -> tuple[Done, dict[str, Any]]:
  """Runs one stage; its output is printed, except lines of JSON, of which the last one is returned.

  Raises:
    SystemExit: if it fails, with its command.
  """
  started = time.monotonic()
  process = subprocess.Popen(
    [sys.executable, *stage.command[1:]],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
    env=os.environ | dict(stage.environment),
  )
  last = {}
  for line in process.stdout:
    if line.startswith("{"):
      last = json.loads(line)
    else:
      print(line, end="", flush=True)
  # wait4 returns the peak of this child only; getrusage would include earlier children.
  _, status, usage = os.wait4(process.pid, 0)
  if status:
    sys.exit(
      f"{stage.name} failed (status {os.waitstatus_to_exitcode(status)}); its command:\n"
      f"  {stage.line}"
    )
  seconds = time.monotonic() - started
  return Done(stage.name, seconds, usage.ru_maxrss / 1024, stage.result(last)), last


def run_all(
  stages: Sequence[Stage], record: Path, expected: Callable[[Stage], int]
) -> tuple[list[Done], dict[str, dict[str, Any]]]:
  """Runs the stages in order, except those that have finished.

  A stage has finished if `record` has its command, and if all stages before it have: a changed command also runs the
  later ones again.

  Args:
    stages: what to run; names differ.
    record: JSON file of the finished stages, written after each.
    expected: seconds that a stage is expected to take.

  Returns:
    What each stage took, and its line of JSON by name.
  """
  try:
    before = json.loads(record.read_text(encoding="utf-8"))
  except FileNotFoundError:
    before = {}
  finished: dict[str, Any] = {}
  for number, stage in enumerate(stages, 1):
    print(f"\n== {number} of {len(stages)}: {stage.name} (about {expected(stage)} s)")
    print(f"$ {stage.line}", flush=True)
    if before.get(stage.name, {}).get("command") == stage.line:
      print("finished before")
      finished[stage.name] = before[stage.name]
      continue
    before = {}
    done, printed = run(stage)
    finished[stage.name] = {"command": stage.line, "done": vars(done), "printed": printed}
    partial = record.with_suffix(".partial")
    partial.write_text(json.dumps(finished, indent=1) + "\n", encoding="utf-8")
    partial.replace(record)
  return (
    [Done(**finished[stage.name]["done"]) for stage in stages],
    {stage.name: finished[stage.name]["printed"] for stage in stages},
  )
