"""What a run trains, as data: the content of model.json in its folder, from which other programs build the model.

No program needs a gin file to sample from a run or to encode with its tokenizer. model.json names classes of a fixed
list and their settings; nothing in it is executed.

  {"format": 1, "model": {"class": "DenoiserModel", ...}, "latents": "latents/3x8x8", "low_resolution": null,
   "text_length": 16}
  {"format": 1, "model": {"class": "CausalVae", ...}}
"""

import dataclasses
import enum
import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from walt_t5x.denoiser.transformer import WaltDenoiser
from walt_t5x.diffusion.guidance import COMBINATIONS, SCALES
from walt_t5x.diffusion.samplers.caching import CACHES
from walt_t5x.diffusion.samplers.grids import GRIDS
from walt_t5x.diffusion.schedules import NoiseSchedule
from walt_t5x.engine import run_record
from walt_t5x.files import storage
from walt_t5x.files.mismatch import Mismatch
from walt_t5x.models.denoiser_model import DenoiserModel
from walt_t5x.models.distilled_model import DistilledModel
from walt_t5x.models.sampling import SOLVERS, SamplerConfig
from walt_t5x.models.vae_model import VaeModel
from walt_t5x.vae.autoencoder import CausalVae

# Class -> settings that sampling does not need.
_CLASSES: Mapping[type, frozenset[str]] = {
  DenoiserModel: frozenset({"optimizer_def", "corpus", "trainable"}),
  WaltDenoiser: frozenset({"parent", "name"}),
  CausalVae: frozenset({"parent", "name"}),
  NoiseSchedule: frozenset(),
  SamplerConfig: frozenset(),
  **dict.fromkeys((*SCALES, *COMBINATIONS, *GRIDS, *CACHES), frozenset()),
  **dict.fromkeys((type(solver) for solver in SOLVERS.values()), frozenset()),
}
_DTYPES = ("bfloat16", "float16", "float32", "float64")
BY_NAME = {cls.__name__: cls for cls in _CLASSES}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelRecord:
  """The model of a run.

  Attributes:
    model: the denoiser with its sampler, without an optimizer; or the tokenizer's network.
    latents, low_resolution: fields that a denoiser was trained on.
    text_length: tokens of a caption; 0 without text.
    teacher: of a distilled model, the checkpoint and the sha256 of the teacher's weights.
  """

  model: DenoiserModel | CausalVae
  latents: str | None = None
  low_resolution: str | None = None
  text_length: int = 0
  teacher: Mapping[str, str] | None = None


def settings_of(cls: type) -> list[str]:
  """Names of the settings of one of the classes that a record may have."""
  return sorted(inspect.signature(cls).parameters.keys() - _CLASSES[cls])


def record_of(*, model: Any, dataset: Any) -> dict[str, Any] | None:
  """The content of model.json for a model and the task or mixture that it is trained on.

  None for models of other classes, and for settings that are code, such as a user's guidance function: such a run is
  sampled with a gin file.
  """
  fields = getattr(dataset, "walt_fields", {})
  text = getattr(dataset, "walt_features", {}).get("text")
  teacher = None
  if isinstance(model, DistilledModel):
    identity = model.teacher_identity
    model, teacher = model.plain(), identity() if identity else None
  record = described(
    model.module if isinstance(model, VaeModel) else model,
    latents=fields.get("latents"),
    low_resolution=fields.get("low_resolution"),
    text_length=text.shape[1] if text else 0,
  )
  return record | {"teacher": dict(teacher)} if record and teacher else record


def described(
  model: Any,
  *,
  latents: str | None = None,
  low_resolution: str | None = None,
  text_length: int = 0,
) -> dict[str, Any] | None:
  """The content of model.json for a denoiser, or for a tokenizer (which has no fields); else as `record_of`."""
  if not isinstance(model, DenoiserModel | CausalVae):
    return None
  try:
    record = {"format": run_record.MODEL_FORMAT, "model": _tree(model)}
  except TypeError:
    return None
  if isinstance(model, CausalVae):
    return record
  return record | {
    "latents": latents,
    "low_resolution": low_resolution,
    "text_length": text_length,
  }


def read(run: storage.PathLike) -> ModelRecord:
  """The record of a run: of its folder, or of a checkpoint in it.

  Raises:
    FileNotFoundError: there is none.
    Mismatch: it is of another format, or was changed by hand.
  """
  content = run_record.read_model(run)
  try:
    settings = {name: content[name] for name in content.keys() - {"format", "model"}}
    return ModelRecord(model=_object(content["model"]), **settings)
  except (ValueError, KeyError, TypeError) as error:
    raise Mismatch(
      f"{run_record.model_file(run)} cannot be used: {error}; give the run's gin file instead"
    ) from error


def _tree(value: Any) -> Any:
  """JSON of an object, whose class must be one of `_CLASSES`; raises TypeError for any other value."""
  if value is None or isinstance(value, bool | int | float):
    return value
  if isinstance(value, str):
    return str(value.value) if isinstance(value, enum.Enum) else value
  if isinstance(value, tuple | list):
    return [_tree(item) for item in value]
  if type(value) in _CLASSES:
    settings = {name: _tree(getattr(value, name)) for name in settings_of(type(value))}
    return {"class": type(value).__name__, **settings}
  if (name := np.dtype(value).name) not in _DTYPES:
    raise TypeError(f"{value!r} cannot be written as JSON")
  return name


def _object(tree: Any) -> Any:
  """The object of which `tree` is the JSON."""
  if isinstance(tree, list):
    return tuple(map(_object, tree))
  if not isinstance(tree, dict):
    return tree
  settings: dict[str, Any] = {
    name: _object(value) for name, value in tree.items() if name != "class"
  }
  if tree["class"] not in BY_NAME:
    raise ValueError(f"unknown class {tree['class']!r}")
  cls = BY_NAME[tree["class"]]
  if cls is DenoiserModel:
    settings["optimizer_def"] = None
  return cls(**settings)
