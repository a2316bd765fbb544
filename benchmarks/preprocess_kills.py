"""Kills the preprocessing job and its workers at random times, and compares runs on several runners byte by byte.

  python -m benchmarks.preprocess_kills                       # prints and writes benchmarks/preprocess_kills.{md,json}
  python -m benchmarks.preprocess_kills --rows=60 --kills=1   # quicker

The corpus: rendered and real clips and images (`python -m data.samples`), every tenth file broken (empty, cut in the
middle, text, flipped bytes, missing). The encoders are small and random. One run in one process is undisturbed; then
the same command with other output folders is killed and restarted until it finishes:

  launcher      SIGKILL of the launcher, whose threads are the workers
  worker        SIGKILL of one of two worker processes; the launcher has 20 s to exit
  orphans       SIGKILL of the launcher of two worker processes, which keep running
  pool          SIGKILL of a worker of an external pool (portable runner); the launcher has 20 s to exit
  runners       no kills: two worker processes, and the portable runner with a pool of external workers

A kill is sent during the start of a run (one in four), or shortly after the run has closed 0 to 3 shards; to a worker
of a pool, shortly after 1 or 2. Held: every kill hit a running process; every output is byte-identical to the
undisturbed one, without other files; the ledger adds up to the rows of the manifest; every shard and sidecar that was
complete at a kill is the same file at the end (inode and time); and no sidecar was replaced, as observed 50 times per
second.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shlex
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from beam_jobs.runners import worker_deaths
from benchmarks import beam_runners, results
from benchmarks.preprocess_corpus import command, make_corpus, make_encoders

HERE = Path(__file__).resolve().parent
# (process that is killed, runner, whether the descendants of the launcher are also killed).
KILLS = {
  "launcher": ("the launcher, its threads are the workers", beam_runners.IN_PROCESS, True),
  "worker": ("one of two worker processes", beam_runners.TWO_WORKERS, True),
  "orphans": ("the launcher of two workers, which keep running", beam_runners.TWO_WORKERS, False),
  "pool": ("a worker of an external pool", None, True),
}
# Kinds in which the launcher must exit without a kill.
_WORKERS = ("worker", "pool")
_SIDECAR = ".sidecar.json"


def tree(output: Path) -> dict[str, str]:
  """sha256 of every file."""
  return {
    str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(output.rglob("*"))
    if path.is_file()
  }


def ledger_of(output: Path) -> dict[str, int]:
  """Number of rows in all sidecars, in total and by outcome."""
  total = dict.fromkeys(("rows", "written", "rejected", "dead", "quarantined"), 0)
  for path in output.rglob(f"*{_SIDECAR}"):
    sidecar = json.loads(path.read_text())
    for kind in total:
      total[kind] += sidecar[kind]
  return total


def _stamp(path: Path) -> tuple[int, int] | None:
  try:
    stat = path.stat()
  except FileNotFoundError:
    return None
  return stat.st_ino, stat.st_mtime_ns


def complete_shards(output: Path) -> dict[str, tuple]:
  """Stamps of the files of every shard that matches the hash in its sidecar."""
  found = {}
  for sidecar in output.rglob(f"*{_SIDECAR}"):
    shard = Path(str(sidecar).removesuffix(_SIDECAR))
    try:
      stated = json.loads(sidecar.read_text())["sha256"]
      if hashlib.sha256(shard.read_bytes()).hexdigest() == stated:
        found[str(shard)] = (_stamp(shard), _stamp(sidecar))
    except FileNotFoundError:
      continue  # Orphans may still be running.
  return found


class Watch:
  """Polls the sidecars of a folder and counts those that are replaced."""

  def __init__(self, output: Path):
    self._output, self._seen = output, {}
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

  def _run(self) -> None:
    while not self._stop.wait(0.02):
      for path in self._output.glob(f"*/*{_SIDECAR}"):
        stamp = _stamp(path)
        if stamp and self._seen.setdefault(path.name + path.parent.name, stamp) != stamp:
          self._seen[path.name + path.parent.name] = stamp
          self.replaced += 1


def killed_run(
  argv: Sequence[str],
  output: Path,
  log: Path,
  *,
  kind: str,
  kills: int,
  start_seconds: float,
  shard_seconds: float,
  draw: random.Random,
) -> dict[str, Any]:
  """Starts, kills and restarts the job; returns the figures of the table."""
  of, _, below = KILLS[kind]
  complete: dict[str, tuple] = {}
  changed = met = 0
  moments, ends = [], []

  def compare() -> None:
    nonlocal complete, changed
    found = complete_shards(output) if output.exists() else {}
    changed += sum(found.get(name) != stamp for name, stamp in complete.items())
    complete = found

  with Watch(output) as watch:
    for _ in range(kills):
      before = len(watch)
      job = beam_runners.Process(argv, log)
      # A pool's worker that has not connected yet times out only after minutes (`worker_deaths.CONNECT_SECONDS`).
      if kind != "pool" and draw.random() < 0.25:
        time.sleep(draw.uniform(0.1, 1.0) * start_seconds)
      else:
        wanted = before + (draw.randint(1, 2) if kind == "pool" else draw.randint(0, 3))
        while job.running and (len(watch) < wanted or time.monotonic() - job.started < 1):
          time.sleep(0.02)
        if wanted == before:
          time.sleep(draw.uniform(0.8, 1.3) * start_seconds)
        time.sleep(draw.uniform(0, 2) * shard_seconds)
      # The workers of a pool are its descendants, and it is a descendant of this process.
      above = os.getpid() if kind == "pool" else job.pid
      victims = beam_runners.workers_of(above) if kind in _WORKERS else [job.pid]
      deadline = time.monotonic() + 30
      while not victims and job.running and time.monotonic() < deadline:
        time.sleep(0.05)
        victims = beam_runners.workers_of(above)
      met += bool(job.running and victims)
      moments.append([round(time.monotonic() - job.started, 2), len(watch)])
      if kind in _WORKERS and victims:
        beam_runners.kill([draw.choice(victims)])
        ends.append(job.wait(20))
      job.kill(below=below)
      if below:
        compare()
    job = beam_runners.Process(argv, log)
    last = job.must_finish()
    time.sleep(1)  # Orphans may still be running.
    compare()
  return {
    "of": of,
    "kills": kills,
    "kills_of_a_running_process": met,
    "seconds_and_closed_shards_at_kills": moments,
    **({"exit_codes_of_launchers_within_20_s": ends} if kind in _WORKERS else {}),
    "seconds_of_the_last_run": round(last, 1),
    "shards": len(complete),
    "complete_shards_changed": changed,
    "sidecars_replaced": watch.replaced,
  }


def run(*, rows: int, kills: int, seed: int, checks: Sequence[str], work: Path) -> dict[str, Any]:
  """Runs all checks; returns their results, and whether they hold."""
  # Compiled programs are cached between restarts, so that kills hit the work instead of the compilation.
  os.environ |= {
    "JAX_COMPILATION_CACHE_DIR": str(work / "xla"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  corpus, peace = work / "corpus", work / "peace"
  kinds = make_corpus(corpus, rows, seed)
  flags = make_encoders(work, corpus / "manifest.jsonl")
  log = work / "peace.log"
  with Watch(peace) as watch:
    job = beam_runners.Process(command(corpus, peace, [*flags, *beam_runners.IN_PROCESS]), log)
    while job.running and not len(watch):
      time.sleep(0.02)
    first = time.monotonic() - job.started
    seconds = job.must_finish()
  expected, ledger = tree(peace), ledger_of(peace)
  result: dict[str, Any] = {"corpus": {"rows": rows, **kinds}, "ledger": ledger}
  accounted = sum(count for kind, count in ledger.items() if kind != "rows")
  held = [rows == ledger["rows"] == accounted, 0.7 * kinds["broken"] <= ledger["dead"]]
  held.append(ledger["dead"] <= kinds["broken"])
  result["in_peace"] = {"seconds": round(seconds, 1), "files": len(expected), "shards": len(watch)}
  print(json.dumps(result), flush=True)
  for kind in (kind for kind in KILLS if kind in checks):
    output, log = work / kind, work / f"{kind}.log"
    with contextlib.ExitStack() as stack:
      runner = KILLS[kind][1] or stack.enter_context(beam_runners.portable(work))
      found = killed_run(
        command(corpus, output, [*flags, *runner]),
        output,
        log,
        kind=kind,
        kills=kills,
        start_seconds=first,
        shard_seconds=(seconds - first) / max(1, len(watch)),
        draw=random.Random(f"{seed}{kind}"),
      )
    found["bytes_identical"] = tree(output) == expected
    found["ledger_identical"] = ledger_of(output) == ledger
    held += [found["bytes_identical"], found["ledger_identical"]]
    held += [found["kills_of_a_running_process"] == kills]
    ends = found.get("exit_codes_of_launchers_within_20_s", [])
    held += [set(ends) <= {worker_deaths.EXIT_CODE}]
    held += [found["complete_shards_changed"] == found["sidecars_replaced"] == 0]
    result[kind] = found
    print(kind, json.dumps(found), flush=True)
  if "runners" in checks:
    same, spent = {}, {"in_process": round(seconds, 1)}
    with beam_runners.portable(work) as portable:
      for name, more in (
        ("two_worker_processes", beam_runners.TWO_WORKERS),
        ("portable_runner_external_workers", portable),
      ):
        output, log = work / name, work / f"{name}.log"
        job = beam_runners.Process(command(corpus, output, [*flags, *more]), log)
        spent[name] = round(job.must_finish(), 1)
        same[name] = tree(output) == expected
        held.append(same[name])
        print(name, same[name], flush=True)
    result["bytes_identical_to_in_process"] = same
    result["seconds_by_runner"] = spent
  result["held"] = all(held)
  return result


def table(result: Mapping[str, Any]) -> str:
  """Markdown."""
  corpus, ledger, peace = result["corpus"], result["ledger"], result["in_peace"]
  lines = [
    f"{corpus['rows']} rows ({corpus['rendered']} rendered, {corpus['real']} real, {corpus['broken']} of them broken) "
    f"in {peace['shards']} shards: {ledger['written']} written, {ledger['rejected']} rejected, {ledger['dead']} dead "
    "letters (a file with flipped bytes may still decode).",
    "",
    "| SIGKILL of | kills | closed shards at each | complete shards changed | sidecars replaced | output | ledger |",
    "| --- | --- | --- | --- | --- | --- | --- |",
  ]
  words = {True: "identical", False: "DIFFERS"}
  for kind in KILLS:
    if found := result.get(kind):
      closed = ", ".join(str(count) for _, count in found["seconds_and_closed_shards_at_kills"])
      lines.append(
        f"| {found['of']} | {found['kills_of_a_running_process']} | {closed} | {found['complete_shards_changed']} "
        f"| {found['sidecars_replaced']} | {words[found['bytes_identical']]} | {words[found['ledger_identical']]} |"
      )
  for kind in _WORKERS:
    if codes := result.get(kind, {}).get("exit_codes_of_launchers_within_20_s"):
      of = KILLS[kind][0]
      lines += [
        "",
        f"Launchers after SIGKILL of {of} exited with codes {codes}.",
      ]
  if same := result.get("bytes_identical_to_in_process"):
    lines += ["", "| runner | output | seconds |", "| --- | --- | --- |"]
    for name, seconds in result["seconds_by_runner"].items():
      verdict = words[same[name]] if name in same else "the reference"
      lines.append(f"| {name.replace('_', ' ')} | {verdict} | {seconds} |")
  return "\n".join([*lines, "", f"Held: {result['held']}.", ""])


def main() -> int:
  """Runs the program; returns 1 if a check does not hold."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--rows", type=int, default=500)
  parser.add_argument("--kills", type=int, default=5, help="kills of each kind")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--checks", default=",".join((*KILLS, "runners")))
  parser.add_argument("--output", default=str(HERE), help="folder of preprocess_kills.{md,json}")
  parser.add_argument(
    "--work", type=Path, help="folder in which runs are kept (a temporary folder)"
  )
  args = parser.parse_args()
  checks = tuple(args.checks.split(","))
  if unknown := set(checks) - {*KILLS, "runners"}:
    parser.error(f"--checks: got {sorted(unknown)}, expected some of {[*KILLS, 'runners']}")
  with tempfile.TemporaryDirectory() as temporary:
    work = args.work or Path(temporary)
    work.mkdir(parents=True, exist_ok=True)
    result = run(rows=args.rows, kills=args.kills, seed=args.seed, checks=checks, work=work)
  head = "# Preprocessing under SIGKILL, and on three runners\n\n"
  words = ["python", "-m", "benchmarks.preprocess_kills", *sys.argv[1:]]
  command_line = f"    {shlex.join(words)}"
  where = f"{os.cpu_count()} CPU cores with other load; seconds are of that machine."
  text = f"{head}{command_line}\n\n{where}\n\n{table(result)}"
  results.write(args.output, "preprocess_kills", text, result)
  print("held" if result["held"] else "NOT HELD")
  return 0 if result["held"] else 1


if __name__ == "__main__":
  sys.exit(main())
