"""Kills jobs and their processes at random times: what the benchmarks of preprocessing and curation share."""

import dataclasses
import hashlib
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import beam_runners

WORDS = {True: "identical", False: "DIFFERS"}
_DECODER_MARK = "walt_t5x.media.isolation"
# (inode, time of the last change)
Stamp = tuple[int, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
  """A kind of kills.

  Attributes:
    of: the process that is killed, in words.
    runner: flags of the job; None for a pool of external workers.
    mark: "launcher", "worker" or "decoder".
    below: whether the descendants of the launcher are also killed.
    late: whether kills are sent only after the last file.
  """

  of: str
  runner: tuple[str, ...] | None = beam_runners.IN_PROCESS
  mark: str = "launcher"
  below: bool = True
  late: bool = False

  def victims(self, job: beam_runners.Process) -> list[int]:
    """The processes one of which is killed."""
    if self.mark == "launcher":
      return [job.pid]
    if self.mark == "decoder":
      found = beam_runners.descendants(job.pid).items()
      return sorted(pid for pid, name in found if _DECODER_MARK in name)
    # The workers of a pool are its descendants, and it is a descendant of this process.
    return beam_runners.workers_of(job.pid if self.runner else os.getpid())


LAUNCHER = Kind(of="the launcher, its threads are the workers")
WORKER = Kind(of="one of two worker processes", runner=beam_runners.TWO_WORKERS, mark="worker")
ORPHANS = Kind(
  of="the launcher of two workers, which keep running", runner=beam_runners.TWO_WORKERS, below=False
)
POOL = Kind(of="a worker of an external pool", runner=None, mark="worker")


def tree(output: Path, pattern: str = "*") -> dict[str, str]:
  """sha256 of every file whose name matches."""
  return {
    str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(output.rglob(pattern))
    if path.is_file()
  }


def stamp(path: Path) -> Stamp | None:
  """The stamp of a file; None if there is none."""
  try:
    stat = path.stat()
  except FileNotFoundError:
    return None
  return stat.st_ino, stat.st_mtime_ns


class Watch:
  """Polls the files of a folder that match a pattern, 50 times per second, and counts those that are replaced."""

  def __init__(self, output: Path, pattern: str):
    self._output, self._pattern, self._seen = output, pattern, {}
    self.replaced = 0
    self._stop = threading.Event()
    self._thread = threading.Thread(target=self._run, daemon=True)

  def __enter__(self) -> "Watch":
    self._thread.start()
    return self

  def __exit__(self, *unused) -> None:
    self._stop.set()
    self._thread.join()

  def __len__(self) -> int:
    return len(self._seen)

  def forget(self) -> None:
    """Forgets files that do not exist any more."""
    self._seen = {path: found for path, found in self._seen.items() if Path(path).exists()}

  def _run(self) -> None:
    while not self._stop.wait(0.02):
      for path in self._output.glob(self._pattern):
        now = stamp(path)
        if now and self._seen.setdefault(str(path), now) != now:
          self._seen[str(path)] = now
          self.replaced += 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
  """How long the undisturbed run took, which decides the times of kills.

  Attributes:
    start: seconds until the first file.
    file: seconds per file.
    files: their number.
    end: seconds from the last file to the end.
    total: seconds in all.
  """

  start: float
  file: float
  files: int
  end: float
  total: float


def peaceful_run(argv: Sequence[str], output: Path, log: Path, *, pattern: str) -> Pace:
  """Runs a job to its end."""
  with Watch(output, pattern) as watch:
    job = beam_runners.Process(argv, log)
    first = last = count = 0
    while job.running:
      if len(watch) > count:
        count, last = len(watch), time.monotonic() - job.started
        first = first or last
      time.sleep(0.02)
    total = job.must_finish()
  return Pace(
    start=first,
    file=(last - first) / max(1, count - 1),
    files=count,
    end=max(0.0, total - last),
    total=total,
  )


def killed_run(
  argv: Sequence[str],
  output: Path,
  log: Path,
  *,
  kind: Kind,
  kills: int,
  pace: Pace,
  pattern: str,
  complete: Callable[[Path], dict[str, Any]],
  draw: random.Random,
) -> dict[str, Any]:
  """Starts, kills and restarts a job until it ends; returns figures.

  If a job ends before its kill, as happens when the load of the machine changes, its results are deleted and another
  kill is tried.

  Args:
    argv: the command.
    output, log: the job's folder, and the file of what it prints.
    kind: what is killed.
    kills: how many; one in four is sent during the start of a run, others after up to three more files.
    pace: of the undisturbed run.
    pattern: of the files that are watched, below `output`.
    complete: what identifies each complete result in a folder; it must not change later.
    draw: chooses times and processes.
  """
  kept: dict[str, Any] = {}
  changed = met = early = 0
  moments, ends = [], []

  def compare() -> None:
    nonlocal kept, changed
    found = complete(output) if output.exists() else {}
    changed += sum(found.get(name) != mark for name, mark in kept.items())
    kept = found

  with Watch(output, pattern) as watch:
    while met < kills and early < 2 * kills:
      job = beam_runners.Process(argv, log)
      _wait(job, kind, watch, pace, draw)
      victims, deadline = kind.victims(job), time.monotonic() + 30
      while not victims and job.running and time.monotonic() < deadline:
        time.sleep(0.05)
        victims = kind.victims(job)
      if not (job.running and victims):
        early += 1
        job.kill(below=True)
        _delete(output, pattern if kind.late else None)
        kept = {}
        watch.forget()
        continue
      met += 1
      moments.append([round(time.monotonic() - job.started, 2), len(watch)])
      if kind.mark != "launcher":
        beam_runners.kill([draw.choice(victims)])
      if kind.mark == "worker":
        ends.append(job.wait(20))
      elif kind.mark == "decoder":
        # Its call is repeated: the job has to continue.
        before, deadline = len(watch), time.monotonic() + 60
        while job.running and len(watch) == before and time.monotonic() < deadline:
          time.sleep(0.02)
        ends.append(len(watch) - before)
      job.kill(below=kind.below)
      if kind.below:
        compare()
    job = beam_runners.Process(argv, log)
    last = job.must_finish()
    time.sleep(1)  # Orphans may still be running.
    compare()
  return {
    "of": kind.of,
    "kills": kills,
    "kills_of_a_running_process": met,
    "ended_before_a_kill": early,
    "seconds_and_files_at_kills": moments,
    **({"exit_codes_of_launchers_within_20_s": ends} if kind.mark == "worker" else {}),
    **({"files_after_each": ends} if kind.mark == "decoder" else {}),
    "seconds_of_the_last_run": round(last, 1),
    "complete": len(kept),
    "complete_changed": changed,
    "files_replaced": watch.replaced,
  }


def _delete(output: Path, kept: str | None) -> None:
  """Deletes the files of a folder, except those that match the pattern `kept`."""
  keep = set(output.glob(kept)) if kept else set()
  for path in output.rglob("*"):
    if path.is_file() and path not in keep:
      path.unlink()


def _wait(
  job: beam_runners.Process, kind: Kind, watch: Watch, pace: Pace, draw: random.Random
) -> None:
  """Returns when it is time for a kill."""
  if kind.late:
    while job.running and len(watch) < pace.files:
      time.sleep(0.02)
    if pace.files == len(watch) and time.monotonic() - job.started < 1:
      time.sleep(pace.start)
    time.sleep(draw.uniform(0, 0.8) * pace.end)
    return
  before = len(watch)
  # A pool's worker that has not connected yet times out only after minutes (`worker_deaths.CONNECT_SECONDS`).
  if kind.runner is not None and draw.random() < 0.25:
    time.sleep(draw.uniform(0.1, 1.0) * pace.start)
    return
  wanted = before + (draw.randint(0, 3) if kind.runner is not None else draw.randint(1, 2))
  while job.running and (len(watch) < wanted or time.monotonic() - job.started < 1):
    time.sleep(0.02)
  if wanted == before:
    time.sleep(draw.uniform(0.8, 1.3) * pace.start)
  time.sleep(draw.uniform(0, 2) * pace.file)


def other_runners(
  argv: Callable[[Path, Sequence[str]], Sequence[str]],
  work: Path,
  *,
  same: Callable[[Path], bool],
) -> dict[str, Any]:
  """Runs a job with two worker processes, and on the portable runner with a pool of external workers.

  Args:
    argv: the command, for a folder of results and the flags of a runner.
    work: has these folders.
    same: whether a folder has what the undisturbed run wrote.
  """
  found = {}
  with beam_runners.portable(work) as portable:
    for name, runner in (
      ("two worker processes", beam_runners.TWO_WORKERS),
      ("portable runner external workers", portable),
    ):
      output = work / name.replace(" ", "_")
      job = beam_runners.Process(argv(output, runner), output.with_suffix(".log"))
      seconds = round(job.must_finish(), 1)
      found[name] = {"seconds": seconds, "bytes_identical": same(output)}
      print(name, found[name], flush=True)
  return found


def cells(found: Mapping[str, Any]) -> str:
  """The begin of a row: process, kills, files at each, changed and replaced files, output."""
  files = ", ".join(str(count) for _, count in found["seconds_and_files_at_kills"])
  return (
    f"| {found['of']} | {found['kills_of_a_running_process']} | {files} | {found['complete_changed']} "
    f"| {found['files_replaced']} | {WORDS[found['bytes_identical']]} |"
  )


def runner_table(runners: Mapping[str, Any], *, in_peace: float) -> list[str]:
  """Lines of a table of `other_runners`."""
  lines = ["| runner | output | seconds |", "| --- | --- | --- |"]
  lines.append(f"| in process | the reference | {in_peace} |")
  for name, found in runners.items():
    lines.append(f"| {name} | {WORDS[found['bytes_identical']]} | {found['seconds']} |")
  return lines
