"""Every gin file that people launch parses, names only what exists, and builds a model whose shapes fit."""

import copy
import sys
from pathlib import Path

import jax
import pytest

import gin

ROOT = Path(__file__).resolve().parents[1]
LAUNCHED = sorted(
  file
  for file in (ROOT / "gin").rglob("*.gin")
  if file.relative_to(ROOT / "gin").parts[0] not in ("models", "runs")
)
PARTS = sorted(
  file for folder in ("models", "runs") for file in (ROOT / "gin" / folder).glob("*.gin")
)
# Macros that a user must give on the command line.
GIVEN = {
  "MODEL_DIR": "'/tmp/model'",
  "BASE_CHECKPOINT": "'/tmp/base'",
  "SR1_CHECKPOINT": "'/tmp/sr1'",
  "SR2_CHECKPOINT": "'/tmp/sr2'",
  "VAE_CHECKPOINT": "'/tmp/vae'",
  "TEXT_ENCODER": "'/tmp/text'",
}


def _name(file):
  return str(file.relative_to(ROOT / "gin"))


@pytest.fixture
def parsed(monkeypatch):
  """Yields a function that parses a launched file as its program would."""
  from walt_t5x import engine, generate

  monkeypatch.setattr(sys.modules["__main__"], "train", engine.train, raising=False)
  monkeypatch.setattr(sys.modules["__main__"], "generate", generate.generate, raising=False)
  gin.clear_config()
  gin.add_config_file_search_path(str(ROOT))

  def parse(file):
    sources = [file, *PARTS]
    text = "".join(source.read_text(encoding="utf-8") for source in sources)
    bindings = [f"{name} = {value}" for name, value in GIVEN.items() if f"%{name}" in text]
    gin.parse_config_files_and_bindings([str(file)], bindings, finalize_config=True)

  yield parse
  gin.clear_config()


def _value(macro):
  """The object that a macro stands for; gin calls a reference when it is copied."""
  return copy.deepcopy(gin.query_parameter(f"{macro}/gin.macro.value"))


def _shapes(model, latents=None, low_resolution=None):
  """Shapes of a batch of two rows that the model's own converter would deliver."""
  from data import schema

  module = model.module
  if hasattr(module, "channel_multipliers"):
    frames, side = 1 + module.temporal_factor, 2 * module.spatial_factor
    return {"video": (2, frames, side, side, 3)}
  t, h, w = schema.latents_shape(latents)
  shapes = {"latents": (2, t, h, w, module.latent_channels), "is_image": (2,)}
  if module.text_dim:
    shapes |= {
      "text": (2, t, 4, module.text_dim),
      "text_mask": (2, t, 4),
      "null_text": (2, 1, module.text_dim),
    }
  if module.num_classes:
    shapes["label"] = (2, t)
  if module.low_resolution_scale:
    assert low_resolution, "a super-resolution stage names LOW_RESOLUTION"
    lt, lh, lw = schema.latents_shape(low_resolution)
    assert (lt, lh * module.low_resolution_scale, lw * module.low_resolution_scale) == (t, h, w)
    shapes["low_resolution"] = (2, lt, lh, lw, module.latent_channels)
  return shapes


def _types(shapes):
  names = {"is_image": "bool", "text_mask": "bool", "label": "int32", "video": "uint8"}
  return {name: jax.numpy.dtype(names.get(name, "float32")) for name in shapes}


def _loss_shape(model, shapes):
  types = _types(shapes)
  variables = jax.eval_shape(lambda: model.get_initial_variables(jax.random.key(0), shapes, types))
  batch = {name: jax.ShapeDtypeStruct(shape, types[name]) for name, shape in shapes.items()}
  loss, metrics = jax.eval_shape(
    lambda p, b: model.loss_fn(p, b, jax.random.key(1)), variables["params"], batch
  )
  assert "loss" in metrics
  return loss.shape


@pytest.mark.parametrize("file", LAUNCHED, ids=_name)
def test_launched_file_parses_and_its_model_fits(file, parsed):
  parsed(file)
  text = gin.config_str()
  assert "gin.REQUIRED" not in text, "a macro is left open that no user is told to give"
  if "train_script.train" in text or "train.model" in text:
    latents = [
      gin.query_parameter(f"{name}/gin.macro.value") if f"{name} =" in text else None
      for name in ("LATENTS", "LOW_RESOLUTION")
    ]
    model = _value("MODEL")
    assert _loss_shape(model, _shapes(model, *latents)) == ()
  else:
    stages = _value("STAGES")
    assert [stage.low_resolution for stage in stages[1:]] == [s.latents for s in stages[:-1]]
    for stage in stages:
      model = stage.model
      assert _loss_shape(model, _shapes(model, stage.latents, stage.low_resolution)) == ()


@pytest.mark.parametrize("file", LAUNCHED, ids=_name)
def test_launched_file_says_how_to_launch_it(file):
  head = file.read_text(encoding="utf-8").split("from __gin__")[0]
  assert f"--gin_file=gin/{_name(file)}" in head, "the head comment gives the command"
  assert "ardware" in head and ("measured" in head or "Expected" in head or "expected" in head)


@pytest.mark.parametrize("file", PARTS, ids=_name)
def test_part_is_used(file):
  include = f"include 'gin/{_name(file)}'"
  users = [f for f in (ROOT / "gin").rglob("*.gin") if include in f.read_text(encoding="utf-8")]
  assert users, f"nothing includes {_name(file)}"
