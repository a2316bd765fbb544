"""The quickstart's recipes: stages, expected seconds and bars."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

import gin
from data.samples.sample_corpus import SCENES, evaluation_prompts
from scripts.quickstart_recipes import FAST, FULL, SHOWCASE, SMALLEST, bars
from scripts.quickstart_stages import Pipeline
from scripts.stages import flat
from walt_t5x import engine
from walt_t5x.config import gin_config

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("recipe", [FULL, FAST, SMALLEST, SHOWCASE], ids=lambda recipe: recipe.name)
def test_stages_have_names_of_their_own_files_that_exist_and_known_durations(recipe, tmp_path):
  steps = Pipeline(folder=tmp_path, recipe=recipe, seed=3, prompts=5).steps()
  stages = flat(steps)
  names = [stage.name for stage in stages]
  assert len(set(names)) == len(names)
  for stage in stages:
    files = [
      a.partition("=")[2] for a in stage.command if a.startswith(("--gin_file", "--vae_gin"))
    ]
    assert all((ROOT / file).is_file() for file in files), stage.line
  assert [name for name in recipe.seconds if not any(s.startswith(name) for s in names)] == []
  seeded = [s.name for s in stages if any("eed=3" in a.lower() for a in s.command)]
  trained = ["train tokenizer", "train base", "train super-resolution"]
  assert set(seeded) >= {"sample corpus", *trained, "generate"}


def test_every_training_reads_a_task_that_an_earlier_stage_writes(tmp_path, monkeypatch):
  monkeypatch.setattr(sys.modules["__main__"], "train", engine.train, raising=False)
  for recipe in (FULL, FAST, SMALLEST, SHOWCASE):
    written = set()
    for stage in flat(Pipeline(folder=tmp_path, recipe=recipe, seed=0, prompts=5).steps()):
      flags = dict(a.partition("=")[::2] for a in stage.command if a.startswith("--"))
      if "--task" in flags:
        written.add((flags["--task"], tuple(flags["--resolutions"].split(","))))
      elif "walt_t5x.train" in stage.command:
        gin.clear_config()
        gin_config.parse([flags["--gin_file"]], ["MODEL_DIR = 'run'"], [str(ROOT)], finalize=False)
        name = "pixel_task" if stage.name == "train tokenizer" else "image_video_mixture"
        task = gin_config.binding(f"{name}.task")
        sizes = {
          "train base on small clips": (recipe.coarse,),
          "train base": recipe.sizes[:1],
        }.get(stage.name, recipe.sizes)
        assert any(task == t and set(sizes) <= set(found) for t, found in written), stage.line
  gin.clear_config()


@pytest.mark.parametrize("recipe", [FULL, FAST, SMALLEST], ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_captions_that_are_scored_apart_are_among_the_prompts(recipe, seed, tmp_path):
  steps = Pipeline(folder=tmp_path, recipe=recipe, seed=seed, prompts=recipe.prompts).steps()
  (score,) = (stage for stage in flat(steps) if stage.name == "score")
  held_out = SCENES["shapes"].held_out_captions(np.random.default_rng([seed, 3]), 12)
  if any(flag.startswith("--captions_apart") for flag in score.command):
    assert set(held_out) & set(evaluation_prompts(seed, recipe.prompts))


def _printed(right_all, right_apart):
  def scores(right, total):
    counts = {"accuracy": right / total, "right": right, "total": total}
    return {f"caption_accuracy/shape_{name}": value for name, value in counts.items()}

  return {
    "tokenizer at 8x8": {"psnr": 27.0},
    "score": {
      "scores": {stage: scores(right_all, 100) for stage in ("base", "sr1")},
      "scores_apart": {stage: scores(right_apart, 20) for stage in ("base", "sr1")},
    },
  }


def test_a_bar_holds_at_its_value_and_not_below():
  recipe = dataclasses.replace(
    FULL,
    psnr={"8x8": 27.0},
    accuracy={("base", "shape"): 0.9},
    held_out={"shape": 0.8},
    held_out_gap=0.05,
  )
  assert [row["ok"] for row in bars(recipe, _printed(90, 16))] == [True, True, True, False]
  # Of the 80 others 75 are right, and 18 of the 20: 3.75 points apart.
  rows = bars(recipe, _printed(93, 18))
  assert all(row["ok"] for row in rows) and rows[-1]["reached"] == pytest.approx(-0.0375)
  assert [row["ok"] for row in bars(recipe, _printed(89, 15))] == [True, False, False, False]
