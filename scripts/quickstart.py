"""Runs the complete pipeline at toy size: each stage is a command, printed with its progress and its result.

  python -m scripts.quickstart [FOLDER] [--fast] [--seed=N] [--prompts=N]

Prints the stages with their expected seconds first, and a table of times, results and bars last. The same command
resumes an interrupted run: finished stages are skipped, and an interrupted one resumes if its program can.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.quickstart_recipes import FAST, FULL, SHOWCASE, UPSCALING, Recipe, bars
from scripts.stages import Stage, Step, duration, flat, run_all

# Networks this small keep one core busy: two devices of one core each share a batch instead.
TWO_DEVICES = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}


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


def train_command(
  gin_file: str, model_dir: Path, cache: Path, *, steps: int | None = None, seed: int = 0
) -> list[str]:
  """The command of a training stage; `steps` and `seed` are printed only where the gin file has others."""
  return [
    "python",
    "-m",
    "walt_t5x.train",
    f"--gin_file={gin_file}",
    f'--gin.MODEL_DIR="{model_dir}"',
    *([f"--gin.TRAIN_STEPS={steps}"] if steps is not None else []),
    *([f"--gin.RANDOM_SEED={seed}"] if seed else []),
    f"--seqio_additional_cache_dirs={cache}",
    "--verbosity=-1",
  ]


def accuracy(scores: Mapping[str, Any]) -> str:
  """Caption accuracy of one stage from its pixels: right / total of each element."""
  found = {name.removeprefix("caption_accuracy/"): value for name, value in scores.items()}
  return ", ".join(
    f"{element} {found[f'{element}_right']:.0f}/{found[f'{element}_total']:.0f}"
    f" = {found[f'{element}_accuracy']:.0%}"
    for element in [name.removesuffix("_total") for name in found if name.endswith("_total")]
  )


def describe(result: dict[str, Any]) -> str:
  """Caption accuracy of every stage in one line."""
  return "; ".join(f"{stage}: {accuracy(scores)}" for stage, scores in result["scores"].items())


def describe_upscaling(result: dict[str, Any]) -> str:
  """The stage and bicubic upscaling of its input compared with held-out clips."""
  stage, latents, clips = (
    result["ways"][way] for way in ("the stage", "bicubic latents", "bicubic")
  )
  return (
    f"Frechet distance to {result['clips']} held-out clips {stage['frechet']:.0f}, bicubic latents "
    f"{latents['frechet']:.0f}, bicubic clips {clips['frechet']:.0f}; PSNR {stage['psnr']:.1f}, "
    f"{latents['psnr']:.1f}, {clips['psnr']:.1f} dB"
  )


def rows(result: dict[str, Any]) -> str:
  """Outcomes of the rows of a preprocessing job."""
  return (
    f"{result['written']} of {result['rows']} rows written, {result['rejected']} rejected, "
    f"{result['dead']} dead"
  )


def stages(folder: Path, recipe: Recipe, *, seed: int, prompts: int) -> list[Step]:
  """The pipeline, in order."""
  corpus, text, cache = folder / "corpus", folder / "text", folder / "cache"
  vae, base, sr, samples = folder / "vae", folder / "base", folder / "sr1", folder / "samples"
  manifest, features = corpus / "manifest.jsonl", folder / "shapes.safetensors"
  clip = [f"--num_frames={recipe.num_frames}", "--fps=8", "--num_shards=4"]
  preprocess = ["python", "-m", "beam_jobs.preprocess", f"--manifest={manifest}"]
  preprocess += [f"--output={cache}"]
  tokenizer = [f"--vae_gin_file={recipe.vae}", f"--vae_checkpoint={vae}", "--vae_ema"]
  cascade = [
    f"--gin_file={recipe.gin}/generate.gin",
    f'--gin.BASE_CHECKPOINT="{base}"',
    f'--gin.SR1_CHECKPOINT="{sr}"',
    f'--gin.VAE_CHECKPOINT="{vae}"',
    f'--gin.TEXT_ENCODER="{text}"',
  ]
  vae_steps, base_steps, sr_steps = recipe.steps
  seeded = [f"--seed={seed}"] if seed else []

  def reconstruct(size: str) -> Stage:
    return Stage(
      f"tokenizer at {size}",
      ["python", "-m", "walt_t5x.reconstruct", *tokenizer]
      + [
        f"--cache={cache / 'shapes_pixels_videos'}",
        f"--pixels=pixels/{recipe.num_frames}x{size}",
      ]
      + [f"--output={folder / f'reconstructions_{size}'}"],
      lambda r: (
        f"held-out clips: PSNR {r['psnr']:.1f} dB, their reconstructions read as "
        f"{accuracy(r['caption_accuracy']['reconstructions'])}"
      ),
    )

  train_base = Stage(
    "train base",
    train_command(f"{recipe.gin}/base.gin", base, cache, steps=base_steps, seed=seed),
    lambda _: last_metrics(base, "loss", "loss_video"),
  )
  train_sr = Stage(
    "train super-resolution",
    train_command(f"{recipe.gin}/sr.gin", sr, cache, steps=sr_steps, seed=seed),
    lambda _: last_metrics(sr, "loss", "loss_video"),
  )
  generate = Stage(
    "generate",
    ["python", "-m", "walt_t5x.generate", *cascade, f"--prompts_file={corpus / 'prompts.txt'}"]
    + [f"--output={samples}", *seeded, "--verbosity=-1"],
    lambda r: f"{r['videos']} videos",
  )
  score = Stage(
    "score",
    ["python", "-m", "walt_t5x.evaluate", "--protocol=caption_accuracy", f"--samples={samples}"]
    + [f"--captions_apart={corpus / 'held_out_captions.txt'}", f"--log_dir={folder / 'eval'}"],
    describe,
  )
  surrogate = Stage(
    "feature network",
    ["python", "-m", "walt_t5x.train_surrogate", f"--output={features}"],
    lambda _: "a surrogate, trained on shapes",
  )
  upscaling = Stage(
    UPSCALING,
    ["python", "-m", "walt_t5x.compare_upscaling", *cascade, "--network=shapes"]
    + [f"--weights={features}", f"--cache={cache / 'shapes_pixels_videos'}"]
    + [f"--output={folder / 'upscaling.json'}", "--verbosity=-1"],
    describe_upscaling,
  )
  beside_base = [train_sr, *map(reconstruct, recipe.psnr)]
  beside_base += [surrogate] if recipe.compare_upscaling else []
  last: list[Stage] = [upscaling] if recipe.compare_upscaling else []
  if recipe.frames:
    last += [
      Stage(
        "image to video",
        ["python", "-m", "walt_t5x.generate", *cascade]
        + [f"--requests={corpus / 'image_requests.jsonl'}"]
        + [f"--output={folder / 'from_images'}", *seeded, "--verbosity=-1"],
        lambda r: f"{r['videos']} videos",
      ),
      Stage(
        "extension",
        ["python", "-m", "walt_t5x.generate", *cascade, "--extensions=4"]
        + ["--prompt=a red square moves right slowly", "--prompt=a blue circle moves up slowly"]
        + [f"--output={folder / 'extended'}", *seeded, "--verbosity=-1"],
        lambda r: f"{r['videos']} videos",
      ),
    ]
  report = Stage(
    "report",
    ["python", "-m", "walt_t5x.report", *(f"--run={model}" for model in (vae, base, sr))]
    + [f"--samples={samples}", f"--title={recipe.name}", f"--output={folder / 'report.html'}"],
    lambda r: f"{r['runs']} runs, {r['scores']} scores, {r['samples']} samples on one page",
  )
  preset = Stage(
    "preset",
    ["python", "-m", "walt_t5x.export_preset", *cascade, f"--output={folder / recipe.preset}"]
    + ["--license=CC0-1.0", f"--trained_by=bash scripts/{recipe.name.lower()}.sh"],
    lambda r: f"{r['bytes'] / 1e6:.1f} MB",
  )
  return [
    Stage(
      "sample corpus",
      ["python", "-m", "data.samples", f"--output={corpus}", *recipe.corpus]
      + [f"--num_prompts={prompts}", *seeded],
      lambda _: f"{sum(1 for _ in manifest.open())} media files",
    ),
    Stage(
      "text encoder",
      ["python", "-m", "walt_t5x.text.init_encoder", f"--captions={manifest}", f"--output={text}"]
      + ["--size=tiny", "--overwrite"],
      lambda _: "T5, tiny, random weights",
    ),
    Stage(
      "pixels",
      [*preprocess, "--task=shapes_pixels", "--content=pixels", *clip]
      + [f"--resolutions={','.join([*recipe.crop_sizes, *recipe.sizes])}"],
      rows,
    ),
    Stage(
      "train tokenizer",
      train_command(f"{recipe.gin}/vae.gin", vae, cache, steps=vae_steps, seed=seed),
      lambda _: last_metrics(vae, "psnr"),
      TWO_DEVICES,
    ),
    Stage(
      "latents and text",
      [*preprocess, "--task=shapes", *tokenizer, f"--text_encoder={text}"]
      + [f"--max_text_length={recipe.text_length}", *clip]
      + [f"--resolutions={','.join(recipe.sizes)}"],
      rows,
    ),
    ([train_base], beside_base),
    ([generate, score], last) if last else ([generate, score],),
    report,
    *([preset] if recipe.preset else []),
  ]


def print_plan(todo: Sequence[Step], folder: Path, expected: Callable[[Stage], int]) -> None:
  """Prints the stages with their expected seconds; lanes after the first one are marked."""
  print(f"{len(flat(todo))} stages, expected on two idle cores; everything goes into {folder}")
  number = 0
  for step in todo:
    for lane, stages_of_lane in enumerate([[step]] if isinstance(step, Stage) else step):
      for stage in stages_of_lane:
        number += 1
        print(f"{number:>4}  {'| ' * lane + stage.name:<36} {expected(stage):>4} s")
  total = f"{duration(todo, expected):>4.0f} s; stages with | run beside those above them"
  print(f"      {'in all':<36} {total}")


def main() -> int:
  """Runs all stages; returns 0 if every bar is reached."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("folder", nargs="?", help="output folder; by default in runs")
  kind = parser.add_mutually_exclusive_group()
  kind.add_argument("--fast", action="store_true", help="less training, lower bars")
  kind.add_argument("--showcase", action="store_true", help="larger clips, richer captions")
  parser.add_argument("--seed", type=int, default=0, help="of corpus, trainings and samples")
  parser.add_argument("--prompts", type=int, help="clips to generate and score")
  args = parser.parse_args()
  recipe = FAST if args.fast else SHOWCASE if args.showcase else FULL
  folder = Path(args.folder or recipe.folder).resolve()
  folder.mkdir(parents=True, exist_ok=True)
  todo = stages(folder, recipe, seed=args.seed, prompts=args.prompts or recipe.prompts)

  def expected(stage: Stage) -> int:
    return next((s for name, s in recipe.seconds.items() if stage.name.startswith(name)), 2)

  print_plan(todo, folder, expected)
  done, printed = run_all(todo, folder / "finished.json", expected)
  seconds = {d.name: d.seconds for d in done}
  total = duration(todo, lambda stage: seconds[stage.name])

  print(f"\n{'stage':<34} {'seconds':>8} {'peak MiB':>9}  result")
  for d in done:
    print(f"{d.name:<34} {d.seconds:>8.0f} {d.peak_mib:>9.0f}  {d.result}")
  print(f"{'total':<34} {total:>8.0f} {max(d.peak_mib for d in done):>9.0f}")
  reached = bars(recipe, printed)
  print(f"\n{'what':<66} {'reached':>8} {'bar':>6}")
  for row in reached:
    said = "" if row["ok"] else "  NOT REACHED"
    print(f"{row['what']:<66} {row['reached']:>8.4g} {row['bar']:>6.4g}{said}")
  report = folder / "quickstart.json"
  table = {"stages": [vars(d) for d in done], "seconds": total, "bars": reached}
  table |= {k: printed["score"][k] for k in ("scores", "scores_apart") if k in printed["score"]}
  report.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
  print(
    f"\nopen in a browser: {printed['score']['gallery']}\n"
    f"                   {folder / 'report.html'}\n"
    f"table as JSON:     {report}"
  )
  return 0 if all(row["ok"] for row in reached) else 1


if __name__ == "__main__":
  sys.exit(main())
