"""Every launchable gin file parses, uses only existing names, and builds a model with consistent shapes."""

import copy
import importlib
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import gin
from data import batch_spec
from walt_t5x import engine
from walt_t5x.config import gin_config
from walt_t5x.denoiser.transformer import REMAT_POLICIES
from walt_t5x.engine.builtin.train_state import split_variables
from walt_t5x.engine.run_record import RecordRun
from walt_t5x.files import storage
from walt_t5x.models import model_gin, model_record, student
from walt_t5x.models.denoiser_model import DenoiserModel
from walt_t5x.models.distilled_model import DistilledModel
from walt_t5x.models.input_shapes import input_shapes, without_data

ROOT = Path(__file__).resolve().parents[1]
PART_FOLDERS = ("models", "runs", "rehearsal")
LAUNCHED = sorted(
  file
  for file in (ROOT / "gin").rglob("*.gin")
  if file.relative_to(ROOT / "gin").parts[0] not in PART_FOLDERS
)
PARTS = sorted(file for folder in PART_FOLDERS for file in (ROOT / "gin" / folder).glob("*.gin"))
# Macros that a user must set on the command line.
GIVEN = {
  "MODEL_DIR": "'/tmp/model'",
  "BASE_CHECKPOINT": "'/tmp/base'",
  "SR1_CHECKPOINT": "'/tmp/sr1'",
  "SR2_CHECKPOINT": "'/tmp/sr2'",
  "VAE_CHECKPOINT": "'/tmp/vae'",
  "TEXT_ENCODER": "'/tmp/text'",
  "CHECKPOINT": "'/tmp/base/checkpoint_1'",
  "TEACHER": "'/tmp/teacher'",
  "CALLS": "8",
  "COARSE_CHECKPOINT": "'/tmp/coarse'",
  "PERCEPTUAL_WEIGHTS": "None",
  "OUTPUT_DIR": "'/tmp/output'",
  "CACHE_DIRS": "['/tmp/cache']",
  "SCORE_REFERENCE": "'/tmp/corpus'",
  "SCORE_WEIGHTS": "{'shapes': '/tmp/shapes.safetensors'}",
}


def _name(file):
  return str(file.relative_to(ROOT / "gin"))


def _t5x_program(module, function):
  """The function that a program of T5X configures; without T5X, one with the same parameters."""
  if engine.use_t5x():
    return getattr(importlib.import_module(module), function)

  def surrogate(**bound):
    return bound

  surrogate.__name__ = function
  return surrogate


@pytest.fixture
def parsed(monkeypatch, tmp_path):
  """Yields a function that parses a launched file as its program would."""
  from walt_t5x.generation.loading import CascadeConfig

  monkeypatch.setattr(sys.modules["__main__"], "train", engine.train, raising=False)
  monkeypatch.setattr(sys.modules["__main__"], "generate", CascadeConfig, raising=False)
  for module, function in (("t5x.eval", "evaluate"), ("t5x.infer", "infer")):
    program = _t5x_program(module, function)
    monkeypatch.setattr(sys.modules["__main__"], function, program, raising=False)
  gin.clear_config()
  gin.add_config_file_search_path(str(ROOT))

  def parse(file):
    sources = [file, *PARTS]
    text = "".join(source.read_text(encoding="utf-8") for source in sources)
    given = GIVEN
    if file.parent.name == "distill":
      # The teacher is a run of the file that this one includes.
      included = re.search(r"^include '(gin/(?!runs/).*)'$", text, re.MULTILINE)
      assert included is not None
      parse(ROOT / included[1])
      storage.write_json(tmp_path / "teacher/model.json", gin_config.bound(RecordRun).model)
      monkeypatch.setattr(student, "identity_of", lambda run: {"checkpoint": run, "weights": ""})
      gin.clear_config()
      given = GIVEN | {"TEACHER": repr(str(tmp_path / "teacher"))}
    bindings = [f"{name} = {value}" for name, value in given.items() if f"%{name}" in text]
    gin.parse_config_files_and_bindings([str(file)], bindings, finalize_config=True)

  yield parse
  gin.clear_config()


