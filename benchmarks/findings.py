"""Findings of the paper in miniature: variants of the toy base stage, three seeds each, on the quickstart's corpus.

  python -m benchmarks.findings --list
  python -m benchmarks.findings FOLDER --quickstart=runs/quickstart --finding=patch_size  # at most 25 minutes, 2 cores
  python -m benchmarks.findings --table                                                   # writes the page again

Each variant is `gin/tiny/base.gin` with a few bindings, trained for equal steps on the latents of a finished
quickstart, then sampled with the same prompts and noise. The loss is that of held-out clips after the last step,
accuracies are those of the prompts, the Frechet distance compares their clips with the held-out ones (protocol
`shapes_fvd`). Numbers of latent channels have a tokenizer each. A finding is "seen" on a measure if the means have the
paper's order and differ by more than the spread (the root of the summed variances over seeds), "not seen" if they have
the opposite one by more than that, and "inside the spread" otherwise. Nothing is tuned until it agrees.

FOLDER gets the runs; a stopped command resumes, and findings share the runs of `gin/tiny/base.gin` as it is. Figures of
all findings: benchmarks/findings.json; page: findings.md.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.quickstart_stages import TWO_DEVICES, train_command
from scripts.stages import Stage, Step, run_all

HERE = Path(__file__).resolve().parent
SEEDS = (0, 1, 2)
PROMPTS_SEED = 11
STEPS = 800
CHANNELS = 8  # of the quickstart's tokenizer
HEADER = """from __gin__ import dynamic_registration

from data import tasks
from walt_t5x.denoiser import transformer
from walt_t5x.diffusion import schedules as noise
from walt_t5x.models import denoiser_model
from walt_t5x.vae import autoencoder
"""
# Measure -> whether more is better.
MEASURES = {"loss": False, "color": True, "direction": True, "shape": True, "frechet": False}
RECONSTRUCTION = "frechet of reconstructions"


@dataclass(frozen=True)
class Finding:
  """What the paper reports, and how it is tried.

  Attributes:
    title: what is varied.
    source: table of the paper, with its figures.
    variants: name -> bindings (lines of gin), the paper's best first and its worst last; none for the baseline, which
      is `gin/tiny/base.gin` as it is.
    steps: training steps of every variant.
    channels: latent channels of variants that have another tokenizer than the quickstart's.
    loss_compares: whether the held-out losses of the variants measure the same.
    opposite: measures on which the paper's last variant is the best.
  """

  title: str
  source: str
  variants: Mapping[str, str]
  steps: int = STEPS
  channels: Mapping[str, int] = field(default_factory=dict)
  loss_compares: bool = True
  opposite: tuple[str, ...] = ()


def _denoiser(**fields: Any) -> str:
  return "".join(f"base/transformer.WaltDenoiser.{k} = {v!r}\n" for k, v in fields.items())


def _channels(count: int) -> str:
  return _denoiser(latent_channels=count) + f"autoencoder.CausalVae.latent_channels = {count}\n"


_SELF_CONDITIONING = "base/denoiser_model.DenoiserModel.self_conditioning_probability = {}\n"
FINDINGS = {
  "patch_size": Finding(
    "patch size",
    "Table 3a: FVD 60.7, 134.4, 461.8 with patches of 1, 2, 4",
    {
      "patch 1": _denoiser(patch_size=1, spatial_window=(1, 8, 8), spatiotemporal_window=(3, 8, 8)),
      "patch 2": "",
    },
    steps=250,  # One of patch 1 takes a second.
  ),
  "windows": Finding(
    "spatiotemporal windows",
    "Table 3b: FVD 59.9 with full attention, 56.9 with the smallest windows: full attention is not essential",
    {
      "3x2x2": _denoiser(spatiotemporal_window=(3, 2, 2)),
      "3x4x4, all tokens": "",
    },
  ),
  "self_conditioning": Finding(
    "probability of self-conditioning",
    "Table 3c: FVD 61.4, 60.0, 76.0, 109.9 with 0.9, 0.6, 0.3, 0",
    {
      "p_sc 0.9": _SELF_CONDITIONING.format(0.9),
      "p_sc 0.5": "",
      "p_sc 0": _SELF_CONDITIONING.format(0.0),
    },
  ),
  "lora_rank": Finding(
    "rank of AdaLN-LoRA",
    "Table 3d: FVD 54.4, 55.5, 60.7 with ranks 64, 16, 2",
    {"rank 64": _denoiser(adaln_rank=64), "rank 16": "", "rank 2": _denoiser(adaln_rank=2)},
  ),
  "adaln": Finding(
    "separate AdaLN against a wider network with AdaLN-LoRA, at equal parameters",
    "Table 4: final loss 0.268 (XL, LoRA) and 0.274 (L, separate), FVD 36.7 and 34.6",
    {
      "LoRA, width 142": _denoiser(width=142, mlp_dim=568, adaln_rank=2),
      "separate, width 128": _denoiser(adaln="separate"),
    },
    opposite=("frechet",),
  ),
  "qk_norm": Finding(
    "normalization of queries and keys",
    "Table 3e: IS 87.2 with and 86.8 without, FVD 60.7 and 59.0; meant to keep large models stable",
    {"with": "", "without": _denoiser(qk_norm=False)},
    opposite=("frechet",),
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
  "latent_channels": Finding(
    "latent channels",
    "Table 3f: rFVD 8.2, 17.1, 37.7 and FVD 67.0, 75.4, 86.4 with 16, 8, 4 channels",
    {"16 channels": _channels(16), "8 channels": "", "4 channels": _channels(4)},
    channels={"16 channels": 16, "4 channels": 4},
    loss_compares=False,
  ),
  "images": Finding(
    "images and videos against videos alone",
    "Table 5: FVD 344.5 with images, 598.8 without, of the 419M model",
    {
      "images and videos": "",
      "videos alone": "MIXTURE_OR_TASK_NAME = @tasks.video_task()\n"
      "tasks.video_task.task = 'shapes'\ntasks.video_task.latents = 'latents/3x8x8'\n"
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


def run_name(name: str, variant: str, seed: int) -> str:
  """Name of a run; findings of as many steps share the baseline's."""
  finding = FINDINGS[name]
  shared = finding.variants[variant] == "" and finding.steps == STEPS
  label = "baseline" if shared else f"{name} {variant}"
  return f"{label} seed {seed}".replace(" ", "_").replace(",", "")


