"""Kills the curation job, its workers and its decoders at random times, and compares runs on several runners.

  python -m benchmarks.curate_kills                        # prints and writes benchmarks/curate_kills.{md,json}
  python -m benchmarks.curate_kills --videos=8 --kills=1   # quicker

The corpus: spliced videos of `benchmarks.curate_shots`, three joined in each file, every tenth of them damaged in the
middle; a copy of one, an empty file and a text. Scores, filters, near duplicates, the page. One run in one process is
undisturbed; then the same command with other output folders is killed and restarted until it finishes:

  launcher      SIGKILL of the launcher, whose threads are the workers
  worker        SIGKILL of one of two worker processes; the launcher has 20 s to exit
  orphans       SIGKILL of the launcher of two worker processes, which keep running
  decoder       SIGKILL of a decoding process, and of the launcher after it has finished another part
  end           SIGKILL of the launcher when all parts are there: duplicates, results, page
  pair          no kills: two launchers at the same time
  runners       no kills: two worker processes, and the portable runner with a pool of external workers

Held: every kill hit a running process; all files are byte-identical to those of the undisturbed run, without others;
each microsecond of video is in one clip or rejected segment, or dead, and a readable video has the length of its
frames as PyAV alone decodes them; no complete part changed. Of two launchers one works, and the other one names it.
"""

import argparse
import json
import os
import random
import re
import shlex
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from beam_jobs.runners import worker_deaths
from benchmarks import beam_runners, curate_shots, kills, results

HERE = Path(__file__).resolve().parent
KILLS = {
  "launcher": kills.LAUNCHER,
  "worker": kills.WORKER,
  "orphans": kills.ORPHANS,
  "decoder": kills.Kind(of="a decoding process, then the launcher", mark="decoder"),
  "end": kills.Kind(of="the launcher when all parts are there", late=True),
}
CHECKS = (*KILLS, "pair", "runners")
PARTS = 24
_PATTERN = "parts/part-*.json"


def make_corpus(folder: Path, count: int, seed: int) -> None:
  """Writes the videos."""
  import numpy as np

  from walt_t5x.media import writing

  folder.mkdir(parents=True)
  rng = np.random.default_rng(seed)
  scenes = curate_shots.Scenes(rng)
  for number in range(count):
    frames = np.concatenate([curate_shots.compose(rng, scenes)[0] for _ in range(3)])
    path = folder / f"{number:03}.mp4"
    writing.write_video(path, frames, fps=curate_shots.RATE)
    if number % 10 == 9:
      with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(2000))
  shutil.copy(folder / "000.mp4", folder / "copy.mp4")
  (folder / "empty.mp4").write_bytes(b"")
  (folder / "text.mp4").write_text("<html>moved</html>")


def lengths(folder: Path) -> dict[str, int]:
  """Microseconds of the frames that PyAV decodes, by name."""
  import av
  from av.error import FFmpegError

  found = {}
  for path in folder.iterdir():
    try:
      with av.open(str(path)) as video:
        count = sum(1 for _ in video.decode(video=0))
      found[path.name] = round(count * 1e6 / curate_shots.RATE)
    except FFmpegError:
      continue
  return found


def command(corpus: Path, output: Path, runner: Sequence[str]) -> list[str]:
  """The job."""
  flags = [f"--manifest={corpus}", f"--output={output}", f"--num_parts={PARTS}"]
  flags += ["--filter=seconds>=2", "--filter=motion>=0.01", "--duplicates=near"]
  return [sys.executable, "-m", "beam_jobs.curate", *flags, *runner]


