"""Kills programs that work in object stores with faults, and compares what they leave with undisturbed runs.

  python -m benchmarks.store_kills               # prints and writes benchmarks/store_kills.{md,json}
  python -m benchmarks.store_kills --kills=6     # quicker

Preprocessing (clips and images to latents), a training with a checkpoint every 5 steps, and a generation by two stages
write to SeaweedFS (S3) and fake-gcs-server (GCS) on this machine, of whose requests 5% fail in each of the ways of
`tests.stores.faults`. Each is killed by SIGKILL at a drawn number of its requests, every second time of those that
write, and the same command started again, until it finishes. If it finishes before its kills are sent, it begins
another output.

After each kill, what is complete has to be right: a shard with a sidecar, a checkpoint that is committed and a sample
with a sidecar are those of an undisturbed run on a local disk, and the next start resumes a training at its newest
complete checkpoint. At the end, the output has to be that of the undisturbed run, byte by byte (of a training, array
by array), and no checkpoint that was set aside may have been complete. Exit code 1 if something else happens.
"""

import argparse
import itertools
import json
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

from benchmarks import results, store_programs
from benchmarks.store_programs import (
  GENERATE,
  LATENTS,
  LOCAL,
  SAVE_PERIOD,
  TRAIN,
  Place,
)
from tests.stores import faults, servers
from walt_t5x.files import storage

PROGRAMS = (TRAIN, LATENTS, GENERATE)
LIMIT = 400.0
# Methods of the requests at which every second kill is sent: some programs read for most of their time.
WRITES = "PUT", "POST"
_SIDECAR = ".sidecar.json"
# Of a training, in which a checkpoint is in the store before the next one is due, as in a real run.
STEP_SECONDS = 2.0


class Job:
  """A program with one output, which is started until it finishes.

  Args:
    place: store with inputs.
    program: one of `PROGRAMS`.
    name: of the output.
    expected: what an undisturbed run writes.
  """

  def __init__(self, place: Place, program: str, name: str, expected: dict[str, str]):
    self._place, self.program, self._expected = place, program, expected
    self.output = f"{place.folder}/{name}"
    self.rows = store_programs.rows_folder(place, self.output)

  def start(
    self, found: faults.Faults, after: int | None, methods: tuple[str, ...] = ()
  ) -> subprocess.CompletedProcess:
    """Runs it until its end, or kills it after so many requests with these methods."""
    with self._place.behind(found) as environment:
      slow = f"--gin.engine_rows.RecordingTrainer.step_seconds={STEP_SECONDS}"
      more = [slow] if self.program == TRAIN else []
      program = store_programs.start(self.program, self._place, self.output, environment, *more)
      store_programs.wait(
        program, LIMIT, lambda: after is not None and found.requests(*methods) >= after
      )
      program.process.kill()
      return program.wait(30)

  def steps(self) -> list[int]:
    """Steps of a training's complete checkpoints."""
    from walt_t5x.engine import checkpoints

    return checkpoints.complete_steps(self.output)

  def complete(self, found: dict[str, str]) -> list[str]:
    """Names of the parts of an output that a next start, or a reader, takes for complete."""
    if self.program == LATENTS:
      sidecars = [name for name in found if name.endswith(_SIDECAR)]
      return [*sidecars, *(name.removesuffix(_SIDECAR) for name in sidecars)]
    if self.program == GENERATE:
      finished = {name[:5] for name in found if name[5:] == ".json"}
      return [name for name in self._expected if name[:5] in finished]
    return list(found)

  def differences(self) -> list[str]:
    """Parts of the finished output that are not those of the undisturbed run."""
    return store_programs.differences(
      store_programs.contents(self.program, self.output), self._expected
    )

  def kill(
    self, seed: int, after: int | None, methods: tuple[str, ...] = ()
  ) -> dict[str, Any] | None:
    """Kills a start after so many requests, and looks at what it leaves; None if it finished."""
    found = store_programs.storm(self.program, seed)
    ended = self.start(found, after, methods)
    if ended.returncode == 0:
      return None
    if ended.returncode != -signal.SIGKILL:
      return {"exit_code": ended.returncode, "told": ended.stderr[-3000:]}
    contents = store_programs.contents(self.program, self.output)
    complete = self.complete(contents)
    wrong = [name for name in complete if contents.get(name) != self._expected.get(name)]
    row = {"requests": found.requests(), "failed": found.injected(), "files": len(contents)}
    row |= {"complete": len(complete), "wrong": wrong, "writing": bool(methods)}
    return row

  def aside(self) -> list[bool]:
    """Of each checkpoint that was set aside, whether it is complete."""
    from walt_t5x.engine import checkpoints

    found = [name for name in storage.folders(self.output) if name.startswith("incomplete_")]
    return [checkpoints.why_incomplete(f"{self.output}/{name}") is None for name in found]

  def logged(self) -> list[int]:
    """The steps that a training has begun, in order."""
    file = self.rows / "rows_0.jsonl"
    return [json.loads(line)["step"] for line in file.open()] if file.exists() else []


