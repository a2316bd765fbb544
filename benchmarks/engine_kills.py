"""Kills a training run at random steps, restarts it each time, and compares it with an undisturbed run.

  python -m benchmarks.engine_kills                 # ten SIGKILLs and one SIGTERM; prints and writes the table
  python -m benchmarks.engine_kills --kills=2       # quicker
  python -m benchmarks.engine_kills --distilled     # the distillation of such a run, with guidance as an input

The run is a narrower `gin/tiny/base.gin` (benchmarks/engine_run.gin): the denoiser with caption dropout and
self-conditioning, a mixture of images and videos from cached tasks, AdamW, parameter average, a checkpoint every 10
steps. SIGKILL is sent during random steps: some before the first checkpoint, some while one is written. At the end,
parameters, average, optimizer state and the examples of every step must be bit-identical to those of the undisturbed
run, and a step that was trained twice must have read the same examples both times. SIGTERM must lose no step and exit
with 75. Writes engine_kills.{md,json}, or engine_kills_distilled.{md,json}.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import results
from walt_t5x.files import storage

HERE = Path(__file__).resolve().parent
STEPS = 60


def command(
  folder: storage.PathLike,
  cache: storage.PathLike,
  steps: int,
  teacher: storage.PathLike | None = None,
) -> list[str]:
  """The training command, of a student if a teacher is given; the same before and after a kill."""
  distillation = [
    "--gin_file=gin/runs/distill.gin",
    f'--gin.TEACHER="{teacher}"',
    "--gin.CALLS=4",
    "--gin.TEACHER_CALLS=8",
    "--gin.GUIDANCE_RANGE=(1.0, 4.0)",
  ]
  return [
    sys.executable,
    "-m",
    "walt_t5x.train",
    "--gin_file=benchmarks/engine_run.gin",
    *(distillation if teacher is not None else []),
    f'--gin.MODEL_DIR="{folder}"',
    f"--gin.TRAIN_STEPS={steps}",
    f"--seqio_additional_cache_dirs={cache}",
    "--verbosity=-1",
  ]


def environment(work: Path) -> dict[str, str]:
  """One CPU device; compiled programs are cached between restarts."""
  return os.environ | {
    "JAX_PLATFORMS": "cpu",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "XLA_FLAGS": "",
    "WALT_T5X_ENGINE": "builtin",
    "JAX_COMPILATION_CACHE_DIR": str(work / "xla"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }


@dataclass(frozen=True)
class Run:
  """A training that is started again and again.

  Attributes:
    folder: of the run; its output goes to a file next to it.
    cache: of the examples.
    teacher: of a student, its teacher's run.
    steps: at which it ends.
  """

  folder: Path
  cache: Path
  teacher: Path | None = None
  steps: int = STEPS

  @property
  def log(self) -> Path:
    return self.folder.parent / f"{self.folder.name}.log"

  def start(self) -> subprocess.Popen:
    call = command(self.folder, self.cache, self.steps, self.teacher)
    with self.log.open("a") as log:
      return subprocess.Popen(
        call, cwd=HERE.parent, env=environment(self.folder.parent), stderr=log, stdout=log
      )

  def finish(self) -> None:
    """Starts it and waits for its end; a failure ends this program with the run's last messages."""
    if self.start().wait(timeout=900):
      sys.exit(self.log.read_text()[-4000:])


def last_step(folder: Path) -> int:
  """The newest step whose examples are logged, -1 before the first."""
  file = folder / "rows_0.jsonl"
  lines = file.read_text().splitlines() if file.exists() else []
  for line in reversed(lines):
    try:
      return json.loads(line)["step"]
    except ValueError:
      continue
  return -1


def stop_at(process: subprocess.Popen, folder: Path, step: int, kind: signal.Signals) -> int:
  """Sends the signal during `step`; returns the exit code."""
  noted = folder / "rows_0.jsonl"
  size = noted.stat().st_size if noted.exists() else 0
  while process.poll() is None:
    fresh = noted.exists() and noted.stat().st_size > size
    if fresh and last_step(folder) >= step:
      process.send_signal(kind)
      break
    time.sleep(0.002)
  return process.wait(timeout=900)


def state_of(folder: storage.PathLike) -> dict[str, np.ndarray]:
  from flax import traverse_util

  from walt_t5x.engine import checkpoints

  flat = traverse_util.flatten_dict(checkpoints.load_state_dict(folder), sep="/")
  return {name: np.asarray(array) for name, array in flat.items()}


