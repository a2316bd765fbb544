"""Findings of the paper in miniature: variants of the toy base stage, three seeds each, on the quickstart's corpus.

  python -m benchmarks.findings --list
  python -m benchmarks.findings FOLDER --quickstart=runs/quickstart --finding=patch_size  # at most 25 minutes, 2 cores
  python -m benchmarks.findings --table                                                   # writes the page again

Each variant is `gin/tiny/base.gin` with a few bindings, trained for equal steps on the latents of a finished
quickstart, then sampled with the same prompts and noise. Held-out loss is that of the last evaluation, accuracies are
those of 72 prompts, the Frechet distance compares their clips with the held-out ones (protocol `shapes_fvd`). A finding
is "seen" on a measure if the means have the paper's order and differ by more than the spread (the root of the summed
variances over seeds), "not seen" if they have the opposite one by more than that, and "inside the spread" otherwise.
Nothing is tuned until it agrees.

FOLDER gets the runs; a stopped command resumes. Figures of all findings: benchmarks/findings.json; page: findings.md.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.quickstart_stages import train_command
from scripts.stages import Stage, run_all

HERE = Path(__file__).resolve().parent
SEEDS = (0, 1, 2)
PROMPTS_SEED = 11
HEADER = """from __gin__ import dynamic_registration

