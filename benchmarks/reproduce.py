"""Writes docs/reproduce.md: every row of the paper's Tables 1 to 5 with its commands, cost and status.

  python -m benchmarks.reproduce                       # writes docs/reproduce.md
  python -m benchmarks.reproduce --row=ablations/patch_2   # prints the commands of one row

Published figures and costs come from benchmarks/plans.json (`python benchmarks/plans.py`).
"""

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

from benchmarks import reproduce_commands as commands

HERE = Path(__file__).resolve().parent
PAGE = HERE.parent / "docs/reproduce.md"
# A run's cost at 40% of the peak of a v5p chip, 459e12 operations per second.
ASSUMED_USE, V5P = 0.4, 459e12


def chip_days(plan: dict) -> float:
  """Days of one v5p chip at the assumed utilization."""
  return plan["train_flops_per_step"] * plan["steps"] / (ASSUMED_USE * V5P) / 86400


def wrapped(command: str) -> list[str]:
  """A command as an indented block of lines of at most 116 characters."""
  lines, line = [], "   "
  for word in command.split(" "):
    if len(line) + len(word) > 112 and line.strip():
      lines.append(line + " \\")
      line = "     "
    line += " " + word
  return [*lines, line]


def rounded(value: float) -> str:
  """Chip days with two digits, or no decimals from 10 on."""
  return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _prose(text: str) -> list[str]:
  return [*textwrap.wrap(text, 120, break_on_hyphens=False), ""]