def part(name: str) -> str:
  """The part of the state that an array belongs to."""
  if name.startswith("target/"):
    return "parameters"
  return "average" if "/ema/" in name else "optimizer state"


def run(kills: int, seed: int, distilled: bool) -> dict[str, Any]:
  from benchmarks.engine_rows import rows_by_step, write_cache
  from walt_t5x.engine import checkpoints

  rng = random.Random(seed)
  with tempfile.TemporaryDirectory() as temporary:
    work = Path(temporary)
    cache, peace, killed = work / "cache", work / "peace", work / "killed"
    write_cache(cache, videos=96, images=96, shards=4)
    teacher = work / "teacher" if distilled else None
    if teacher:
      Run(teacher, cache, steps=10).finish()
    started = time.monotonic()
    Run(peace, cache, teacher).finish()
    seconds = time.monotonic() - started

    steps = sorted(rng.sample(range(1, STEPS - 1), kills))
    term = rng.randrange(steps[len(steps) // 2] + 1, STEPS - 1) if kills else STEPS // 2
    events = sorted([(s, signal.SIGKILL) for s in steps] + [(term, signal.SIGTERM)])
    table = []
    for step, kind in events:
      code = stop_at(Run(killed, cache, teacher).start(), killed, step, kind)
      reached, newest = last_step(killed), checkpoints.complete_steps(killed)
      table.append(
        {
          "signal": kind.name,
          "during_step": reached,
          "exit": code,
          "newest_checkpoint": newest[-1] if newest else None,
          "incomplete": sum(
            1 for p in killed.glob("checkpoint_*") if checkpoints.why_incomplete(p) is not None
          ),
        }
      )
      print(json.dumps(table[-1]), flush=True)
    Run(killed, cache, teacher).finish()
    a, b = state_of(peace), state_of(killed)
    assert a.keys() == b.keys()
    parts: dict[str, list[bool]] = {}
    for name in a:
      parts.setdefault(part(name), []).append(a[name].tobytes() == b[name].tobytes())
    rows = rows_by_step(peace) == rows_by_step(killed)
    terminated = next(e for e in table if e["signal"] == "SIGTERM")
    return {
      "steps": STEPS,
      "seconds_in_peace": round(seconds, 1),
      "events": table,
      "identical_arrays": {k: f"{sum(v)} of {len(v)}" for k, v in parts.items()},
      "identical": all(all(v) for v in parts.values()),
      "rows_identical": rows,
      "sigterm_exit": terminated["exit"],
      # Examples are logged when a step starts; the last of these steps is finished and saved, hence + 1.
      "sigterm_lost_steps": terminated["during_step"] + 1 - terminated["newest_checkpoint"],
    }


def markdown(result: dict[str, Any]) -> str:
  lines = [
    "| signal | during step | exit | newest complete checkpoint | incomplete folders |",
    "| --- | --- | --- | --- | --- |",
  ]
  for e in result["events"]:
    lines.append(
      f"| {e['signal']} | {e['during_step']} | {e['exit']} | {e['newest_checkpoint']} | {e['incomplete']} |"
    )
  lines += ["", "| compared with the undisturbed run | bit-identical |", "| --- | --- |"]
  lines += [f"| {name} | {count} arrays |" for name, count in result["identical_arrays"].items()]
  lines += [f"| examples of all {result['steps']} steps | {result['rows_identical']} |"]
  lines += [f"| steps lost to SIGTERM | {result['sigterm_lost_steps']} |"]
  return "\n".join(lines) + "\n"


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--kills", type=int, default=10)
  parser.add_argument("--seed", type=int, default=0, help="seed of the steps")
  parser.add_argument("--distilled", action="store_true", help="the run is a distillation")
  parser.add_argument("--output", default=str(HERE), help="folder of the tables")
  arguments = parser.parse_args()
  result = run(arguments.kills, arguments.seed, arguments.distilled)
  name, title = "engine_kills", "# Kill test"
  if arguments.distilled:
    name, title = f"{name}_distilled", f"{title} of a distillation"
  results.write(arguments.output, name, f"{title}\n\n{markdown(result)}", result)
  held = (
    result["identical"]
    and result["rows_identical"]
    and result["sigterm_exit"] == 75
    and result["sigterm_lost_steps"] == 0
  )
  print("held" if held else "NOT HELD")
  return 0 if held else 1


if __name__ == "__main__":
  sys.exit(main())
