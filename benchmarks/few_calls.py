"""Ten network calls per stage instead of fifty: solvers, grids and guidance on the quickstart's cascade, not distilled.

  python -m benchmarks.few_calls FOLDER --quickstart=runs/quickstart     # about 20 minutes on two cores

Every sampler gets the same 256 prompts and the same noise. Accuracies are those of the captions' elements, the Frechet
distance compares with the held-out clips (protocol `shapes_fvd`) at the size of each stage. Fails unless a sampler of
ten calls is within 3 points of 50 DDIM steps in every accuracy, and its distances are at most 1.1 times as large.

FOLDER gets the samples; a stopped command resumes. Writes benchmarks/few_calls.{md,json}.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from benchmarks import results
from scripts.stages import Stage, run_all
from walt_t5x.diffusion.guidance import (
  AdaptiveProjection,
  Combination,
  ConstantGuidance,
  IntervalGuidance,
  ZeroStar,
)
from walt_t5x.diffusion.samplers.caching import Cache
from walt_t5x.diffusion.samplers.grids import Grid, LogSnr, Trailing
from walt_t5x.diffusion.samplers.solvers import (
  DpmSolverMultistep,
  DpmSolverSinglestep,
  Heun,
  Solver,
  UniPC,
)
from walt_t5x.diffusion.schedules import NoiseSchedule
from walt_t5x.models.sampling import SamplerConfig

HERE = Path(__file__).resolve().parent
PROMPTS, SEED = 256, 11
SIZES = {"base": "32x32", "sr1": "64x64"}
ELEMENTS = ("color", "direction", "shape")
POINTS, RATIO = 0.03, 1.1
HEADER = """from __gin__ import dynamic_registration

from walt_t5x.diffusion import guidance
from walt_t5x.diffusion.samplers import caching
from walt_t5x.diffusion.samplers import grids
from walt_t5x.diffusion.samplers import solvers
from walt_t5x.models import sampling

include 'gin/tiny/generate.gin'

"""
GUIDANCE = ConstantGuidance(2.5)  # of gin/models/walt_tiny_base.gin


@dataclass(frozen=True)
class Sampler:
  """Settings of `SamplerConfig`: of both stages, and from `guidance` on of the base stage, which is guided."""

  num_steps: int = 10
  solver: Solver | None = None
  grid: Grid = Trailing()  # noqa: RUF009 - frozen
  guidance: Any = GUIDANCE
  combine: Combination | None = None
  cache: Cache | None = None

  @property
  def config(self) -> SamplerConfig:
    """That of the base stage."""
    return SamplerConfig(**{one.name: getattr(self, one.name) for one in fields(self)})

  @property
  def gin(self) -> str:
    """The gin file."""
    lines = [f"{scope}/sampling.SamplerConfig.num_steps = {self.num_steps}" for scope in SIZES]
    objects = [("solver", "solvers", self.solver), ("grid", "grids", self.grid)]
    for name, module, value in objects:
      for scope in SIZES:
        lines += _binding(scope, name, module, value)
    for name in ("guidance", "combine"):
      lines += _binding("base", name, "guidance", getattr(self, name))
    lines += _binding("base", "cache", "caching", self.cache)
    return HEADER + "\n".join(lines) + "\n"

  @property
  def examples(self) -> int:
    """Examples of the network per sample of the base stage."""
    return sum(self.config.branch_counts(NoiseSchedule(), branches=2))


def _binding(scope: str, name: str, module: str, value: Any) -> list[str]:
  """Lines of gin that set a field of a stage's `SamplerConfig` to a dataclass."""
  if value is None:
    return []
  made = f"{module}.{type(value).__name__}"
  settings = [f"{scope}/{made}.{one.name} = {getattr(value, one.name)}" for one in fields(value)]
  return [f"{scope}/sampling.SamplerConfig.{name} = @{made}()", *settings]


SAMPLERS = {
  "DDIM, 50 calls": Sampler(num_steps=50),
  "DDIM": Sampler(),
  "DPM-Solver++ 2M": Sampler(solver=DpmSolverMultistep()),
  "DPM-Solver++ 2S": Sampler(solver=DpmSolverSinglestep()),
  "UniPC": Sampler(solver=UniPC()),
  "UniPC, even log-SNR": Sampler(solver=UniPC(), grid=LogSnr()),
  "UniPC, guided from t = 0.9 to 0.2": Sampler(
    solver=UniPC(), guidance=IntervalGuidance(2.5, 0.2, 0.9)
  ),
  "UniPC, adaptive projection": Sampler(solver=UniPC(), combine=AdaptiveProjection()),
  "UniPC, CFG-Zero*": Sampler(solver=UniPC(), combine=ZeroStar()),
  "Heun": Sampler(solver=Heun()),
}
REFERENCE = next(iter(SAMPLERS))


