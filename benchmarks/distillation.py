"""Distills the quickstart's cascade from 50 calls with guidance to 4 without, halving by halving, and scores each.

  python -m benchmarks.distillation FOLDER --quickstart=runs/quickstart     # about 35 minutes on two cores

Both stages are distilled side by side, each on its share of the cores: 50 -> 25 -> 13 -> 7 -> 4 calls (gin/distill).
Each cascade then gets the same 256 prompts and the same noise, as in `benchmarks.few_calls`. Fails unless the last one
is within 5 points of its teacher in every accuracy, its Frechet distances are at most 1.15 times as large, it takes at
least 12 times fewer examples of the networks and 8 times less time to sample, and the path took at most 25 minutes.
The tokenizer, which decodes each stage, is not distilled: its time is in the table, and not in the bar.

FOLDER gets runs and samples; a stopped command resumes. Writes benchmarks/distillation.{md,json}.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import few_calls, results
from scripts.quickstart_stages import last_metrics
from scripts.stages import Stage, Step, run_all

HERE = Path(__file__).resolve().parent
CALLS = (25, 13, 7, 4)
TEACHER_CALLS = 50
BATCH = 32  # of walt_t5x.generate
POINTS, RATIO, FEWER_EXAMPLES, FASTER, MINUTES = 0.05, 1.15, 12, 8, 25


@dataclass(frozen=True)
class Distilled:
  """A stage of the cascade.

  Attributes:
    part: folder of its run.
    gin: its gin file.
    branches: predictions that the teacher computes in each call.
    steps: training steps of each halving.
  """

  part: str
  gin: str
  branches: int
  steps: tuple[int, ...]

  def runs(self, folder: Path) -> list[Path]:
    """The student of each halving."""
    return [folder / f"{self.part}_{calls}" for calls in CALLS]

  def trainings(self, folder: Path, quickstart: Path) -> list[Stage]:
    """One for each halving, whose student is the next one's teacher."""
    runs, found = self.runs(folder), []
    for number, (calls, steps, run) in enumerate(zip(CALLS, self.steps, runs)):
      teacher = runs[number - 1] if number else quickstart / self.part
      command = ["python", "-m", "walt_t5x.train", f"--gin_file=gin/distill/{self.gin}.gin"]
      command += [f'--gin.TEACHER="{teacher}"', f"--gin.CALLS={calls}"]
      command += [] if number else [f"--gin.TEACHER_CALLS={TEACHER_CALLS}"]
      # The last one teaches no other.
      command += ["--gin.GRID_SHARE=1.0"] if calls == CALLS[-1] else []
      command += [f'--gin.MODEL_DIR="{run}"', f"--gin.TRAIN_STEPS={steps}"]
      command += [f"--seqio_additional_cache_dirs={quickstart / 'cache'}", "--verbosity=-1"]
      describe = lambda _, run=run: last_metrics(run, "loss")  # noqa: E731
      found.append(Stage(f"{self.part} to {calls} calls", command, describe))
    return found


STAGES = (
  Distilled("base", "tiny_base", 2, (1700, 1000, 1200, 2000)),
  Distilled("sr1", "tiny_sr", 1, (800, 800, 1000, 1800)),
)


def cascades(folder: Path, quickstart: Path) -> dict[int, list[str]]:
  """Calls of each stage -> flags of the cascade; the teacher first."""
  found = {
    TEACHER_CALLS: [
      *(f"--run={quickstart / stage.part}" for stage in STAGES), f"--num_steps={TEACHER_CALLS}"
    ]
  }  # fmt: skip
  for number, calls in enumerate(CALLS):
    found[calls] = [f"--run={stage.runs(folder)[number]}" for stage in STAGES]
  return found


def examples(calls: int) -> int:
  """Examples that the networks compute for one sample of the cascade."""
  return sum(calls * (stage.branches if calls == TEACHER_CALLS else 1) for stage in STAGES)


