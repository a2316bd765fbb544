"""Steps per second and page faults of the tiny base stage with three allocators, on the CPU.

  python -m benchmarks.allocators                     # prints the table, writes benchmarks/allocators.{md,json}

`gin/tiny/base.gin` trains on a cache of random latents with each allocator in turn, set by scripts/allocator.sh. Steps
per second are the median of the periods after the first, which compiles; page faults are those of the entire process.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ALLOCATORS = ("glibc", "hugetlb", "tcmalloc")


def environment(allocator: str) -> dict[str, str]:
  """Environment variables of a program with one of the allocators.

  Raises:
    SystemExit: if the machine does not have the allocator.
  """
  clean = {k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "GLIBC_TUNABLES")}
  script = f"source {HERE.parent / 'scripts/allocator.sh'} && env -0"
  done = subprocess.run(
    ["bash", "-c", script],
    env=clean | {"ALLOCATOR": allocator},
    capture_output=True,
    text=True,
    check=False,
  )
  if done.returncode:
    sys.exit(done.stderr.strip())
  return dict(entry.split("=", 1) for entry in done.stdout.split("\0") if entry)


def train(allocator: str, cache: Path, model_dir: Path, steps: int) -> dict[str, float]:
  """Steps per second and page faults of one run."""
  command = [sys.executable, "-m", "walt_t5x.train", "--gin_file=gin/tiny/base.gin"]
  command += [f'--gin.MODEL_DIR="{model_dir}"', f"--gin.TRAIN_STEPS={steps}"]
  command += ["--gin.STATS_PERIOD=10", "--gin.EVAL_PERIOD=100000", "--gin.SAVE_PERIOD=100000"]
  command += ["--gin.schedules.warmup_cosine.warmup_steps=5"]
  command += [f"--seqio_additional_cache_dirs={cache}", "--verbosity=-1"]
  process = subprocess.Popen(command, cwd=HERE.parent, env=environment(allocator))
  _, status, usage = os.wait4(process.pid, 0)
  if status:
    sys.exit(f"allocators: training under {allocator} failed with status {status}: {command}")
  lines = map(json.loads, (model_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
  rates = [line["steps_per_second"] for line in lines if "steps_per_second" in line]
  return {
    "steps_per_second": statistics.median(rates[1:]),
    "page_faults": usage.ru_minflt,
    "peak_gib": usage.ru_maxrss / 2**20,
  }


def main() -> None:
  """Measures and writes the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--steps", type=int, default=60, help="steps per run")
  parser.add_argument("--turns", type=int, default=2, help="runs per allocator")
  args = parser.parse_args()
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  from benchmarks import engine_rows

  runs: dict[str, list[dict[str, float]]] = {name: [] for name in ALLOCATORS}
  with tempfile.TemporaryDirectory() as folder:
    cache = Path(folder) / "cache"
    engine_rows.write_cache(cache, videos=512, images=128, shards=2)
    for turn in range(args.turns):
      for name in ALLOCATORS:
        runs[name].append(train(name, cache, Path(folder) / f"{name}_{turn}", args.steps))
  rows = []
  for name, measured in runs.items():
    rate, faults, peak = (
      statistics.median(run[key] for run in measured)
      for key in ("steps_per_second", "page_faults", "peak_gib")
    )
    rows.append(
      {"allocator": name, "steps_per_second": rate, "page_faults": faults, "peak_gib": peak}
    )
  lines = [
    "# Allocators, on the CPU",
    "",
    f"`python -m benchmarks.allocators --steps={args.steps} --turns={args.turns}`: `gin/tiny/base.gin` on "
    f"{os.cpu_count()} CPU cores ({platform.machine()}), in turns.",
    "`scripts/allocator.sh` sets them: default glibc, `GLIBC_TUNABLES=glibc.malloc.hugetlb=1`, tcmalloc preloaded.",
    "",
    "| allocator | steps per second | ratio to glibc | page faults | peak GiB |",
    "| --- | --- | --- | --- | --- |",
  ]
  for row in rows:
    ratio = row["steps_per_second"] / rows[0]["steps_per_second"]
    lines.append(
      f"| {row['allocator']} | {row['steps_per_second']:.2f} | {ratio:.2f} | {row['page_faults']:,.0f} | "
      f"{row['peak_gib']:.2f} |"
    )
  print("\n".join(lines[5:]))
  (HERE / "allocators.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
  settings = {"arguments": vars(args), "cpu_count": os.cpu_count(), "machine": platform.machine()}
  (HERE / "allocators.json").write_text(
    json.dumps(settings | {"rows": rows, "runs": runs}, indent=2) + "\n"
  )


if __name__ == "__main__":
  main()