def stages_of(name: str, variant: str, seed: int, *, folder: Path, quickstart: Path) -> list[Stage]:
  """Training, samples and scores of one run."""
  finding = FINDINGS[name]
  run = folder / run_name(name, variant, seed)
  run.mkdir(parents=True, exist_ok=True)
  gin_file = run / "variant.gin"
  gin_file.write_text(HEADER + "\n" + finding.variants[variant], encoding="utf-8")
  tokenizer = _tokenizer(finding.channels.get(variant, CHANNELS), folder, quickstart)
  train = train_command(
    "gin/tiny/base.gin", run / "base", tokenizer / "cache", steps=finding.steps, seed=seed
  )
  train += [f"--gin_file={gin_file}", f"--gin.EVAL_PERIOD={finding.steps}", "--gin.EVAL_STEPS=4"]
  train += [f"--gin.SAVE_PERIOD={finding.steps}"]
  generate = ["python", "-m", "walt_t5x.generate", "--gin_file=gin/tiny/generate.gin"]
  generate += [f"--gin_file={gin_file}", "--stages=base", f"--seed={PROMPTS_SEED}"]
  generate += [
    f'--gin.BASE_CHECKPOINT="{run / "base"}"',
    f'--gin.SR1_CHECKPOINT="{quickstart / "sr1"}"',
  ]
  generate += [f'--gin.VAE_CHECKPOINT="{tokenizer / "vae"}"']
  generate += [f'--gin.TEXT_ENCODER="{quickstart / "text"}"', "--formats=png", "--verbosity=-1"]
  generate += [f"--prompts_file={quickstart / 'corpus/prompts.txt'}", f"--output={run / 'samples'}"]
  samples = f"--samples={run / 'samples'}"
  accuracy = ["python", "-m", "walt_t5x.evaluate", samples, "--protocol=caption_accuracy"]
  reference = f"--reference={quickstart / 'corpus/manifest.jsonl'}"
  steps = {
    "train": train,
    "generate": generate,
    "accuracy": accuracy,
    "distance": _distance(quickstart, samples, reference, "--reference_split=validation"),
  }
  return [
    Stage(f"{run.name}: {what}", command, lambda printed: json.dumps(printed)[:80])
    for what, command in steps.items()
  ]


def _distance(quickstart: Path, *flags: str) -> list[str]:
  """The command of a Frechet distance between clips of 32 x 32."""
  weights = f"--shapes_weights={quickstart / 'shapes.safetensors'}"
  command = ["python", "-m", "walt_t5x.evaluate", "--protocol=shapes_fvd", "--size=32x32"]
  return [*command, weights, *flags]


def _tokenizer(channels: int, folder: Path, quickstart: Path) -> Path:
  """The folder of a tokenizer and of the latents that it made."""
  return quickstart if channels == CHANNELS else folder / f"tokenizer_{channels}"