def write_prompts(folder: Path, quickstart: Path, count: int) -> None:
  """Writes `count` prompts of the quickstart for `stages_of`."""
  folder.mkdir(parents=True, exist_ok=True)
  prompts = (quickstart / "corpus/prompts.txt").read_text(encoding="utf-8").split("\n")
  prompts = [prompt for prompt in prompts if prompt]
  prompts = (prompts * (count // len(prompts) + 1))[:count]
  (folder / "prompts.txt").write_text("\n".join(prompts) + "\n", encoding="utf-8")


def stages_of(
  number: int,
  sampler: Sampler,
  folder: Path,
  quickstart: Path,
  *,
  sizes: Mapping[str, str] = SIZES,
  flags: Sequence[str] = (),
) -> list[Stage]:
  """Generates with a sampler, and scores the stages of `sizes`; `flags` are of `walt_t5x.generate`."""
  work = folder / f"{number:02d}"
  work.mkdir(parents=True, exist_ok=True)
  gin_file = work / "sampler.gin"
  gin_file.write_text(sampler.gin, encoding="utf-8")
  values = {"BASE_CHECKPOINT": "base", "SR1_CHECKPOINT": "sr1"}
  values |= {"VAE_CHECKPOINT": "vae", "TEXT_ENCODER": "text"}
  cascade = [f"--gin_file={gin_file}"]
  cascade += [f'--gin.{name}="{quickstart / place}"' for name, place in values.items()]
  return scored(number, [*cascade, *flags], folder, quickstart, sizes)


def scored(
  number: int,
  cascade: Sequence[str],
  folder: Path,
  quickstart: Path,
  sizes: Mapping[str, str] = SIZES,
) -> list[Stage]:
  """Generates the prompts of `folder` with a cascade, whose flags are given, and scores."""
  work = folder / f"{number:02d}"
  generate = ["python", "-m", "walt_t5x.generate", *cascade, f"--seed={SEED}"]
  generate += [f"--prompts_file={folder / 'prompts.txt'}", "--formats=png", "--verbosity=-1"]
  samples = work / "samples"
  evaluate = ["python", "-m", "walt_t5x.evaluate", f"--samples={samples}"]
  reference = [f"--reference={quickstart / 'corpus/manifest.jsonl'}"]
  reference += ["--reference_split=validation", f"--cache_dir={folder / 'statistics'}"]
  reference += [f"--shapes_weights={quickstart / 'shapes.safetensors'}"]
  commands = {
    "generate": [*generate, f"--output={samples}"],
    "accuracy": [*evaluate, "--protocol=caption_accuracy"],
  }
  for stage, size in sizes.items():
    distance = [f"--stage={stage}", f"--size={size}", f"--output={work / f'{stage}.json'}"]
    commands[stage] = [*evaluate, "--protocol=shapes_fvd", *distance, *reference]
  return [
    Stage(f"{number:02d} {what}", command, lambda printed: json.dumps(printed)[:80])
    for what, command in commands.items()
  ]


def measures(
  number: int, printed: Mapping[str, Any], sizes: Mapping[str, str] = SIZES
) -> dict[str, Any]:
  """Accuracies and distance of each stage."""
  found = {}
  for stage in sizes:
    scores = printed[f"{number:02d} accuracy"]["scores"][stage]
    (distance,) = printed[f"{number:02d} {stage}"]["scores"].values()
    found[stage] = {one: scores[f"caption_accuracy/{one}_accuracy"] for one in ELEMENTS}
    found[stage]["frechet"] = distance["score"]
  return found


def as_good(
  found: Mapping[str, Any],
  reference: Mapping[str, Any],
  *,
  points: float = POINTS,
  ratio: float = RATIO,
) -> bool:
  """Whether every accuracy and distance is within the bars of those of the reference."""
  return all(
    found[stage][one] >= reference[stage][one] - points for stage in SIZES for one in ELEMENTS
  ) and all(found[s]["frechet"] <= ratio * reference[s]["frechet"] for s in SIZES)


def page_of(rows: Mapping[str, Any]) -> str:
  """The table."""
  reference = rows[REFERENCE]
  lines = [
    "# Ten calls per stage",
    "",
    "Written by `python -m benchmarks.few_calls FOLDER`, which says what is measured. Examples per sample are those of",
    "the network of the base stage, of both branches of guidance. SR: after super-resolution. As good: every accuracy",
    f"within {100 * POINTS:g} points of {REFERENCE}, both distances at most {RATIO} times as large.",
    "",
    "| sampler | examples per sample | color, direction, shape | SR | Frechet distance | SR | as good |",
    "| --- | --- | --- | --- | --- | --- | --- |",
  ]
  for name, row in rows.items():
    accuracies = [" ".join(f"{100 * row[s][one]:.1f}" for one in ELEMENTS) for s in SIZES]
    distances = [
      f"{row[s]['frechet']:.2f} ({row[s]['frechet'] / reference[s]['frechet']:.2f})" for s in SIZES
    ]
    cells = [name, SAMPLERS[name].examples, *accuracies, *distances]
    cells.append("yes" if as_good(row, reference) else "no")
    lines.append("| " + " | ".join(map(str, cells)) + " |")
  return "\n".join(lines) + "\n"


def main() -> int:
  """Samples, scores, writes."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("folder", type=Path)
  parser.add_argument("--quickstart", type=Path, required=True, help="folder of a finished one")
  args = parser.parse_args()
  folder, quickstart = args.folder.absolute(), args.quickstart.absolute()
  write_prompts(folder, quickstart, PROMPTS)
  todo = [
    stage
    for number, sampler in enumerate(SAMPLERS.values())
    for stage in stages_of(number, sampler, folder, quickstart)
  ]
  _, printed = run_all(todo, folder / "finished.json", lambda _: 20)
  rows = {name: measures(number, printed) for number, name in enumerate(SAMPLERS)}
  good = [name for name in rows if as_good(rows[name], rows[REFERENCE])]
  held = any(name != REFERENCE for name in good)
  figures = {
    "prompts": PROMPTS,
    "rows": rows,
    "examples": {name: sampler.examples for name, sampler in SAMPLERS.items()},
    "as_good": good,
    "held": held,
  }
  results.write(HERE, "few_calls", page_of(rows), figures)
  return 0 if held else 1


if __name__ == "__main__":
  sys.exit(main())
