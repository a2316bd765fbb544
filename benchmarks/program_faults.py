"""Injects single faults into the requests of programs, and compares what they write with undisturbed runs.

  python -m benchmarks.program_faults                 # prints and writes benchmarks/program_faults.{md,json}
  python -m benchmarks.program_faults --faults=20     # quicker

Preprocessing to pixels and to latents, a training, a generation, an evaluation and a report read their inputs from
SeaweedFS (S3) and fake-gcs-server (GCS) on this machine and write there. Each run meets one fault of
`tests.stores.faults`, in one of its requests; the kinds of faults are distributed over programs and stores, and those
of one kind over the requests that the program makes without faults. A run has to end as without the fault, or with one
error that names the operation and the path. Exit code 1 if one ends otherwise.
"""

import argparse
import collections
import itertools
import json
import math
import random
import re
import statistics
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import results, store_programs
from benchmarks.store_programs import (
  EVALUATE,
  GENERATE,
  LATENTS,
  LOCAL,
  PIXELS,
  REPORT,
  TRAIN,
  Place,
)
from tests.stores import faults, servers

PROGRAMS = (PIXELS, LATENTS, TRAIN, GENERATE, EVALUATE, REPORT)
LIMIT = 300.0
SAME, CLEAR, UNCLEAR, DIFFERENT, HUNG = "same", "clear error", "other error", "different", "hung"
OUTCOMES = (SAME, CLEAR, UNCLEAR, DIFFERENT, HUNG)
_CLEAR = re.compile(r"cannot \w+ (?:for |a checkpoint to )?(?:gs|s3)://\S+")


def quiet(place: Place, program: str, output: str) -> tuple[dict[str, str], collections.Counter]:
  """What a program writes without faults, and its requests by method."""
  found = faults.Faults()
  with place.behind(found) as environment:
    store_programs.must_end(store_programs.start(program, place, output, environment).wait(LIMIT))
  methods = collections.Counter[str]()
  for (method, *_), count in found.counts.items():
    methods[method] += count
  return store_programs.contents(program, output), methods


def drawn(
  methods: dict[tuple[str, str], collections.Counter], count: int, seed: int
) -> Iterator[tuple[str, str, int, tuple[str, str, int]]]:
  """Store, program, number of its kind and `Faults.single` of each fault, spread over a program's requests."""
  draws = random.Random(seed)
  triples = [(*pair, kind) for pair, kind in itertools.product(methods, faults.KINDS)]
  draws.shuffle(triples)
  times = collections.Counter(itertools.islice(itertools.cycle(triples), count))
  for (store, program, kind), several in times.items():
    possible = [m for m in methods[store, program] if faults.applies(kind, m)]
    total = sum(methods[store, program][method] for method in possible)
    for part in range(several):
      number = 1 + int(total * (part + draws.random()) / several)
      yield store, program, part, (kind, f"^({'|'.join(possible)}) ", number)


def inject(
  place: Place, program: str, output: str, fault: tuple[str, str, int], expected: dict[str, str]
) -> dict[str, Any]:
  """The outcome of one fault."""
  found = faults.Faults(single=fault, stall=store_programs.STALL)
  began = time.monotonic()
  row: dict[str, Any] = {}
  with place.behind(found) as environment:
    started = store_programs.start(program, place, output, environment)
    try:
      store_programs.wait(started, LIMIT, lambda: False)
    except TimeoutError as error:
      return {"outcome": HUNG, "hit": found.hit, "told": str(error)[-6000:]}
    ended = started.wait(1)
  row |= {"seconds": round(time.monotonic() - began, 1), "hit": found.hit, "matched": found.matched}
  if ended.returncode:
    clear = _CLEAR.search(ended.stderr) and "Traceback" not in ended.stderr
    return row | {"outcome": CLEAR if clear else UNCLEAR, "told": ended.stderr[-3000:]}
  wrong = store_programs.differences(store_programs.contents(program, output), expected)
  return row | {"outcome": DIFFERENT if wrong else SAME, "different": wrong}