def ledger_of(output: Path) -> dict[str, Any]:
  """Microseconds in the summary, and as the lines of clips, rejected segments and dead videos have them."""

  def lines(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / name).read_text().splitlines()]

  def length(row: Mapping[str, Any]) -> int:
    return round(row["end_seconds"] * 1e6) - round(row["start_seconds"] * 1e6)

  rows = {name: lines(f"{name}.jsonl") for name in ("clips", "rejected", "dead")}
  found: dict[str, Any] = {name: sum(map(length, some)) for name, some in rows.items()}
  videos: Counter[str] = Counter()
  for row in (row for some in rows.values() for row in some):
    videos[row["uri"]] += length(row)
  summary = json.loads((output / "summary.json").read_text())
  found["all"] = round(summary["seconds"] * 1e6)
  found["reasons"] = dict(Counter(row["reason"] for row in rows["rejected"]))
  found["dead_reasons"] = summary["dead_videos"]
  found["segments"] = {"clips": len(rows["clips"]), "rejected": len(rows["rejected"])}
  return found | {"videos": dict(videos), "dead_videos": sorted(row["uri"] for row in rows["dead"])}


def files_of(output: Path) -> dict[str, str]:
  """sha256 of every file; the configuration of preprocessing names the folder, and is compared without it."""
  config = (output / "preprocess.toml").read_text().replace(str(output), "OUTPUT")
  return kills.tree(output) | {"preprocess.toml": config}


def complete_parts(output: Path) -> dict[str, str]:
  """sha256 of the parts; every file that has its name is complete."""
  return kills.tree(output, "part-*.json")


def pair(corpus: Path, output: Path, log: Path) -> dict[str, Any]:
  """Two launchers, started at the same time, and what the one that did not work said."""
  argv = command(corpus, output, beam_runners.IN_PROCESS)
  both = [beam_runners.Process(argv, log.with_suffix(f".{number}.log")) for number in range(2)]
  codes = [one.wait(1200) for one in both]
  if None in codes:
    for one in both:
      one.kill()
  said = "".join(one.tail() for one, code in zip(both, codes, strict=True) if code)
  holder = re.search(r"is in use by curate: process (\d+)", said)
  working = [one.pid for one, code in zip(both, codes, strict=True) if code == 0]
  return {
    "exit_codes": sorted(codes, key=str),
    "holder_named": bool(holder) and [int(holder[1])] == working,
  }


def run(*, videos: int, count: int, seed: int, checks: Sequence[str], work: Path) -> dict[str, Any]:
  """Runs all checks; returns their results, and whether they hold."""
  corpus, peace = work / "corpus", work / "peace"
  if not corpus.exists():
    make_corpus(corpus, videos, seed)
  argv = command(corpus, peace, beam_runners.IN_PROCESS)
  pace = kills.peaceful_run(argv, peace, work / "peace.log", pattern=_PATTERN)
  expected, ledger = files_of(peace), ledger_of(peace)
  result: dict[str, Any] = {
    "files": len(list(corpus.iterdir())),
    "ledger": {name: value for name, value in ledger.items() if name != "videos"},
    "in_peace": {"seconds": round(pace.total, 1), "files": len(expected), "parts": pace.files},
  }
  decoded = lengths(corpus)
  readable = set(ledger["videos"]) - set(ledger["dead_videos"])
  held = [ledger["all"] == ledger["clips"] + ledger["rejected"] + ledger["dead"]]
  held += [len(readable) > 0, all(ledger["videos"][name] == decoded[name] for name in readable)]
  held.append(set(ledger["videos"]) == {path.name for path in corpus.iterdir()})
  print(json.dumps(result), held, flush=True)
  for name in (name for name in KILLS if name in checks):
    kind, output = KILLS[name], work / name
    found = kills.killed_run(
      command(corpus, output, kind.runner or ()),
      output,
      work / f"{name}.log",
      kind=kind,
      kills=count,
      pace=pace,
      pattern=_PATTERN,
      complete=complete_parts,
      draw=random.Random(f"{seed}{name}"),
    )
    found["bytes_identical"] = files_of(output) == expected
    held += [found["bytes_identical"], found["kills_of_a_running_process"] == count]
    held.append(found["complete_changed"] == 0)
    ends = found.get("exit_codes_of_launchers_within_20_s", [])
    held.append(set(ends) <= {worker_deaths.EXIT_CODE})
    held.append(all(found.get("files_after_each", [1])))
    result[name] = found
    print(name, json.dumps(found), flush=True)
  if "pair" in checks:
    found = pair(corpus, work / "pair", work / "pair.log")
    found["bytes_identical"] = files_of(work / "pair") == expected
    held += [found["bytes_identical"], found["holder_named"]]
    result["pair"] = found
    print("pair", found, flush=True)
  if "runners" in checks:
    result["runners"] = kills.other_runners(
      lambda output, runner: command(corpus, output, runner),
      work,
      same=lambda output: files_of(output) == expected,
    )
    held += [found["bytes_identical"] for found in result["runners"].values()]
  return result | {"held": all(held)}


