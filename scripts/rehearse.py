"""Runs every command of docs/reproduce.md for one corpus, with small networks, few steps and few samples.

  bash scripts/rehearse.sh ucf101                    # on a look-alike of the corpus
  bash scripts/rehearse.sh ucf101 --corpus=/data     # on the first rows of the real one
  bash scripts/rehearse.sh ucf101 --list             # prints the commands only

The commands run as the page prints them, in a folder that has the names they use; BUCKET is a folder in it. The folder
of --corpus has the corpus under these names too. What differs from a real run: the gin files include gin/rehearsal/,
the corpus is shortened, scoring networks and text encoder have random weights, and few samples are drawn and scored.
The scores mean nothing. A rerun skips the commands that have finished.
"""

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scripts.quickstart_stages import last_metrics, rows
from scripts.rehearsal_steps import RUNS, SAMPLES, Step, steps_of

ROOT = Path(__file__).resolve().parents[1]
REPORT = "rehearsal.json"
SHOWN_LINES = 15


@dataclass(frozen=True)
class Done:
  """Outcome of a step."""

  name: str
  command: str
  seconds: float
  peak_mib: float
  result: str


def environment(step: Step) -> dict[str, str]:
  """Variables of a command. `--multiprocess` finds its cluster in them: this machine alone."""
  found = os.environ | {
    "PYTHONPATH": str(ROOT),
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
  }
  if "--multiprocess" in step.command:
    with socket.socket() as free:
      free.bind(("localhost", 0))
      address = f"localhost:{free.getsockname()[1]}"
    one = {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}
    found |= {"JAX_COORDINATOR_ADDRESS": address, **one}
  return found


def keep_first_requests(folder: Path) -> str:
  """Shortens the list of what to generate; returns what was kept."""
  file = folder / "requests.jsonl"
  lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
  file.write_text("".join(lines[:SAMPLES]), encoding="utf-8")
  return f"{min(SAMPLES, len(lines))} of {len(lines):,} requests kept"


def result_of(step: Step, printed: dict[str, Any], work: Path) -> str:
  """What a finished command made, in one line."""
  match step.program.rpartition(".")[2]:
    case "preprocess":
      reasons = {**printed["rejected_by_reason"], **printed["dead_by_reason"]}
      found = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
      return f"{rows(printed)}{found and f' ({found})'}"
    case "curate":
      kept = printed["seconds_in_clips"]
      return f"{printed['clips']} clips, {kept:.1f} of {printed['seconds']:.1f} s of video"
    case "train":
      return last_metrics(work / step.flag("--gin.MODEL_DIR"), "loss")
    case "benchmark_requests":
      return keep_first_requests(work / step.flag("--output"))
    case "generate":
      return f"{printed['videos']} samples"
    case "evaluate":
      scores = (f"{name} {score['score']:.4g}" for name, score in printed["scores"].items())
      return f"{', '.join(scores)}: of random networks, means nothing"
    case "report":
      return f"{printed['runs']} runs, {printed['scores']} scores, {printed['samples']} samples"
    case "rehearsal_inputs":
      return ", ".join(printed["taken"])
    case _:
      return "finished"


def run(step: Step, work: Path, log: Path) -> Done:
  """Runs a command in the shell, as its user does.

  Raises:
    SystemExit: it failed; the message has its last lines.
  """
  started = time.monotonic()
  with log.open("wb") as output:
    process = subprocess.Popen(
      ["bash", "-c", step.line],
      cwd=work,
      env=environment(step),
      stdin=subprocess.DEVNULL,
      stdout=output,
      stderr=subprocess.STDOUT,
    )
    # wait4 returns the peak of this child only.
    _, status, usage = os.wait4(process.pid, 0)
  lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
  if status:
    last = "\n".join(f"  {line}" for line in lines[-SHOWN_LINES:])
    sys.exit(
      f"\nrehearse: {step.name} failed (exit code {os.waitstatus_to_exitcode(status)}). Its last lines:\n{last}\n"
      f"All of them: {log}\nIts command, which ran in {work}:\n  {step.line}\n"
      "The same `bash scripts/rehearse.sh` resumes with this command; those before it are not run again."
    )
  seconds = round(time.monotonic() - started, 1)
  printed = next((json.loads(line) for line in reversed(lines) if line.startswith('{"')), {})
  peak = round(usage.ru_maxrss / 1024, 1)
  return Done(step.name, step.line, seconds, peak, result_of(step, printed, work))


def rehearse(corpus: str, steps: Sequence[Step], work: Path) -> list[Done]:
  """Runs the steps that have not finished; returns the outcome of each."""
  logs, report = work / "logs", work / REPORT
  logs.mkdir(parents=True, exist_ok=True)
  before = json.loads(report.read_text("utf-8"))["steps"] if report.is_file() else []
  finished = {entry["command"]: Done(**entry) for entry in before}
  if before and steps[0].line not in finished:
    sys.exit(
      f"rehearse: {work} has the rehearsal of another corpus, which began with\n  {before[0]['command']}\n"
      "Set another --output, or delete it."
    )
  done: list[Done] = []
  for number, step in enumerate(steps, 1):
    spent = sum(d.seconds for d in done) / 60
    print(f"\n[{number}/{len(steps)}] {step.name}, after {spent:.1f} min\n$ {step.command}")
    if step.added:
      print(f"  and {step.added}")
    sys.stdout.flush()
    kept = finished.get(step.line)
    if not kept and step.program == "data.lookalikes":
      # What an interrupted step left.
      shutil.rmtree(work / step.command.split()[-1], ignore_errors=True)
    name = re.sub(r"\W+", "_", step.name)
    done.append(kept or run(step, work, logs / f"{number:02}_{name}.txt"))
    table = {"corpus": corpus, "steps": [asdict(d) for d in done]}
    report.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    last = done[-1]
    print(
      f"  {'finished before: ' if kept else ''}{last.seconds:.0f} s, {last.peak_mib:.0f} MiB, {last.result}",
      flush=True,
    )
  return done


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the rehearsal and prints its table."""
  parser = argparse.ArgumentParser(
    prog="bash scripts/rehearse.sh",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("name", choices=RUNS, help="the corpus")
  parser.add_argument("--corpus", type=Path, help="folder of the real one (default: a look-alike)")
  parser.add_argument("--output", type=Path, help="work folder (default: runs/rehearse/NAME)")
  parser.add_argument("--list", action="store_true", help="print the commands only")
  args = parser.parse_args(argv)
  steps = steps_of(args.name, args.corpus.resolve() if args.corpus else None)
  if args.list:
    for step in steps:
      print(f"# {step.name}\n{step.line}\n")
    return 0
  work = (args.output or ROOT / "runs/rehearse" / args.name).resolve()
  done = rehearse(args.name, steps, work)
  print(f"\n{'step':<46} {'seconds':>8} {'peak MiB':>9}  result")
  for d in done:
    print(f"{d.name:<46} {d.seconds:>8.0f} {d.peak_mib:>9.0f}  {d.result}")
  print(f"{'total':<46} {sum(d.seconds for d in done):>8.0f} {max(d.peak_mib for d in done):>9.0f}")
  print(f"\nEvery command of {args.name} ran. Random networks scored: the scores mean nothing.")
  print(f"table as JSON: {work / REPORT}\nreport: {work / 'report.html'}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