_TRACED = {}


def _representative(model, field):
  """A model whose loss has the same shapes: layers that only repeat others are left out, what the backward pass
  recomputes does not matter, numbers are the defaults, and the first pass of self-conditioning is like the second."""
  module = model.module
  if isinstance(model, DistilledModel):
    settings = vars(_representative(model.plain(), field))
    names = ("module", "optimizer_def", "self_conditioning_probability", "rows", "sampler")
    return DistilledModel(
      teacher=_representative(model.teacher, field),
      substeps=model.substeps,
      **{name: settings[name] for name in names},
    )
  if isinstance(model, DenoiserModel):
    assert module.remat in REMAT_POLICIES
    # The remainder keeps an odd number invalid.
    layers = min(module.num_layers, 2 + module.num_layers % 2)
    names = ("prediction", "rows", "continuous_time", "frame_prediction_counts", "sampler")
    return DenoiserModel(
      module=module.clone(num_layers=layers, scan_layers=False, remat="none"),
      optimizer_def=None,
      self_conditioning_probability=0.0,
      **{name: getattr(model, name) for name in names},
    )
  model = copy.copy(model)
  model.optimizer_def = None
  model.module = module.clone(num_res_blocks=min(module.num_res_blocks, 1), remat=False)
  # Reconstructions have the shape of the clips, so one tokenizer shows that the discriminator fits.
  judged = repr((model.discriminator, model.adversarial, field))
  if judged in _TRACED:
    model.discriminator = None
  _TRACED[judged] = ()
  return model


def _loss_shape(model, field, low_resolution=None):
  """Files share models: each is traced once, identified by its fields."""
  model = _representative(model, field)
  key = repr((type(model), vars(model), field, low_resolution))
  if " at 0x" in key or key not in _TRACED:
    _TRACED[key] = _traced_loss_shape(model, field, low_resolution)
  return _TRACED[key]


def _traced_loss_shape(model, field, low_resolution):
  model = without_data(model)
  batch = input_shapes(model, rows=2, field=field, low_resolution=low_resolution, text_length=4)
  shapes = {name: spec.shape for name, spec in batch.items()}
  types = {name: spec.dtype for name, spec in batch.items()}
  variables = jax.eval_shape(lambda: model.get_initial_variables(jax.random.key(0), shapes, types))
  others, _ = split_variables(variables)
  params = others.pop("params")
  # The collections that a model has in addition to its parameters are a fourth argument, and returned with the metrics.
  arguments = (params, batch, jax.random.key(1)) + ((others,) if others else ())
  loss, metrics = jax.eval_shape(model.loss_fn, *arguments)
  assert "loss" in (metrics[0] if others else metrics)
  return loss.shape


def _field_of(model):
  """A small clip that the model's tokenizer accepts."""
  module = model.module
  side = 2 * module.spatial_factor
  return f"pixels/{1 + module.temporal_factor}x{side}x{side}"


@pytest.mark.parametrize("file", LAUNCHED, ids=_name)
def test_launched_file_parses_and_its_model_fits(file, parsed):
  parsed(file)
  text = gin.config_str()
  assert "gin.REQUIRED" not in text, "a required macro is not documented"
  if gin_config.macro_value("STAGES") is None:
    model = gin_config.macro_value("MODEL")
    latents = gin_config.macro_value("LATENTS")
    if latents is None:
      assert _loss_shape(model, _field_of(model)) == ()
    else:
      assert _loss_shape(model, latents, gin_config.macro_value("LOW_RESOLUTION")) == ()
      dataset = gin_config.macro_value("MIXTURE_OR_TASK_NAME")
      lengths = batch_spec.task_feature_lengths(dataset)
      batch = input_shapes(
        model,
        rows=1,
        field=latents,
        low_resolution=gin_config.macro_value("LOW_RESOLUTION"),
      )
      assert set(lengths) == set(batch), "the data set has what the model reads"
      for name, spec in batch.items():
        assert lengths[name] == (spec.shape[1] if len(spec.shape) > 1 else 1), name
  else:
    stages = gin_config.macro_value("STAGES")
    assert [stage.low_resolution for stage in stages[1:]] == [s.latents for s in stages[:-1]]
    for stage in stages:
      model = stage.model
      assert _loss_shape(model, stage.latents, stage.low_resolution) == ()