from data import tasks
from walt_t5x.denoiser import transformer
from walt_t5x.diffusion import schedules as noise
from walt_t5x.models import denoiser_model
"""
# Measure -> whether more is better.
MEASURES = {"loss": False, "color": True, "direction": True, "shape": True, "frechet": False}


@dataclass(frozen=True)
class Finding:
  """What the paper reports, and how it is tried.

  Attributes:
    title: what is varied.
    source: table of the paper, with its figures.
    variants: name -> bindings (lines of gin), the paper's best first and its worst last.
    steps: training steps of every variant.
    loss_compares: whether the held-out losses of the variants measure the same.
  """

  title: str
  source: str
  variants: Mapping[str, str]
  steps: int = 1500
  loss_compares: bool = True


def _denoiser(**fields: Any) -> str:
  return "".join(f"base/transformer.WaltDenoiser.{k} = {v!r}\n" for k, v in fields.items())


FINDINGS = {
  "patch_size": Finding(
    "patch size",
    "Table 3a: FVD 60.7, 134.4, 461.8 with patches of 1, 2, 4",
    {
      "patch 1": _denoiser(patch_size=1, spatial_window=(1, 8, 8), spatiotemporal_window=(3, 8, 8)),
      "patch 2": "",
    },
    steps=900,
  ),
  "windows": Finding(
    "spatiotemporal windows",
    "Table 3b: FVD 59.9 with full attention, 56.9 with the smallest windows: full attention is not essential",
    {
      "3x4x4, all tokens": "",
      "3x2x2": _denoiser(spatiotemporal_window=(3, 2, 2)),
    },
  ),
  "self_conditioning": Finding(
    "probability of self-conditioning",
    "Table 3c: FVD 61.4, 60.0, 76.0, 109.9 with 0.9, 0.6, 0.3, 0",
    {
      f"p_sc {p}": f"base/denoiser_model.DenoiserModel.self_conditioning_probability = {p}\n"
      for p in (0.9, 0.5, 0.0)
    },
  ),
  "lora_rank": Finding(
    "rank of AdaLN-LoRA",
    "Table 3d: FVD 54.4, 55.5, 60.7 with ranks 64, 16, 2",
    {f"rank {r}": _denoiser(adaln_rank=r) for r in (64, 16, 2)},
  ),
  "adaln": Finding(
    "separate AdaLN against a wider network with AdaLN-LoRA, at equal parameters",
    "Table 4: final loss 0.268 (XL, LoRA) and 0.274 (L, separate), FVD 36.7 and 34.6",
    {
      "LoRA, width 142": _denoiser(width=142, mlp_dim=568, adaln_rank=2),
      "separate, width 128": _denoiser(adaln="separate"),
    },
  ),
  "qk_norm": Finding(
    "normalization of queries and keys",
    "Table 3e: IS 87.2 with and 86.8 without, FVD 60.7 and 59.0; meant to keep large models stable",
    {"with": "", "without": _denoiser(qk_norm=False)},
  ),
  "latent_norm": Finding(
    "normalization of latents",
    "Table 3e: FVD 60.7 with, 67.9 without",
    {"with": "", "without": "tasks.RowFormat.normalize_latents = False\n"},
    loss_compares=False,
  ),
  "zero_snr": Finding(
    "zero terminal SNR",
    "Table 3e: FVD 60.7 with, 91.0 without",
    {
      "with": "",
      "without": "base/denoiser_model.DenoiserModel.schedule = @noise.NoiseSchedule()\n"
      "noise.NoiseSchedule.zero_terminal_snr = False\n",
    },
    loss_compares=False,
  ),
  "images": Finding(
    "images and videos against videos alone",
    "Table 5: FVD 344.5 with images, 598.8 without, of the 419M model",
    {
      "images and videos": "",
      "videos alone": "MIXTURE_OR_TASK_NAME = @tasks.video_task()\n"
      "tasks.video_task.task = 'shapes'\ntasks.video_task.latents = %LATENTS\n"
      "tasks.video_task.row = @tasks.RowFormat()\n"
      "base/denoiser_model.DenoiserModel.rows = 'videos'\n",
    },
  ),
  "size": Finding(
    "size of the network",
    "Table 5: FVD 258.1 (3B) and 344.5 (419M)",
    {"width 128": "", "width 64": _denoiser(width=64, mlp_dim=256)},
  ),
}


def stages_of(name: str, variant: str, seed: int, *, folder: Path, quickstart: Path) -> list[Stage]:
  """Training, samples and scores of one run."""
  finding = FINDINGS[name]
  label = f"{variant}, seed {seed}"
  run = folder / name / label.replace(" ", "_").replace(",", "")
  run.mkdir(parents=True, exist_ok=True)
  gin_file = run / "variant.gin"
  gin_file.write_text(HEADER + "\n" + finding.variants[variant], encoding="utf-8")
  cache = quickstart / "cache"
  train = train_command("gin/tiny/base.gin", run / "base", cache, steps=finding.steps, seed=seed)
  train += [f"--gin_file={gin_file}", f"--gin.EVAL_PERIOD={finding.steps}", "--gin.EVAL_STEPS=4"]
  train += [f"--gin.SAVE_PERIOD={finding.steps}"]
  generate = ["python", "-m", "walt_t5x.generate", "--gin_file=gin/tiny/generate.gin"]
  generate += [f"--gin_file={gin_file}", "--stages=base", f"--seed={PROMPTS_SEED}"]
  generate += [
    f'--gin.BASE_CHECKPOINT="{run / "base"}"',
    f'--gin.SR1_CHECKPOINT="{quickstart / "sr1"}"',
  ]
  generate += [f'--gin.VAE_CHECKPOINT="{quickstart / "vae"}"']
  generate += [f'--gin.TEXT_ENCODER="{quickstart / "text"}"', "--formats=png", "--verbosity=-1"]
  generate += [f"--prompts_file={quickstart / 'corpus/prompts.txt'}", f"--output={run / 'samples'}"]
  evaluate = ["python", "-m", "walt_t5x.evaluate", f"--samples={run / 'samples'}"]
  distance = [
    *evaluate,
    "--protocol=shapes_fvd",
    f"--reference={quickstart / 'corpus/manifest.jsonl'}",
  ]
  distance += ["--reference_split=validation", "--size=32x32"]
  distance += [f"--shapes_weights={quickstart / 'shapes.safetensors'}"]
  steps = {
    "train": train,
    "generate": generate,
    "accuracy": [*evaluate, "--protocol=caption_accuracy"],
    "distance": distance,
  }
  return [
    Stage(f"{label}: {what}", command, lambda printed: json.dumps(printed)[:80])
    for what, command in steps.items()
  ]


def measures(
  name: str, variant: str, seed: int, folder: Path, printed: Mapping[str, Any]
) -> dict[str, float]:
  """The measures of one run."""
  label = f"{variant}, seed {seed}"
  run = folder / name / label.replace(" ", "_").replace(",", "")
  lines = (run / "base/metrics.jsonl").read_text(encoding="utf-8").splitlines()
  values: dict[str, float] = {}
  for line in lines:
    values |= json.loads(line)
  loss = next(
    v for k, v in values.items() if k.startswith("training_eval/") and k.endswith("/loss")
  )
  accuracy = printed[f"{label}: accuracy"]["scores"]["base"]
  (score,) = printed[f"{label}: distance"]["scores"].values()
  elements = {
    e: accuracy[f"caption_accuracy/{e}_accuracy"] for e in ("color", "direction", "shape")
  }
  return {"loss": loss, **elements, "frechet": score["score"]}


def verdict(best: Sequence[float], worst: Sequence[float], *, more_is_better: bool) -> str:
  """Whether the paper's best variant is better here: "seen", "not seen" or "inside the spread"."""
  gain = statistics.mean(best) - statistics.mean(worst)
  spread = (statistics.variance(best) + statistics.variance(worst)) ** 0.5
  gain = gain if more_is_better else -gain
  if abs(gain) <= spread:
    return "inside the spread"
  return "seen" if gain > 0 else "not seen"


