"""Memory of an evaluation of ten thousand clips, and its score after kills and with several processes and workers.

  python -m walt_t5x.train_surrogate --output=shapes.safetensors
  python -m benchmarks.evaluation_scale --shapes_weights=shapes.safetensors --i3d_weights=i3d.safetensors --folder=DIR

Writes 10,000 synthetic clips of 16 x 128 x 128 as mp4 (kept in the folder for the next run) and runs
`walt_t5x.evaluate` on them, each time as a separate command:

  all           10,000 samples against 1,000 references: clips/s and peak memory
  one           1,000 against 1,000, one process: peak memory, and the reference score
  killed        the same, SIGKILL when half of the parts exist, then the same command again
  two           the same with two concurrent processes, then the command that merges
  Beam          the same with `beam_jobs.evaluate` on two worker processes
  I3D           48 against 48 with the real network, if --i3d_weights is set: clips/s

Prints a table and writes JSON next to this file.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REAL = 48


def write_clips(folder: Path, count: int) -> None:
  """Writes `count` mp4 files of moving shapes, rendered at 32 x 32 and enlarged by nearest neighbor."""
  import numpy as np

  from data.samples import shapes
  from walt_t5x.media import writing

  rng = np.random.default_rng(0)
  for i, (color, shape, direction) in enumerate(
    shapes.balanced_vocabulary(rng, count, moving=True)
  ):
    scene = shapes.sample_scene(rng, color=color, shape=shape, direction=direction)
    path = folder / f"{i:05d}.mp4"
    if not path.is_file():
      clip = shapes.render(scene, num_frames=16, size=32)
      writing.write_video(path, clip, fps=8, scale=4)


def write_manifest(folder: Path, name: str, first: int, count: int) -> Path:
  """Writes a manifest of `count` of the clips."""
  path = folder / f"{name}.jsonl"
  rows = ({"uri": f"clips/{i:05d}.mp4", "modality": "video"} for i in range(first, first + count))
  path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
  return path


class Command:
  """An evaluation in a separate process."""

  def __init__(self, module: str, flags: list[str]):
    self.process = subprocess.Popen(
      [sys.executable, "-m", module, *flags], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    self.started = time.monotonic()

  def finish(self) -> dict:
    """Its last JSON line, with seconds, peak MiB and, if printed, clips/s.

    Raises:
      SystemExit: if it failed.
    """
    assert self.process.stdout is not None
    lines = self.process.stdout.read().splitlines()
    _, status, usage = os.wait4(self.process.pid, 0)
    if status:
      sys.exit(f"evaluation_scale: an evaluation failed with status {status}")
    said = next((line for line in lines if "clips/s" in line), "")
    rate = re.search(r"([\d.]+) clips/s", said)
    return json.loads(lines[-1]) | {
      "seconds": time.monotonic() - self.started,
      "peak_mib": usage.ru_maxrss / 1024,
      "clips_per_second": float(rate[1]) if rate else None,
      "said": said,
    }


def killed(flags: list[str], parts: Path, total: int) -> int:
  """Starts an evaluation and kills it when half of the parts exist; returns their number."""
  command = Command("walt_t5x.evaluate", flags)
  while len(list(parts.glob("*/[sr]*.npz"))) < total // 2:
    if command.process.poll() is not None:
      sys.exit("evaluation_scale: the evaluation ended before it could be killed")
    time.sleep(0.05)
  command.process.send_signal(signal.SIGKILL)
  command.process.wait()
  return len(list(parts.glob("*/[sr]*.npz")))


def main() -> None:
  """Runs the evaluations, prints the table and writes the JSON."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--shapes_weights", required=True)
  parser.add_argument("--i3d_weights")
  parser.add_argument("--folder", type=Path, required=True, help="folder of clips and parts")
  parser.add_argument("--clips", type=int, default=10_000)
  parser.add_argument("--few", type=int, default=1000, help="clips of the smaller sets")
  parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
  args = parser.parse_args()
  if args.few < 20 or args.clips < 2 * args.few:
    parser.error(f"expected --few >= 20 and --clips >= 2 * --few, got {args.few}, {args.clips}")
  if args.i3d_weights and args.clips < 2 * REAL:
    parser.error(f"expected --clips >= {2 * REAL} with --i3d_weights, got {args.clips}")
  import shutil
  import tempfile

  (args.folder / "clips").mkdir(parents=True, exist_ok=True)
  write_clips(args.folder / "clips", args.clips)
  everything = write_manifest(args.folder, "all", 0, args.clips)
  few = write_manifest(args.folder, "few", 0, args.few)
  reference = write_manifest(args.folder, "reference", args.clips - args.few, args.few)
  total = 2 * -(-args.few // (args.few // 10))
  work = Path(tempfile.mkdtemp(prefix="parts-", dir=args.folder))

  def flags(samples: Path, name: str, *more: str) -> list[str]:
    return [
      "--protocol=shapes_fvd",
      "--frames=16",
      f"--samples={samples}",
      f"--reference={reference}",
      f"--shapes_weights={args.shapes_weights}",
      "--batch_size=16",
      f"--clips_per_part={args.few // 10}",
      f"--output={work / name}.json",
      *more,
    ]

  def run(name: str, module: str, *more: str, samples: Path = few) -> dict:
    result = Command(module, flags(samples, name, *more)).finish()
    print(f"{name}: {result['said']}", file=sys.stderr, flush=True)
    return result

  evaluate = "walt_t5x.evaluate"
  rows = {"all": run("all", evaluate, samples=everything), "one": run("one", evaluate)}
  keep = f"--parts_dir={work / 'killed'}"
  there = killed(flags(few, "killed", keep), work / "killed", total)
  rows["killed"] = run("killed", evaluate, keep) | {"parts_at_the_kill": there}
  keep = f"--parts_dir={work / 'two'}"
  both = [
    Command(evaluate, flags(few, "two", keep, f"--process_index={i}", "--process_count=2"))
    for i in range(2)
  ]
  made = [command.finish() for command in both]
  rows["two"] = run("two", evaluate, keep) | {"processes": made}
  workers = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
  rows["Beam"] = run("Beam", "beam_jobs.evaluate", "--runner=FnApiRunner", *workers)
  if args.i3d_weights:
    real = [write_manifest(args.folder, f"i3d_{i}", i * REAL, REAL) for i in range(2)]
    more = [f"--samples={real[0]}", f"--reference={real[1]}", f"--i3d_weights={args.i3d_weights}"]
    more = ["--protocol=fvd", *more, "--batch_size=4", f"--output={work / 'i3d.json'}"]
    rows["I3D"] = Command(evaluate, more).finish()

  def score(row: dict) -> float:
    (found,) = row["scores"].values()
    return found["score"]

  print("| run | clips | clips/s | peak MiB | score | differs from `one` by |")
  print("| --- | --- | --- | --- | --- | --- |")
  for name, row in rows.items():
    (found,) = row["scores"].values()
    row.pop("file", None)
    row["clips"] = found["samples"] + found["references"]
    if name in ("killed", "two", "Beam"):
      row["relative_difference"] = abs(score(row) / score(rows["one"]) - 1)
    difference = row.get("relative_difference")
    rate = row["clips_per_second"]
    print(
      f"| {name} | {row['clips']:,} | {'' if rate is None else f'{rate:.1f}'} | {row['peak_mib']:.0f} | "
      f"{score(row):.10g} | {'' if difference is None else f'{difference:.1e}'} |"
    )
  rate = sum(m["clips"] for m in made) / max(m["seconds"] for m in made)
  print(f"\nkilled with {there} of {total} parts kept; two processes together {rate:.1f} clips/s")
  args.output.write_text(json.dumps(rows, indent=1, default=str) + "\n", encoding="utf-8")
  shutil.rmtree(work)


if __name__ == "__main__":
  main()
