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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from beam_jobs.runners import worker_deaths
from benchmarks import beam_runners, kills, results
from benchmarks.preprocess_corpus import command, make_corpus, make_encoders

HERE = Path(__file__).resolve().parent
KILLS = {
  "launcher": kills.LAUNCHER,
  "worker": kills.WORKER,
  "orphans": kills.ORPHANS,
  "pool": kills.POOL,
}
_SIDECAR = ".sidecar.json"
_SIDECARS = f"*/*{_SIDECAR}"


def ledger_of(output: Path) -> dict[str, int]:
  """Number of rows in all sidecars, in total and by outcome."""
  total = dict.fromkeys(("rows", "written", "rejected", "dead", "quarantined"), 0)
  for path in output.rglob(f"*{_SIDECAR}"):
    sidecar = json.loads(path.read_text())
    for kind in total:
      total[kind] += sidecar[kind]
  return total


def complete_shards(output: Path) -> dict[str, tuple]:
  """Stamps of the files of every shard that matches the hash in its sidecar."""
  found = {}
  for sidecar in output.rglob(f"*{_SIDECAR}"):
    shard = Path(str(sidecar).removesuffix(_SIDECAR))
    try:
      stated = json.loads(sidecar.read_text())["sha256"]
      if hashlib.sha256(shard.read_bytes()).hexdigest() == stated:
        found[str(shard)] = (kills.stamp(shard), kills.stamp(sidecar))
    except FileNotFoundError:
      continue  # Orphans may still be running.
  return found


def run(*, rows: int, count: int, seed: int, checks: Sequence[str], work: Path) -> dict[str, Any]:
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
  argv = command(corpus, peace, [*flags, *beam_runners.IN_PROCESS])
  pace = kills.peaceful_run(argv, peace, log, pattern=_SIDECARS)
  expected, ledger = kills.tree(peace), ledger_of(peace)
  result: dict[str, Any] = {"corpus": {"rows": rows, **kinds}, "ledger": ledger}
  accounted = sum(number for kind, number in ledger.items() if kind != "rows")
  held = [rows == ledger["rows"] == accounted, 0.7 * kinds["broken"] <= ledger["dead"]]
  held.append(ledger["dead"] <= kinds["broken"])
  result["in_peace"] = {
    "seconds": round(pace.total, 1),
    "files": len(expected),
    "shards": pace.files,
  }
  print(json.dumps(result), flush=True)
  for name in (name for name in KILLS if name in checks):
    kind, output, log = KILLS[name], work / name, work / f"{name}.log"
    with contextlib.ExitStack() as stack:
      runner = kind.runner or stack.enter_context(beam_runners.portable(work))
      found = kills.killed_run(
        command(corpus, output, [*flags, *runner]),
        output,
        log,
        kind=kind,
        kills=count,
        pace=pace,
        pattern=_SIDECARS,
        complete=complete_shards,
        draw=random.Random(f"{seed}{name}"),
      )
    found["bytes_identical"] = kills.tree(output) == expected
    found["ledger_identical"] = ledger_of(output) == ledger
    held += [found["bytes_identical"], found["ledger_identical"]]
    held += [found["kills_of_a_running_process"] == count]
    ends = found.get("exit_codes_of_launchers_within_20_s", [])
    held += [set(ends) <= {worker_deaths.EXIT_CODE}]
    held += [found["complete_changed"] == found["files_replaced"] == 0]
    result[name] = found
    print(name, json.dumps(found), flush=True)
  if "runners" in checks:
    result["runners"] = kills.other_runners(
      lambda output, runner: command(corpus, output, [*flags, *runner]),
      work,
      same=lambda output: kills.tree(output) == expected,
    )
    held += [found["bytes_identical"] for found in result["runners"].values()]
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
  for found in (result[name] for name in KILLS if name in result):
    lines.append(f"{kills.cells(found)} {kills.WORDS[found['ledger_identical']]} |")
  for found in (result[name] for name in KILLS if name in result):
    if codes := found.get("exit_codes_of_launchers_within_20_s"):
      lines += ["", f"Launchers after SIGKILL of {found['of']} exited with codes {codes}."]
  if runners := result.get("runners"):
    lines += ["", *kills.runner_table(runners, in_peace=peace["seconds"])]
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
    result = run(rows=args.rows, count=args.kills, seed=args.seed, checks=checks, work=work)
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
