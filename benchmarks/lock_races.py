"""Starts the same job twice at the same time, and again after its holder was killed, on a local disk and in stores.

  python -m benchmarks.lock_races                 # prints and writes benchmarks/lock_races.{md,json}
  python -m benchmarks.lock_races --races=6       # quicker

A race starts two launchers of one preprocessing job, or two trainings of a linear model in one MODEL_DIR. One has to
work, and write what an undisturbed run writes; the other has to name the holder (program, process, host, since when)
and exit with an error. In the stores, SeaweedFS (S3) and fake-gcs-server (GCS) on this machine, 5% of the requests fail
in each of the ways of `tests.stores.faults`. Then a holder is killed by SIGKILL, and the same command started again:
once as it is, and once after its lock was changed to one of another machine. Exit code 1 if something else happens.
"""

import argparse
import dataclasses
import itertools
import re
import socket
import statistics
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

from benchmarks import results, store_programs
from benchmarks.store_programs import LINEAR, PIXELS, Place
from tests import programs
from walt_t5x.files import locks, storage

LOCKS = {PIXELS: "kills.lock", LINEAR: "train.lock"}
LIMIT = 300.0
# Seconds from the start of a program: its imports, and the retries of a few requests.
SOON = 30.0


def race(place: Place, program: str, output: str, seed: int) -> dict[str, Any]:
  """Two starts at the same time."""
  found = store_programs.storm(program, seed)
  with place.behind(found) as environment:
    began = time.monotonic()
    both = [store_programs.start(program, place, output, environment) for _ in range(2)]
    seconds = [0.0, 0.0]
    while not all(seconds):
      for number, one in enumerate(both):
        if not one.running() and not seconds[number]:
          seconds[number] = time.monotonic() - began
      if time.monotonic() - began > LIMIT:
        raise TimeoutError(f"{program} in {output} has not ended")
      time.sleep(0.02)
  ends = sorted(zip([one.wait(1) for one in both], both, seconds, strict=True),
                key=lambda end: end[0].returncode)  # fmt: skip
  (won, winner, last), (lost, _, first) = ends
  name = "train" if program == LINEAR else "preprocess"
  told = rf"is in use by {name}: process (\d+) on {socket.gethostname()}, since \d{{4}}-\S+ \S+ UTC"
  match = re.search(told, lost.stderr)
  return {
    "exit_codes": [won.returncode, lost.returncode],
    "holder_named": bool(match) and int(match[1]) == winner.process.pid,
    "seconds": [last, first],
    "failed_requests": found.injected(),
    "message": lost.stderr[-2000:] if not match else match[0].replace(socket.gethostname(), "HOST"),
  }


def killed(place: Place, program: str, output: str) -> dict[str, Any]:
  """Kills the holder of a lock, which stays."""
  lock = f"{output}/{LOCKS[program]}"
  holder = store_programs.start(program, place, output, {})
  programs.until(holder, lambda: storage.exists(lock))
  time.sleep(0.3)  # It works.
  holder.process.kill()
  holder.process.join()
  return storage.read_json(lock)


@dataclasses.dataclass
class Restart:
  """A start after the kill of a lock's holder."""

  program: str
  place: Place
  output: str
  began: float = 0.0
  seconds: float = 0.0
  started: programs.Program | None = None

  def begin(self, *, another: bool) -> None:
    """Kills a holder, and starts the same command."""
    record = killed(self.place, self.program, self.output)
    if another:
      # What another machine sees: a boot and processes that are not its own, and a name.
      changes = {"machine": "another", "host": "another"}
      storage.write_json(f"{self.output}/{LOCKS[self.program]}", record | changes)
    self.began = time.monotonic()
    self.started = store_programs.start(self.program, self.place, self.output, {})

  def holds(self) -> bool:
    """Whether it holds the lock; notes since when."""
    assert self.started
    found = None if self.seconds else locks._read(f"{self.output}/{LOCKS[self.program]}")
    if found and found.get("process") == self.started.process.pid:
      self.seconds = time.monotonic() - self.began
    return self.seconds > 0 or not self.started.running()


