"""Runs the stages of the quickstart, each a separate command, and prints the time, memory and result of each."""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
COLOR_BAR, DIRECTION_BAR = 0.75, 0.50
UPSCALING = "super-resolution against bicubic"


@dataclass(frozen=True)
class Stage:
  """One command.

  result: maps the last JSON line that the command printed (or {}) to the table's entry.
  """

  name: str
  command: Sequence[str]
  result: Callable[[dict[str, Any]], str]


@dataclass(frozen=True)
class Done:
  """Time, memory and result of a stage."""

  name: str
  seconds: float
  peak_mib: float
  result: str


def run(stage: Stage) -> tuple[Done, dict[str, Any]]:
  """Runs one stage; its output is printed.

  Raises:
    SystemExit: if it fails, with its command.
  """
  print(f"\n== {stage.name}\n$ {shlex.join(stage.command)}", flush=True)
  started = time.monotonic()
  process = subprocess.Popen(
    [sys.executable, *stage.command[1:]], cwd=ROOT, stdout=subprocess.PIPE, text=True
  )
  last = {}
  for line in process.stdout:
    print(line, end="", flush=True)
    if line.startswith("{"):
      last = json.loads(line)
  # wait4 returns the peak of this child only; getrusage would include earlier children.
  _, status, usage = os.wait4(process.pid, 0)
  if status:
    sys.exit(
      f"quickstart: {stage.name} failed (status {os.waitstatus_to_exitcode(status)}); its command:\n"
      f"  {shlex.join(stage.command)}"
    )
  seconds = time.monotonic() - started
  return Done(stage.name, seconds, usage.ru_maxrss / 1024, stage.result(last)), last


def last_metrics(model_dir: Path, *names: str) -> str:
  """The last value of each metric in a run's metrics.jsonl."""
  values: dict[str, float] = {}
  with (model_dir / "metrics.jsonl").open(encoding="utf-8") as lines:
    for line in lines:
      values |= {k: v for k, v in json.loads(line).items() if isinstance(v, int | float)}
  found = []
  for name in names:
    full = next((key for key in values if key == name or key.endswith(f"/{name}")), None)
    if full is not None:
      found.append(f"{full} {values[full]:.4g}")
  return ", ".join([f"step {int(values['step'])}", *found])


def train_command(gin_file: str, model_dir: Path, cache: Path) -> list[str]:
  """The command of a training stage."""
  return [
    "python",
    "-m",
    "walt_t5x.train",
    f"--gin_file={gin_file}",
    f'--gin.MODEL_DIR="{model_dir}"',
    f"--seqio_additional_cache_dirs={cache}",
    "--verbosity=-1",
  ]


def accuracy(result: dict[str, Any], stage: str) -> dict[str, float]:
  """Caption accuracy of one stage from its pixels, by short names."""
  scores = result["scores"][stage]
  return {name.removeprefix("caption_accuracy/"): value for name, value in scores.items()}


def describe(result: dict[str, Any]) -> str:
  """Caption accuracy of every stage in one line."""
  parts = []
  for stage in result["scores"]:
    s = accuracy(result, stage)
    shares = [
      f"{name} {s[f'{name}_right']:.0f}/{s[f'{name}_total']:.0f} = {s[f'{name}_accuracy']:.0%}"
      for name in ("color", "shape", "direction")
    ]
    parts.append(f"{stage}: {', '.join(shares)}")
  return "; ".join(parts)


def describe_upscaling(result: dict[str, Any]) -> str:
  """The stage and bicubic upscaling of its input against held-out clips."""
  stage, bicubic = (result["ways"][way] for way in ("the stage", "bicubic"))
  return (
    f"Frechet distance to {result['clips']} held-out clips {stage['frechet']:.0f}, bicubic {bicubic['frechet']:.0f}; "
    f"PSNR {stage['psnr']:.1f}, bicubic {bicubic['psnr']:.1f} dB"
  )


def rows(result: dict[str, Any]) -> str:
  """Outcomes of the rows of a preprocessing job."""
  return (
    f"{result['written']} of {result['rows']} rows written, {result['rejected']} rejected, "
    f"{result['dead']} dead"
  )