def disturbed(job: Job, draw: random.Random, quiet: faults.Faults, most: int) -> dict[str, Any]:
  """Kills a job, whose requests were those of `quiet`, until it has finished, `most` times at most; what was found."""
  kills, errors, resumed, newest = [], [], [], 0
  while True:
    before = len(job.logged())
    last = len(kills) == most
    # A start after another has less to do.
    methods = WRITES if most % 2 == len(kills) % 2 else ()
    share = draw.uniform(0.05, 1.2 if not kills else 0.8)
    after = None if last else int(quiet.requests(*methods) * share)
    row = job.kill(draw.getrandbits(32), after, methods)
    steps = job.logged()
    if len(steps) > before:
      resumed.append(steps[before] == newest)
    if row is None:
      break
    if "exit_code" in row:
      errors.append(row)
      print(f"{job.output}: failed {row}", flush=True)
      if len(errors) > most:
        break
      continue
    if job.program == TRAIN:
      newest = (job.steps() or [0])[-1]
      row |= {"checkpoint": newest, "lost_steps": max([0, *steps[-1:]]) + bool(steps) - newest}
    kills.append(row)
    print(f"{job.output}: killed {row}", flush=True)
  found = {"kills": kills, "errors": errors, "resumed": resumed}
  found["differences"] = job.differences()
  if job.program == TRAIN:
    found["aside"] = job.aside()
  return found


def run(kills: int, seed: int, work: Path | None) -> list[dict[str, Any]]:
  """All kills, a row for each output; those of an earlier call with the same folder are read from it."""
  done = work and work / f"store_kills_{kills}_{seed}.jsonl"
  rows = [json.loads(line) for line in done.open()] if done and done.exists() else []
  finished = {(row["program"], row["store"]) for row in rows}
  with store_programs.places(work) as places:
    pairs = list(itertools.product(PROGRAMS, servers.SERVERS))
    for number, (program, name) in enumerate(pairs):
      if (program, name) in finished:
        continue
      place, draw = places[name], random.Random(f"{seed} {program} {name}")
      # Its inputs are in the store, so that files that name them are the same.
      local = f"{places[LOCAL].folder}/expected-{number}"
      expected = store_programs.run(program, place, local)
      left = kills * (number + 1) // len(pairs) - kills * number // len(pairs)
      quiet, found = Job(place, program, f"quiet-{number}", expected), faults.Faults()
      store_programs.must_end(quiet.start(found, None))
      row = {"program": program, "store": name, "requests": found.requests()}
      mine = [row | {"kills": [], "differences": quiet.differences()}]
      while left:
        job = Job(place, program, f"killed-{number}-{left}", expected)
        mine.append(row | disturbed(job, draw, found, left))
        left -= len(mine[-1]["kills"])
        print({name: value for name, value in mine[-1].items() if name != "kills"}, flush=True)
      rows += mine
      if done:
        with done.open("a") as stream:
          stream.writelines(json.dumps(one) + "\n" for one in mine)
  return rows