def table(result: Mapping[str, Any]) -> str:
  """Markdown."""
  ledger, peace = result["ledger"], result["in_peace"]
  seconds = {name: f"{ledger[name] / 1e6:,.6f}" for name in ("all", "clips", "rejected", "dead")}
  reasons = ", ".join(f"{reason} {count}" for reason, count in ledger["reasons"].items())
  dead = ", ".join(f"{reason} {count}" for reason, count in ledger["dead_reasons"].items())
  lines = [
    f"{result['files']} files in {peace['parts']} parts. Seconds of video: {seconds['all']} = {seconds['clips']} in "
    f"{ledger['segments']['clips']} clips + {seconds['rejected']} in {ledger['segments']['rejected']} rejected "
    f"segments ({reasons}) + {seconds['dead']} dead ({dead}).",
    "",
    "| SIGKILL of | kills | parts at each | complete parts changed | parts replaced | all files |",
    "| --- | --- | --- | --- | --- | --- |",
    *(kills.cells(result[name]) for name in KILLS if name in result),
  ]
  if codes := result.get("worker", {}).get("exit_codes_of_launchers_within_20_s"):
    lines += ["", f"Launchers after SIGKILL of a worker process exited with codes {codes}."]
  if found := result.get("pair"):
    named = "named the first" if found["holder_named"] else "DID NOT NAME the first"
    lines += [
      "",
      f"Two launchers at the same time exited with codes {found['exit_codes']}: the second {named},",
    ]
    lines += [f"and all files are {kills.WORDS[found['bytes_identical']]}."]
  if runners := result.get("runners"):
    lines += ["", *kills.runner_table(runners, in_peace=peace["seconds"])]
  return "\n".join([*lines, "", f"Held: {result['held']}.", ""])


def main() -> int:
  """Runs the program; returns 1 if a check does not hold."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--videos", type=int, default=28)
  parser.add_argument("--kills", type=int, default=4, help="kills of each kind (4)")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--checks", default=",".join(CHECKS))
  parser.add_argument("--output", default=str(HERE), help="folder of curate_kills.{md,json}")
  parser.add_argument(
    "--work", type=Path, help="folder in which runs are kept (a temporary folder)"
  )
  args = parser.parse_args()
  checks = tuple(args.checks.split(","))
  if unknown := set(checks) - set(CHECKS):
    parser.error(f"--checks: got {sorted(unknown)}, expected some of {list(CHECKS)}")
  with tempfile.TemporaryDirectory() as temporary:
    work = args.work or Path(temporary)
    work.mkdir(parents=True, exist_ok=True)
    result = run(videos=args.videos, count=args.kills, seed=args.seed, checks=checks, work=work)
  head = "# Curation under SIGKILL, and on three runners\n\n"
  command_line = f"    {shlex.join(['python', '-m', 'benchmarks.curate_kills', *sys.argv[1:]])}"
  where = f"{os.cpu_count()} CPU cores with other load; seconds are of that machine."
  text = f"{head}{command_line}\n\n{where}\n\n{table(result)}"
  results.write(args.output, "curate_kills", text, result)
  print("held" if result["held"] else "NOT HELD")
  return 0 if result["held"] else 1


if __name__ == "__main__":
  sys.exit(main())