def stages(folder: Path) -> list[Stage]:
  """The pipeline, in order."""
  corpus, text, cache = folder / "corpus", folder / "text", folder / "cache"
  vae, base, sr, samples = folder / "vae", folder / "base", folder / "sr1", folder / "samples"
  manifest = corpus / "manifest.jsonl"
  clip = ["--num_frames=9", "--fps=8", "--num_shards=4"]
  preprocess = [
    "python",
    "-m",
    "beam_jobs.preprocess",
    f"--manifest={manifest}",
    f"--output={cache}",
  ]
  cascade = [
    "--gin_file=gin/tiny/generate.gin",
    f'--gin.BASE_CHECKPOINT="{base}"',
    f'--gin.SR1_CHECKPOINT="{sr}"',
    f'--gin.VAE_CHECKPOINT="{vae}"',
    f'--gin.TEXT_ENCODER="{text}"',
  ]
  return [
    Stage(
      "sample corpus",
      ["python", "-m", "data.samples", f"--output={corpus}"],
      lambda _: f"{sum(1 for _ in manifest.open())} media files",
    ),
    Stage(
      "text encoder (random T5)",
      [
        "python",
        "-m",
        "walt_t5x.text.init_encoder",
        f"--captions={manifest}",
        f"--output={text}",
        "--size=tiny",
        "--overwrite",
      ],
      lambda _: "tiny, random weights",
    ),
    Stage(
      "pixels for the VAE",
      [*preprocess, "--task=shapes_pixels", "--content=pixels", "--resolutions=32x32,64x64", *clip],
      rows,
    ),
    Stage(
      "train VAE",
      train_command("gin/tiny/vae.gin", vae, cache),
      lambda _: last_metrics(vae, "psnr"),
    ),
    Stage(
      "latents and text",
      [
        *preprocess,
        "--task=shapes",
        "--vae_gin_file=gin/models/vae_tiny.gin",
        f"--vae_checkpoint={vae}",
        "--vae_ema",
        f"--text_encoder={text}",
        "--max_text_length=16",
        "--resolutions=32x32,64x64",
        *clip,
      ],
      rows,
    ),
    Stage(
      "train base",
      train_command("gin/tiny/base.gin", base, cache),
      lambda _: last_metrics(base, "loss", "loss_video"),
    ),
    Stage(
      "train super-resolution",
      train_command("gin/tiny/sr.gin", sr, cache),
      lambda _: last_metrics(sr, "loss", "loss_video"),
    ),
    Stage(
      "generate",
      [
        "python",
        "-m",
        "walt_t5x.generate",
        *cascade,
        f"--prompts_file={corpus / 'prompts.txt'}",
        f"--output={samples}",
        "--verbosity=-1",
      ],
      lambda r: f"{r['videos']} videos",
    ),
    Stage(
      "score",
      [
        "python",
        "-m",
        "walt_t5x.evaluate",
        "--protocol=caption_accuracy",
        f"--samples={samples}",
        f"--log_dir={folder / 'eval'}",
      ],
      describe,
    ),
    Stage(
      "feature network",
      [
        "python",
        "-m",
        "walt_t5x.train_surrogate",
        f"--output={folder / 'shapes.safetensors'}",
      ],
      lambda _: "a surrogate, trained on shapes",
    ),
    Stage(
      UPSCALING,
      [
        "python",
        "-m",
        "walt_t5x.compare_upscaling",
        *cascade,
        f"--cache={cache / 'shapes_pixels_videos'}",
        "--network=shapes",
        f"--weights={folder / 'shapes.safetensors'}",
        f"--output={folder / 'upscaling.json'}",
        "--verbosity=-1",
      ],
      describe_upscaling,
    ),
    Stage(
      "report",
      [
        "python",
        "-m",
        "walt_t5x.report",
        *(f"--run={run}" for run in (vae, base, sr)),
        f"--samples={samples}",
        "--title=Quickstart",
        f"--output={folder / 'report.html'}",
      ],
      lambda r: f"{r['runs']} runs, {r['scores']} scores, {r['samples']} samples on one page",
    ),
  ]


def main() -> int:
  """Runs all stages; returns 0 if caption accuracy and upscaling reach their bars."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("folder", nargs="?", default="runs/quickstart", help="output folder")
  folder = Path(parser.parse_args().folder).resolve()
  folder.mkdir(parents=True, exist_ok=True)
  started, done, printed = time.monotonic(), [], {}
  for stage in stages(folder):
    finished, printed[stage.name] = run(stage)
    done.append(finished)
  total = time.monotonic() - started
  result = printed["score"]

  print(f"\n{'stage':<34} {'seconds':>8} {'peak MiB':>9}  result")
  for d in done:
    print(f"{d.name:<34} {d.seconds:>8.0f} {d.peak_mib:>9.0f}  {d.result}")
  print(f"{'total':<34} {total:>8.0f} {max(d.peak_mib for d in done):>9.0f}")
  base = accuracy(result, "base")
  reached = base["color_accuracy"] >= COLOR_BAR and base["direction_accuracy"] >= DIRECTION_BAR
  print(
    f"\ncaption accuracy of the base stage over {base['clips']:.0f} prompts: "
    f"color {base['color_accuracy']:.0%} (bar {COLOR_BAR:.0%}, chance 17%), "
    f"direction {base['direction_accuracy']:.0%} (bar {DIRECTION_BAR:.0%}, chance 25%): "
    f"{'reached' if reached else 'NOT REACHED'}"
  )
  wins = printed[UPSCALING]["stage_wins"]
  print(
    f"super-resolution {'closer' if wins else 'NOT CLOSER'} to held-out clips than bicubic upscaling of its input "
    "(Frechet distance, surrogate features)"
  )
  print(f"gallery: {result['gallery']}\nreport: {folder / 'report.html'}")
  report = folder / "quickstart.json"
  table = {"stages": [vars(d) for d in done], "seconds": total, "scores": result["scores"]}
  report.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
  print(f"table as JSON: {report}")
  return 0 if reached and wins else 1


if __name__ == "__main__":
  sys.exit(main())