def page(found: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]) -> str:
  """The document: mean and standard deviation over seeds, and the verdicts."""
  lines = [
    "# Findings of the paper in miniature",
    "",
    "Written by `python -m benchmarks.findings`, which says what is trained and measured. Mean ± standard deviation",
    f"over {len(SEEDS)} seeds; the paper's best variant first. Networks of 1 to 3 million parameters on rendered",
    "shapes: what is not seen here may hold at the paper's size, and the other way round.",
    "",
  ]
  for name, finding in FINDINGS.items():
    lines += [f"## {finding.title[0].upper()}{finding.title[1:]}", "", f"{finding.source}.", ""]
    if name not in found:
      lines += [
        f"Not run: `python -m benchmarks.findings FOLDER --quickstart=... --finding={name}`.",
        "",
      ]
      continue
    lines += ["| variant | " + " | ".join(MEASURES) + " |", "| --- |" + " --- |" * len(MEASURES)]
    of_variants = found[name]
    for variant, values in of_variants.items():
      cells = (
        f"{statistics.mean(values[m]):.3g} ± {statistics.stdev(values[m]):.2g}" for m in MEASURES
      )
      lines.append(f"| {variant} | {' | '.join(cells)} |")
    best, *_, worst = of_variants.values()
    cells = [
      "-"
      if m == "loss" and not finding.loss_compares
      else verdict(best[m], worst[m], more_is_better=more)
      for m, more in MEASURES.items()
    ]
    lines += [f"| first against last | {' | '.join(cells)} |", ""]
    lines += [f"{finding.steps:,} steps.", ""]
  return "\n".join(lines)


def run(name: str, folder: Path, quickstart: Path) -> dict[str, dict[str, list[float]]]:
  """Runs a finding on two lanes; variant -> measure -> a value of each seed."""
  runs = [(variant, seed) for seed in SEEDS for variant in FINDINGS[name].variants]
  lanes: list[list[Stage]] = [[], []]
  for variant, seed in runs:
    # To the shorter lane; variants alternate between them from seed to seed.
    lane = min(lanes, key=len)
    lane += stages_of(name, variant, seed, folder=folder, quickstart=quickstart)
  _, printed = run_all([tuple(lanes)], folder / f"{name}.json", lambda stage: 0)
  found: dict[str, dict[str, list[float]]] = {}
  for variant, seed in runs:
    for measure, value in measures(name, variant, seed, folder, printed).items():
      found.setdefault(variant, {}).setdefault(measure, []).append(value)
  return {variant: found[variant] for variant in FINDINGS[name].variants}


def main() -> int:
  """Runs a finding, or prints what there is."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("folder", nargs="?", type=Path)
  parser.add_argument("--quickstart", type=Path, help="folder of a finished quickstart")
  parser.add_argument("--finding", choices=FINDINGS)
  parser.add_argument("--list", action="store_true", help="print the findings")
  parser.add_argument("--table", action="store_true", help="write the page again")
  args = parser.parse_args()
  if args.list:
    for name, finding in FINDINGS.items():
      print(f"{name:<18} {finding.source}\n{'':<18} {', '.join(finding.variants)}")
    return 0
  file = HERE / "findings.json"
  found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
  if not args.table:
    if not (args.folder and args.quickstart and args.finding):
      parser.error("expected FOLDER, --quickstart and --finding, or --list or --table")
    folder, quickstart = args.folder.resolve(), args.quickstart.resolve()
    found[args.finding] = run(args.finding, folder, quickstart)
    found = {name: found[name] for name in FINDINGS if name in found}
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
  text = page(found)
  print(text)
  (HERE / "findings.md").write_text(text, encoding="utf-8")
  return 0


if __name__ == "__main__":
  sys.exit(main())
