"""Sizes of the quickstart and of the showcase, their expected seconds, and the bars that they must reach."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

UPSCALING = "super-resolution against bicubic"


@dataclass(frozen=True, kw_only=True)
class Recipe:
  """Sizes of a run, and what it must reach.

  Attributes:
    name: title of the report.
    gin: folder of the gin files of trainings and generation.
    corpus: flags of `data.samples`.
    num_frames: frames of a clip.
    sizes: HxW of the base stage and of the super-resolution stage.
    text_length: tokens of a caption, at most.
    prompts: number of clips to generate and score, if --prompts does not give it.
    steps: training steps of "vae", "base_coarse", "base" and "sr1", where they are not the gin files'.
    compare_upscaling: whether to compare super-resolution with bicubic upscaling.
    seconds: expected seconds of the stages that take long, on two idle cores.
    psnr: bars of the tokenizer on held-out clips in dB, by size.
    accuracy: bars of caption accuracy over all prompts, (stage, element) -> fraction.
    held_out: bars of the base stage over the captions that are in no training row, element -> fraction.
    held_out_gap: how much lower the last stage's accuracy of an element may be over those captions than over the
      others; None for no bar.
    coarse: HxW of clips that the base stage is trained on first, with both cores; "" for none.
    large_clips: clips, and as many stills, that train the tokenizer and super-resolution; None for all. The base stage
      is trained on all, at its size alone.
    folder: where the outputs go by default.
    frames: whether the stages continue images and clips, which is then tried.
    preset: name of the preset that is exported; "" for none.
  """

  name: str
  gin: str
  corpus: tuple[str, ...]
  num_frames: int
  sizes: tuple[str, str]
  text_length: int
  prompts: int
  steps: Mapping[str, int]
  compare_upscaling: bool
  seconds: Mapping[str, int]
  psnr: Mapping[str, float]
  accuracy: Mapping[tuple[str, str], float]
  held_out: Mapping[str, float]
  held_out_gap: float | None = None
  coarse: str = ""
  large_clips: int | None = None
  folder: str = "runs/quickstart"
  frames: bool = False
  preset: str = ""


FULL = Recipe(
  name="Quickstart",
  gin="gin/tiny",
  corpus=("--num_clips=1904", "--validation_fraction=0.035"),
  num_frames=9,
  sizes=("32x32", "64x64"),
  text_length=16,
  prompts=72,
  steps={},
  compare_upscaling=True,
  seconds={
    "sample corpus": 12,
    "pixels": 5,
    "train tokenizer": 138,
    "tokenizer": 18,
    "latents and text": 54,
    "train base": 416,
    "train super-resolution": 410,
    "generate": 57,
    "score": 8,
    "feature network": 27,
    UPSCALING: 57,
    "report": 9,
  },
  psnr={"32x32": 26.0, "64x64": 27.0},
  accuracy={
    ("base", "color"): 0.98,
    ("base", "direction"): 0.95,
    ("base", "shape"): 0.85,
    ("sr1", "shape"): 0.88,
  },
  held_out={"color": 0.95, "direction": 0.90, "shape": 0.70},
)
FAST = dataclasses.replace(
  FULL,
  corpus=("--num_clips=544", "--validation_fraction=0.1"),
  prompts=24,
  steps={"vae": 270, "base": 1100, "sr1": 400},
  compare_upscaling=False,
  seconds={
    "sample corpus": 5,
    "pixels": 3,
    "train tokenizer": 56,
    "tokenizer": 14,
    "latents and text": 22,
    "train base": 100,
    "train super-resolution": 65,
    "generate": 28,
    "score": 7,
    "report": 9,
  },
  psnr={"32x32": 22.0, "64x64": 22.5},
  accuracy={("base", "color"): 0.90, ("base", "direction"): 0.70},
  held_out={},
)
SMALLEST = dataclasses.replace(
  FAST,
  name="Smallest quickstart",
  corpus=("--num_clips=48", "--num_stills=8", "--validation_fraction=0.25", "--no_real"),
  prompts=4,
  # A decay needs more steps than its warmup.
  steps={"vae": 60, "base": 110, "sr1": 110},
  seconds={"train tokenizer": 30, "train base": 60, "train super-resolution": 50, "generate": 20},
  psnr={"32x32": 0.0},
  accuracy={},
  folder="runs/smallest",
)
SHOWCASE = Recipe(
  name="Showcase",
  gin="gin/small",
  corpus=(
    "--scenes=showcase",
    "--num_clips=8000",
    "--num_stills=1000",
    "--validation_fraction=0.012",
    "--size=128",
    "--num_frames=17",
    "--no_real",
  ),
  num_frames=17,
  sizes=("64x64", "128x128"),
  text_length=24,
  prompts=240,
  steps={},
  compare_upscaling=True,
  seconds={},
  psnr={"64x64": 30.0, "128x128": 30.0},
  accuracy={
    (stage, element): 0.97
    for stage in ("base", "sr1")
    for element in ("color", "shape", "direction", "speed", "order")
  },
  held_out={},
  held_out_gap=0.05,
  coarse="32x32",
  large_clips=1200,
  folder="runs/showcase",
  frames=True,
  preset="shapes",
)


def bars(recipe: Recipe, printed: Mapping[str, Any]) -> list[dict[str, Any]]:
  """Each bar with what the stages reached: {"what", "reached", "bar", "ok"}."""
  found = []

  def add(what: str, reached: float, bar: float) -> None:
    found.append({"what": what, "reached": reached, "bar": bar, "ok": reached >= bar})

  for size, bar in recipe.psnr.items():
    add(f"tokenizer at {size}, PSNR in dB", printed[f"tokenizer at {size}"]["psnr"], bar)
  scores, apart = printed["score"]["scores"], printed["score"].get("scores_apart", {})
  for (stage, element), bar in recipe.accuracy.items():
    add(f"{stage}: {element}", scores[stage][f"caption_accuracy/{element}_accuracy"], bar)
  for element, bar in recipe.held_out.items():
    reached = apart["base"][f"caption_accuracy/{element}_accuracy"]
    add(f"base, captions in no training row: {element}", reached, bar)
  if recipe.held_out_gap is not None:
    for element in dict.fromkeys(element for _, element in recipe.accuracy):
      counts = [s["sr1"] for s in (scores, apart)]
      right, total = (
        [c[f"caption_accuracy/{element}_{kind}"] for c in counts] for kind in ("right", "total")
      )
      gap = (right[0] - right[1]) / (total[0] - total[1]) - right[1] / total[1]
      add(f"sr1, captions in no training row are as good: {element}", -gap, -recipe.held_out_gap)
  for comparison, better in printed.get(UPSCALING, {}).get("stage_wins", {}).items():
    add(f"super-resolution closer than bicubic ({comparison})", float(better), 1.0)
  return found