TRAINED = [file for file in LAUNCHED if "-m walt_t5x.train " in file.read_text(encoding="utf-8")]
# What sampling reads of a denoiser.
SAMPLED = (
  "module",
  "schedule",
  "prediction",
  "sampler",
  "rows",
  "sampling_low_resolution_noise",
  "frame_prediction_counts",
)


@pytest.mark.parametrize("file", TRAINED, ids=_name)
def test_a_run_describes_its_model(file, parsed, tmp_path):
  parsed(file)
  trained = gin_config.macro_value("MODEL")
  record = gin_config.bound(RecordRun).model
  storage.write_json(tmp_path / "model.json", record)
  found = model_record.read(tmp_path / "checkpoint_7")
  if not isinstance(trained, DenoiserModel):
    dtype = np.dtype(trained.module.dtype).name  # JSON names it.
    assert found.model == trained.module.clone(dtype=dtype)
    return
  for name in SAMPLED:
    assert getattr(found.model, name) == getattr(trained, name), name
  macros = {name: gin_config.macro_value(name.upper()) for name in ("latents", "low_resolution")}
  assert {name: getattr(found, name) for name in macros} == macros
  assert bool(found.text_length) == bool(trained.module.text_dim)
  # Bindings made of the record give it again.
  imports, blocks, reference = model_gin.bindings(record["model"])
  made = [
    "from __gin__ import dynamic_registration",
    "from walt_t5x.models import model_record",
    *imports,
    *blocks,
    "denoiser_model.DenoiserModel.optimizer_def = None",
    f"model_record.record_of.model = {reference}",
    "model_record.record_of.dataset = None",
  ]
  gin.clear_config()
  gin.parse_config("\n".join(made))
  assert gin.get_configurable(model_record.record_of)()["model"] == record["model"]


def test_no_parameter_average_keeps_the_initial_parameters(parsed):
  decays = {}
  for file in LAUNCHED:
    if "-m walt_t5x.train " not in file.read_text(encoding="utf-8"):
      continue
    gin.clear_config()
    parsed(file)
    text, steps = gin.config_str(), gin_config.macro_value("TRAIN_STEPS")
    for name, decay in re.findall(r"^(\S+)\.ema_decay = ([\d.]+)$", text, re.MULTILINE):
      n = np.arange(steps)
      ramp = f"{name}.ema_ramp = True" in text
      factors = np.minimum(float(decay), (1 + n) / (10 + n)) if ramp else float(decay)
      decays[_name(file)] = float(np.exp(np.sum(np.log(factors * np.ones(steps)))))
  # Without a ramp, 35,000 steps of 0.9999 keep 3% (Table 3).
  assert len(decays) > 15 and {name: kept for name, kept in decays.items() if kept > 1e-6} == {}


@pytest.mark.parametrize("file", LAUNCHED, ids=_name)
def test_launched_file_documents_its_command(file):
  head = file.read_text(encoding="utf-8").split("from __gin__")[0]
  assert f"--gin_file=gin/{_name(file)}" in head, "the head comment must contain the command"
  assert "ardware" in head and ("measured" in head or "Expected" in head or "expected" in head)


@pytest.mark.parametrize("file", PARTS, ids=_name)
def test_part_is_used(file):
  include = f"include 'gin/{_name(file)}'"
  users = [f for f in (ROOT / "gin").rglob("*.gin") if include in f.read_text(encoding="utf-8")]
  given = (
    f"--gin_file=gin/{_name(file)}" in file.read_text(encoding="utf-8").split("from __gin__")[0]
  )
  assert users or given, f"nothing includes {_name(file)}, and its head contains no command with it"