def held(rows: list[dict[str, Any]]) -> bool:
  """Whether everything is as it has to be."""
  return all(
    not row["differences"]
    and not row.get("errors")
    and all(row.get("resumed", []))
    and not any(row.get("aside", []))
    and not any(k["wrong"] or k.get("lost_steps", 0) > 2 * SAVE_PERIOD for k in row["kills"])
    for row in rows
  )


def page(rows: list[dict[str, Any]], seed: int) -> str:
  """The results as a page."""
  kills = [kill for row in rows for kill in row["kills"]]
  lines = [
    "# Kills of programs that work in object stores",
    "",
    textwrap.fill(
      f"`python -m benchmarks.store_kills --seed={seed}`: {len(kills)} SIGKILLs of preprocessing, training and "
      f"generation in {store_programs.STORES}. After each kill the same command was started again. Every second kill "
      "was sent at a drawn number of requests that write, the others of all. *Of*: requests of a run without faults. "
      "*Parts*: files, or arrays of checkpoints, that count as complete after a kill. *Wrong*: parts that are not "
      "those of an undisturbed run on a local disk. *Lost*: steps that a training had begun after its newest complete "
      f"checkpoint, with a checkpoint every {SAVE_PERIOD} steps of {STEP_SECONDS:.0f} s. More than {SAVE_PERIOD} are "
      "lost only if the kill hit a checkpoint in writing, which takes seconds here; the next one waits for it.",
      118,
    ),
    "",
    "| program | store | killed at request | of | failed requests | complete parts | wrong | lost steps |",
    "| --- | --- | --- | --- | --- | --- | --- | --- |",
  ]
  for row in rows:
    lines += [
      f"| {row['program']} | {row['store']} | {kill['requests']} | {row['requests']} | {kill['failed']} "
      f"| {kill['complete']} | {len(kill['wrong'])} | {kill.get('lost_steps', '')} |"
      for kill in row["kills"]
    ]
  lines += [
    "",
    "*Outputs*: finished ones, one of them without faults and kills. *Different*: files or arrays that are not those",
    "of the undisturbed run. *Resumed*: starts of a training that began at its newest complete checkpoint. *Errors*:",
    "starts that ended with one.",
    "",
    "| program | store | kills | errors | outputs | different | resumed | checkpoints set aside | of these complete |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
  ]
  for program, store in dict.fromkeys((row["program"], row["store"]) for row in rows):
    mine = [row for row in rows if (row["program"], row["store"]) == (program, store)]
    resumed = [one for row in mine for one in row.get("resumed", [])]
    aside = [one for row in mine for one in row.get("aside", [])]
    cells = [program, store, sum(len(row["kills"]) for row in mine)]
    cells += [sum(len(row.get("errors", [])) for row in mine), len(mine)]
    cells.append(sum(len(row["differences"]) for row in mine))
    training = [f"{sum(resumed)} of {len(resumed)}", len(aside), sum(aside)]
    cells += training if program == TRAIN else ["", "", ""]
    lines.append(f"| {' | '.join(map(str, cells))} |")
  return "\n".join([*lines, "", f"Held: {held(rows)}."]) + "\n"


def main() -> int:
  """Kills, and writes the results; 1 if something was lost, doubled or wrong."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--kills", type=int, default=30)
  store_programs.add_flags(parser, "store_kills")
  args = parser.parse_args()
  rows = run(args.kills, args.seed, args.work)
  figures = {"seed": args.seed, "held": held(rows), "outputs": rows}
  results.write(args.output, "store_kills", page(rows, args.seed), figures)
  return int(not held(rows))


if __name__ == "__main__":
  sys.exit(main())