def page(plans: dict[str, dict]) -> str:
  """The document."""
  lines = [
    "# Reproducing the paper, row by row",
    "",
    "    python -m benchmarks.reproduce --row=walt_l_ucf101     # prints the commands of one row",
    "",
    *_prose(
      "The table has every row of the paper's Tables 1 to 5; below it are the commands of each run, from raw data to "
      "score. **No row has been trained, and no score on this page has been measured.** Checked on CPU: the parameters "
      "of each run equal the published ones, its loss traces with the right shapes, and the same commands run at toy "
      "size (`bash scripts/quickstart.sh`). `python -m benchmarks.reproduce` writes this page, and "
      "`tests/docs_test.py` parses every command."
    ),
    *_prose(
      "BUCKET is a folder that all hosts see. Training runs on every host of the slice ([pods.md](pods.md)), "
      "preprocessing on any Beam runner ([dataflow.md](dataflow.md)). `--shard=3/8` splits sampling into jobs, which "
      "resume after an interruption and share one manifest. Weights of the scoring networks: [evaluation.md]"
      "(evaluation.md)."
    ),
    *_prose(
      f"Chip days are days of one v5p chip at {ASSUMED_USE:.0%} of its peak, from the operations of the training steps "
      "(`python -m walt_t5x.plan`). The TPU compiler's figures for a slice are in "
      "[benchmarks/tpu_plan.md](../benchmarks/tpu_plan.md). Both are estimates."
    ),
    "| table | row | published | gin file | parameters | steps | chip days | status |",
    "| --- | --- | --- | --- | --- | --- | --- | --- |",
  ]
  for row in commands.ROWS:
    plan = plans[f"gin/{row.gin}.gin"]
    figures = row.published or plan["published"].split(", after ")[0].split(" (c = 8")[0]
    lines.append(
      f"| {row.table} | {row.name} | {figures} | `gin/{row.gin}.gin` | {plan['parameters'] / 1e6:,.1f}M | "
      f"{plan['steps']:,} | {rounded(chip_days(plan))} | not trained |"
    )
  lines += [
    "",
    "## Rehearsal",
    "",
    "    bash scripts/rehearse.sh ucf101     # or k600, imagenet, t2v",
    "",
    *_prose(
      "Runs every command of a corpus below as printed, then its report, in 5 to 10 minutes on two CPU cores. It shows "
      "whether the commands and a copy of the corpus work before a pod is rented: `--corpus=DIR` takes the first rows "
      "of the copy, `--output=FOLDER` sets the work folder, `--list` prints the commands. Without `--corpus` it uses a "
      "look-alike (`python -m data.lookalikes`). DIR contains what the commands name:"
    ),
    "| corpus | DIR contains |",
    "| --- | --- |",
    "| `imagenet` | `ILSVRC/Data/CLS-LOC`, `LOC_synset_mapping.txt`, `LOC_val_solution.csv` if its `val` is flat |",
    "| `ucf101` | `UCF-101`, `ucfTrainTestlist`; what `imagenet` has, here or in a folder `imagenet` |",
    "| `k600` | `k600/train.csv`, `k600/train`, `k600/validate`; what `imagenet` has, as above |",
    "| `t2v` | `LONG_VIDEOS.parquet`, `MANIFEST.parquet`, their media, `UCF-101`, `ucfTrainTestlist`; what `imagenet` "
    "has, as above |",
    "",
    *_prose(
      "Each gin file includes the real one, then `gin/rehearsal/`: two steps of narrow networks at "
      "the published resolutions. BUCKET is a folder in the work folder. The weights of the scoring and "
      "perceptual networks and of the text encoder are random, and 10 samples are scored, so the scores mean "
      "nothing. After a failure the same command resumes with the command that failed."
    ),
  ]
  lines.pop()
  needs = "Needs, from here on: the corpora, the weights of the perceptual network ([vae.md](vae.md)), and a TPU pod."
  lines += ["", "## Data, tokenizers, requests", "", *_prose(needs)]
  lines += ["### The image tokenizer", ""]
  lines += _prose(
    "The video tokenizers start from an image tokenizer with their widths, trained on ImageNet as in MAGVIT-v2 (the "
    "paper does not name its images)."
  )
  for what, command in commands.IMAGE_TOKENIZER:
    lines += [f"    # {what}", *wrapped(command)]
  lines.append("")
  for benchmark in commands.BENCHMARKS.values():
    lines += [f"### {benchmark.title}", "", *_prose(benchmark.note)]
    for what, command in benchmark.commands:
      lines += [f"    # {what}", *wrapped(command)]
    lines.append("")
  lines += ["## Rows", ""]
  seen: set[str] = set()
  for row in commands.ROWS:
    if row.gin in seen:
      continue
    seen.add(row.gin)
    tables = [f"{r.table} ({r.name})" for r in commands.ROWS if r.gin == row.gin]
    lines += [f"### `gin/{row.gin}.gin`: Table {', '.join(tables)}", ""]
    for _, command in commands.commands_of(row.gin):
      lines += wrapped(command)
    lines.append("")
  lines += [
    "## What is missing",
    "",
    "- Table 3f's row of c = 8 has FVD 75.4 and IS 86.3, the same defaults in Tables 3b and 3c 59.6 and 61.4: it is",
    "  another setting, which the paper does not name. Our row is the default.",
    "- Table 3f does not name the clips of its rFVD. Assumption: the 3,783 held-out videos of `testlist01.txt`,",
    "  the first 16 of 17 frames at a random place of each.",
    "- Table 3b does not name the hardware of its steps per second; [benchmarks/windows.md](../benchmarks/windows.md)",
    "  compares the windows on a CPU.",
    "- Table 4's final losses are in the runs' `metrics.jsonl`.",
  ]
  return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
  """Writes the page, or prints one row's commands."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--row", help="gin file of a row, below gin/ and without suffix")
  args = parser.parse_args(argv)
  if args.row:
    found = [row for row in commands.ROWS if row.gin == args.row]
    if not found:
      sys.exit(f"--row={args.row}: expected one of {sorted({row.gin for row in commands.ROWS})}")
    for what, command in commands.all_commands(found[0]):
      print(f"# {what}\n{command}\n")
    return
  plans = json.loads((HERE / "plans.json").read_text(encoding="utf-8"))
  PAGE.write_text(page({plan["gin_file"]: plan for plan in plans}), encoding="utf-8")
  print(f"{len(commands.ROWS)} rows: {PAGE}")


if __name__ == "__main__":
  main()