def run(races: int, seed: int, work: Path | None) -> dict[str, Any]:
  """All races and restarts."""
  with store_programs.places(work) as places:
    pairs = list(itertools.product(LOCKS, places))
    local = places[store_programs.LOCAL]
    expected = {
      program: store_programs.run(program, local, f"{local.folder}/expected-{number}")
      for number, program in enumerate(LOCKS)
    }

    def right(program: str, output: str) -> bool:
      return not store_programs.differences(
        store_programs.contents(program, output), expected[program]
      )

    rows = []
    for number, (program, name) in zip(range(races), itertools.cycle(pairs)):
      place = places[name]
      output = f"{place.folder}/race-{number}"
      row = {"program": program, "place": name} | race(place, program, output, seed + number)
      rows.append(row | {"right": right(program, output)})
      print(rows[-1], flush=True)
    restarts = []
    for machine in ("same", "another"):
      begun = []
      for number, (program, name) in enumerate(pairs):
        begun.append(Restart(program, places[name], f"{places[name].folder}/{machine}-{number}"))
        begun[-1].begin(another=machine == "another")
        # Those that wait for the lock of another machine may do so at the same time.
        while machine == "same" and not begun[-1].holds():
          time.sleep(0.05)
      while not all([one.holds() for one in begun]):
        time.sleep(0.05)
      for one, (program, name) in zip(begun, pairs, strict=True):
        assert one.started
        ended = one.started.wait(LIMIT)
        row = {"program": program, "place": name, "machine": machine, "seconds": one.seconds}
        row |= {"exit_code": ended.returncode, "right": right(program, one.output)}
        restarts.append(row)
        print(row, flush=True)
  return {"seed": seed, "races": rows, "restarts": restarts}


def held(result: dict[str, Any]) -> bool:
  """Whether everything is as it has to be."""
  limits = {"same": SOON, "another": locks.EXPIRY + locks.SETTLE + SOON}
  return all(
    row["exit_codes"][0] == 0 and row["exit_codes"][1] not in (0, None) and row["holder_named"]
    and row["right"] for row in result["races"]
  ) and all(
    row["exit_code"] == 0 and row["right"] and row["seconds"] < limits[row["machine"]]
    for row in result["restarts"]
  )  # fmt: skip


def page(result: dict[str, Any]) -> str:
  """The results as a page."""
  lines = [
    "# Races for a lock",
    "",
    textwrap.fill(
      f"`python -m benchmarks.lock_races --seed={result['seed']}`: two launchers of one preprocessing job, or two "
      f"trainings in one MODEL_DIR, started at the same time. In the stores, {store_programs.STORES}. *Alone*: one "
      "program worked, the other was rejected. *Named*: it was told who holds the lock. *Right*: the output is that of "
      "an undisturbed run. Seconds are those from the start until the rejection: the median, and the longest.",
      118,
    ),
    "",
    "| program | place | races | alone | named | right | seconds |",
    "| --- | --- | --- | --- | --- | --- | --- |",
  ]
  kinds = dict.fromkeys((row["program"], row["place"]) for row in result["races"])
  for program, place in kinds:
    rows = [r for r in result["races"] if (r["program"], r["place"]) == (program, place)]
    alone = sum(r["exit_codes"][0] == 0 < r["exit_codes"][1] for r in rows)
    seconds = [r["seconds"][1] for r in rows]
    lines.append(
      f"| {program} | {place} | {len(rows)} | {alone} | {sum(r['holder_named'] for r in rows)} "
      f"| {sum(r['right'] for r in rows)} | {statistics.median(seconds):.1f} ({max(seconds):.1f}) |"
    )
  lines += [
    "",
    "After SIGKILL of the holder, the same command again, without faults. *Another*: the lock says that its holder ran",
    "on another machine. Seconds are those from the start of the command until it holds the lock.",
    "",
    "| program | place | machine | seconds | exit code | right |",
    "| --- | --- | --- | --- | --- | --- |",
    *(
      f"| {r['program']} | {r['place']} | {r['machine']} | {r['seconds']:.1f} | {r['exit_code']} "
      f"| {'yes' if r['right'] else 'NO'} |"
      for r in result["restarts"]
    ),
    "",
    f"Held: {held(result)}.",
  ]
  return "\n".join(lines) + "\n"


def main() -> int:
  """Runs the races, and writes the results; 1 if one does not end as it has to."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--races", type=int, default=20)
  store_programs.add_flags(parser, "lock_races")
  args = parser.parse_args()
  result = run(args.races, args.seed, args.work)
  results.write(args.output, "lock_races", page(result), result)
  return int(not held(result))


if __name__ == "__main__":
  sys.exit(main())