def _tokenizer_stages(channels: int, folder: Path, quickstart: Path) -> list[Stage]:
  """Trains a tokenizer as the quickstart does; measures its reconstructions."""
  home, pixels = _tokenizer(channels, folder, quickstart), quickstart / "cache"
  commands: dict[str, list[str]] = {}
  checkpoint = f"--vae_checkpoint={home / 'vae'}"
  if channels != CHANNELS:
    train = train_command("gin/tiny/vae.gin", home / "vae", pixels)
    commands["train"] = [*train, f"--gin.autoencoder.CausalVae.latent_channels={channels}"]
    commands["latents"] = ["python", "-m", "beam_jobs.preprocess", "--task=shapes", checkpoint]
    commands["latents"] += [f"--manifest={quickstart / 'corpus/manifest.jsonl'}"]
    commands["latents"] += [f"--text_encoder={quickstart / 'text'}", "--max_text_length=16"]
    commands["latents"] += [f"--output={home / 'cache'}", "--resolutions=32x32"]
    commands["latents"] += ["--num_frames=9", "--fps=8", "--num_shards=4"]
  output = folder / f"reconstructions_{channels}"
  reconstruct = ["python", "-m", "walt_t5x.reconstruct", checkpoint]
  reconstruct += [f"--cache={pixels / 'shapes_pixels_videos'}", "--pixels=pixels/9x32x32"]
  commands["reconstruct"] = [*reconstruct, f"--output={output}"]
  reference = f"--reference={output / 'inputs'}"
  commands["distance"] = _distance(quickstart, f"--samples={output / 'reconstructions'}", reference)
  environment = {"train": TWO_DEVICES}
  return [
    Stage(f"tokenizer {channels}: {what}", command, str, environment.get(what, {}))
    for what, command in commands.items()
  ]


def measures(run: Path, printed: Mapping[str, Any]) -> dict[str, float]:
  """The measures of one run."""
  lines = (run / "base/metrics.jsonl").read_text(encoding="utf-8").splitlines()
  values: dict[str, float] = {}
  for line in lines:
    values |= json.loads(line)
  accuracy = printed[f"{run.name}: accuracy"]["scores"]["base"]
  elements = {
    e: accuracy[f"caption_accuracy/{e}_accuracy"] for e in ("color", "direction", "shape")
  }
  loss = values["training_eval/shapes_videos/loss"]
  return {"loss": loss, **elements, "frechet": _score(printed[f"{run.name}: distance"])}


def _score(printed: Mapping[str, Any]) -> float:
  (score,) = printed["scores"].values()
  return score["score"]


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
      lines.append(f"| {variant} | {' | '.join(_cell(m, values[m]) for m in MEASURES)} |")
    best, *_, worst = of_variants.values()
    cells = [
      "-"
      if m == "loss" and not finding.loss_compares
      else verdict(best[m], worst[m], more_is_better=more != (m in finding.opposite))
      for m, more in MEASURES.items()
    ]
    note = " In the paper, the last one has the lower FVD." if finding.opposite else ""
    lines += [f"| first against last | {' | '.join(cells)} |", ""]
    lines += [f"{finding.steps:,} steps.{note}", ""]
    if finding.channels:
      said = (
        f"{variant} {values[RECONSTRUCTION][0]:.3g}" for variant, values in of_variants.items()
      )
      lines += [f"Frechet distance of reconstructions, one tokenizer each: {', '.join(said)}.", ""]
  return "\n".join(lines)


def _cell(measure: str, values: Sequence[float]) -> str:
  """Mean and standard deviation, of accuracies in percent."""
  mean, deviation = statistics.mean(values), statistics.stdev(values)
  if measure in ("color", "direction", "shape"):
    return f"{mean:.0%} ± {deviation:.0%}"
  return f"{mean:.3g} ± {deviation:.2g}"


def run(name: str, folder: Path, quickstart: Path) -> dict[str, dict[str, list[float]]]:
  """Runs a finding on two lanes; variant -> measure -> a value of each seed."""
  finding, record = FINDINGS[name], folder / "measures.json"
  known = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
  names = {
    run_name(name, variant, seed): (variant, seed) for seed in SEEDS for variant in finding.variants
  }
  pending = [run for run in names if run not in known]
  lanes: list[list[Stage]] = [[], []]
  for run in pending:
    variant, seed = names[run]
    # To the shorter lane; variants alternate between them from seed to seed.
    lane = min(lanes, key=len)
    lane += stages_of(name, variant, seed, folder=folder, quickstart=quickstart)
  channels = {v: finding.channels.get(v, CHANNELS) for v in finding.variants}
  steps: list[Step] = []
  if finding.channels:
    for count in channels.values():
      steps += _tokenizer_stages(count, folder, quickstart)
  steps += [tuple(lane for lane in lanes if lane)] if pending else []
  _, printed = run_all(steps, folder / f"{name}.json", lambda stage: 100)
  known |= {run: measures(folder / run, printed) for run in pending}
  record.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
  found: dict[str, dict[str, list[float]]] = {}
  for variant, count in channels.items():
    of_seeds = [known[run_name(name, variant, seed)] for seed in SEEDS]
    found[variant] = {measure: [values[measure] for values in of_seeds] for measure in MEASURES}
    if finding.channels:
      found[variant][RECONSTRUCTION] = [_score(printed[f"tokenizer {count}: distance"])]
  return found


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
