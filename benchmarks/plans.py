"""Plans of every run in gin/, with the published figures of the paper.

  python benchmarks/plans.py        # prints the table, writes benchmarks/plans.{md,json}

Parameters, tokens and operations are computed from shapes (`walt_t5x.plan`); the published figures are quoted from the
header of each gin file.
"""

import argparse
import dataclasses
import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))


def launched() -> list[Path]:
  """Training files of the published runs, in reading order: experiments, then ablations."""
  top = sorted((ROOT / "gin").glob("walt_*.gin"))
  files = top + sorted((ROOT / "gin/ablations").glob("*.gin"))
  return [file for file in files if "-m walt_t5x.train " in file.read_text(encoding="utf-8")]


def published(file: Path) -> tuple[str, str]:
  """(description of the run, published figures) from the header of a gin file."""
  head = file.read_text(encoding="utf-8").split("from __gin__")[0]
  lines = [line.removeprefix("#").strip() for line in head.splitlines()]
  figure = next((line for line in lines if line.startswith("Published:")), "")
  figure = figure.removeprefix("Published:").removesuffix("Not measured here.").strip(" .")
  return lines[0].rstrip("."), figure


def main() -> None:
  """Plans all files and writes the table."""
  argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  ).parse_args()
  from tqdm import tqdm

  import gin
  from walt_t5x import engine
  from walt_t5x.config import gin_config
  from walt_t5x.planning.run_plan import plan_gin

  sys.modules["__main__"].train = engine.train  # type: ignore[attr-defined]
  rows = []
  for file in tqdm(launched(), unit="file", disable=None):
    gin.clear_config()
    gin_config.parse([str(file)], [], [str(ROOT)], finalize=False)
    what, figure = published(file)
    name = str(file.relative_to(ROOT))
    rows.append(
      {"gin_file": name, "what": what, "published": figure} | dataclasses.asdict(plan_gin())
    )
  lines = [
    "# The published runs, planned",
    "",
    "Written by `python benchmarks/plans.py`. Parameters, tokens and operations per training step (products and",
    "convolutions of loss and gradient, including the self-conditioning pass) from shapes; no run has been trained.",
    "",
    "| gin file | run | published | parameters | tokens per example | batch size | steps | operations per step |",
    "| --- | --- | --- | --- | --- | --- | --- | --- |",
  ]
  for row in rows:
    what = re.sub(r"; everything else as in the default row", "", row["what"])
    lines.append(
      f"| `{row['gin_file']}` | {what} | {row['published']} | {row['parameters']:,} | {row['tokens_per_row']:,} | "
      f"{row['batch_size']:,} | {row['steps']:,} | {row['train_flops_per_step']:.3g} |"
    )
  print("\n".join(lines[5:]))
  (HERE / "plans.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
  (HERE / "plans.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
  main()