def seconds(samples: Path, *parts: str) -> float:
  """Median seconds of these parts of a batch, all stages."""
  sidecars = [json.loads(f.read_text(encoding="utf-8")) for f in samples.glob("[0-9]*.json")]
  return statistics.median(
    sum(stage[part] for stage in sidecar["batch_seconds"].values() for part in parts)
    for sidecar in sidecars
  )


def page_of(rows: Mapping[str, Any], minutes: float) -> str:
  """The table."""
  reference = rows[str(TEACHER_CALLS)]
  lines = [
    "# Distillation",
    "",
    "Written by `python -m benchmarks.distillation FOLDER`, which says what is measured. Calls are those of each",
    "stage, examples those of both networks per sample. The first row is the teacher. Seconds are those of a batch of",
    f"{BATCH}. SR: after super-resolution. All trainings took {minutes:.1f} minutes on two cores, both stages side by",
    "side.",
    "",
    "| calls | examples | seconds to sample | and decode | color, direction, shape | SR | Frechet distance | SR |",
    "| --- | --- | --- | --- | --- | --- | --- | --- |",
  ]
  for calls, row in rows.items():
    cells = [calls, f"{row['examples']}"]
    for name in ("seconds", "seconds_with_decoding"):
      cells.append(f"{row[name]:.2f} ({row[name] / reference[name]:.3f})")
    for stage in few_calls.SIZES:
      cells.append(" ".join(f"{100 * row[stage][one]:.1f}" for one in few_calls.ELEMENTS))
    for stage in few_calls.SIZES:
      ratio = row[stage]["frechet"] / reference[stage]["frechet"]
      cells.append(f"{row[stage]['frechet']:.2f} ({ratio:.2f})")
    lines.append("| " + " | ".join(cells) + " |")
  return "\n".join(lines) + "\n"


def held(rows: Mapping[str, Any], minutes: float) -> dict[str, bool]:
  """Each bar, and whether it is met."""
  teacher, student = rows[str(TEACHER_CALLS)], rows[str(CALLS[-1])]
  return {
    "scores": few_calls.as_good(student, teacher, points=POINTS, ratio=RATIO),
    "examples": teacher["examples"] >= FEWER_EXAMPLES * student["examples"],
    "seconds": teacher["seconds"] >= FASTER * student["seconds"],
    "minutes": minutes <= MINUTES,
  }


def main(arguments: Sequence[str] | None = None) -> int:
  """Trains, samples, scores, writes."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("folder", type=Path)
  parser.add_argument("--quickstart", type=Path, required=True, help="folder of a finished one")
  args = parser.parse_args(arguments)
  folder, quickstart = args.folder.absolute(), args.quickstart.absolute()
  few_calls.write_prompts(folder, quickstart, few_calls.PROMPTS)
  lanes = tuple(stage.trainings(folder, quickstart) for stage in STAGES)
  todo: list[Step] = [lanes]
  flags = cascades(folder, quickstart)
  for number, cascade in enumerate(flags.values()):
    todo += few_calls.scored(number, cascade, folder, quickstart)
  done, printed = run_all(todo, folder / "finished.json", lambda _: 60)
  taken = {one.name: one.seconds for one in done}
  minutes = max(sum(taken[stage.name] for stage in lane) for lane in lanes) / 60
  rows = {}
  for number, calls in enumerate(flags):
    samples = folder / f"{number:02d}" / "samples"
    times = seconds(samples, "sample"), seconds(samples, "sample", "decode")
    rows[str(calls)] = few_calls.measures(number, printed) | {
      "examples": examples(calls), "seconds": times[0], "seconds_with_decoding": times[1]
    }  # fmt: skip
  bars = held(rows, minutes)
  figures = {"prompts": few_calls.PROMPTS, "rows": rows, "minutes": minutes, "held": bars}
  results.write(HERE, "distillation", page_of(rows, minutes), figures)
  print(bars)
  return 0 if all(bars.values()) else 1


if __name__ == "__main__":
  sys.exit(main())