def run(count: int, seed: int, minutes: float, work: Path | None) -> list[dict[str, Any]]:
  """All faults; those of an earlier call with the same folder are read from it."""
  done = work and work / f"program_faults_{seed}.jsonl"
  rows = [json.loads(line) for line in done.open()] if done and done.exists() else []
  with store_programs.places(work) as places:
    local, methods, expected = places[LOCAL], {}, {}
    for program, name in ((TRAIN, "run"), (GENERATE, "samples")):
      folder = local.work / "inputs" / name
      if not folder.exists():
        store_programs.run(program, local, str(folder))
        for store in servers.SERVERS:
          store_programs.copy(folder, f"{places[store].folder}/inputs/{name}")
    for number, pair in enumerate(itertools.product(servers.SERVERS, PROGRAMS)):
      place = places[pair[0]]
      expected[pair], methods[pair] = quiet(place, pair[1], f"{place.folder}/quiet-{number}")
      print(*pair, dict(methods[pair]), flush=True)
    end = time.monotonic() + 60 * minutes
    finished = {(row["store"], row["program"], row["kind"], row["part"]) for row in rows}
    for number, (store, program, part, fault) in enumerate(drawn(methods, count, seed)):
      if (store, program, fault[0], part) in finished:
        continue
      if time.monotonic() > end:
        break
      row = {"store": store, "program": program, "kind": fault[0], "part": part}
      row["request"] = fault[2]
      output = f"{places[store].folder}/fault-{number}"
      row |= inject(places[store], program, output, fault, expected[store, program])
      if not row["hit"] and row.get("matched"):
        # It made fewer requests than the run before: its last one fails.
        fault = (*fault[:2], row["matched"])
        row |= inject(places[store], program, f"{output}-again", fault, expected[store, program])
      rows.append(row)
      print(number, *row.values(), flush=True)
      if done:
        with done.open("a") as stream:
          stream.write(json.dumps(row) + "\n")
  return rows


def table(rows: list[dict[str, Any]], column: str) -> list[str]:
  """Outcomes by the values of a column."""
  lines = [f"| {column} | faults | {' | '.join(OUTCOMES)} |", f"| --- |{' --- |' * 6}"]
  for value in (*dict.fromkeys(row[column] for row in rows), "all"):
    mine = [row for row in rows if value in (row[column], "all")]
    counts = collections.Counter(row["outcome"] for row in mine)
    cells = [value, len(mine), *(counts[outcome] for outcome in OUTCOMES)]
    lines.append(f"| {' | '.join(map(str, cells))} |")
  return [*lines, ""]


def page(rows: list[dict[str, Any]], seed: int, count: int) -> str:
  """The results as a page."""
  met = [row for row in rows if row["hit"]]
  seconds = [row["seconds"] for row in met if "seconds" in row]
  lines = [
    "# Faults of object stores in programs",
    "",
    textwrap.fill(
      f"`python -m benchmarks.program_faults --seed={seed}`: {len(met)} of {count} runs of programs, each with one "
      "fault in one of its requests to SeaweedFS (S3) or fake-gcs-server (GCS) on the same machine. *Same*: the output "
      f"is that of a run without faults. *Clear error*: it names operation and path. {len(rows) - len(met)} other runs "
      f"ended before the fault. A stall takes {store_programs.STALL:.0f} s; the file layer repeats a request without "
      f"an answer after {store_programs.SILENCE:.0f} s. A run took {statistics.median(seconds):.1f} s (median; longest "
      f"{max(seconds):.1f} s).",
      118,
    ),
    "",
    *table(met, "program"),
    *table(met, "kind"),
    *table(met, "store"),
    *table([row | {"request": _kind_of(row["hit"])} for row in met], "request"),
  ]
  return "\n".join(lines)


def _kind_of(request: str) -> str:
  """Method and operation of a request, and what it is for."""
  method, operation, _ = request.split(" ", 2)
  asked = f"{method} {operation}"
  if ".lock" in request:
    return f"lock: {asked}"
  return f"{'inputs' if 'inputs' in request else 'output'}: {asked}"


def main() -> int:
  """Injects, and writes the results; 1 if a run ended neither right nor with a clear error."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--faults", type=int, default=200)
  parser.add_argument("--minutes", type=float, default=math.inf, help="no run is started later")
  store_programs.add_flags(parser, "program_faults")
  args = parser.parse_args()
  rows = run(args.faults, args.seed, args.minutes, args.work)
  figures = {"seed": args.seed, "drawn": args.faults, "faults": rows}
  results.write(args.output, "program_faults", page(rows, args.seed, args.faults), figures)
  return int(any(row["outcome"] not in (SAME, CLEAR) for row in rows))


if __name__ == "__main__":
  sys.exit(main())
