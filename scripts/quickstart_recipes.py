"""Sizes of the quickstart, its expected seconds, and the bars that it must reach."""

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
    vae: gin file of the tokenizer.
    corpus: flags of `data.samples`.
    num_frames: frames of a clip.
    sizes: HxW of the base stage and of the super-resolution stage.
    text_length: tokens of a caption, at most.
    prompts: number of clips to generate and score, if --prompts does not give it.
    steps: training steps of the tokenizer, the base stage and the super-resolution stage; None for the gin files'.
    compare_upscaling: whether to compare super-resolution with bicubic upscaling.
    seconds: expected seconds of the stages that take long, on two idle cores.
    psnr: bars of the tokenizer on held-out clips in dB, by size.
    accuracy: bars of caption accuracy over all prompts, (stage, element) -> fraction.
    held_out: bars of the base stage over the captions that are in no training row, element -> fraction.
  """

  name: str
  gin: str
  vae: str
  corpus: tuple[str, ...]
  num_frames: int
  sizes: tuple[str, str]
  text_length: int
  prompts: int
  steps: tuple[int | None, int | None, int | None]
  compare_upscaling: bool
  seconds: Mapping[str, int]
  psnr: Mapping[str, float]
  accuracy: Mapping[tuple[str, str], float]
  held_out: Mapping[str, float]


FULL = Recipe(
  name="Quickstart",
  gin="gin/tiny",
  vae="gin/models/vae_tiny.gin",
  corpus=("--num_clips=1264", "--validation_fraction=0.05"),
  num_frames=9,
  sizes=("32x32", "64x64"),
  text_length=16,
  prompts=72,
  steps=(None, None, None),
  compare_upscaling=True,
  seconds={
    "sample corpus": 9,
    "pixels": 3,
    "train tokenizer": 134,
    "tokenizer": 13,
    "latents and text": 39,
    "train base": 280,
    "train super-resolution": 145,
    "generate": 40,
    "score": 10,
    "feature network": 22,
    UPSCALING: 36,
    "report": 8,
  },
  psnr={"32x32": 26.0, "64x64": 27.0},
  accuracy={
    ("base", "color"): 0.98,
    ("base", "direction"): 0.95,
    ("base", "shape"): 0.75,
    ("sr1", "shape"): 0.75,
  },
  held_out={"color": 0.95, "direction": 0.90, "shape": 0.50},
)
FAST = dataclasses.replace(
  FULL,
  corpus=("--num_clips=784", "--validation_fraction=0.1"),
  steps=(400, 600, 400),
  compare_upscaling=False,
  seconds={
    "sample corpus": 6,
    "pixels": 3,
    "train tokenizer": 50,
    "tokenizer": 12,
    "latents and text": 25,
    "train base": 80,
    "train super-resolution": 40,
    "generate": 30,
    "score": 8,
    "report": 15,
  },
  psnr={"32x32": 23.0, "64x64": 24.0},
  accuracy={("base", "color"): 0.90, ("base", "direction"): 0.80},
  held_out={},
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
  for comparison, better in printed.get(UPSCALING, {}).get("stage_wins", {}).items():
    add(f"super-resolution closer than bicubic ({comparison})", float(better), 1.0)
  return found
