"""Figures of a run from its gin files: sizes and FLOPs from shapes, and the TPU compiler's reports on its step."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from walt_t5x.planning import plan_text

# Assumption: tokens per caption, for the size of a corpus; 23 on average in packed_text's measurements.
_CAPTION_TOKENS = 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """Figures of one run.

  Attributes:
    parameters: number of parameters of the model.
    parameters_by_module: parameters by part, summed over layers of a kind.
    tokens_per_row: tokens of the transformer per example; latent cells per example for a tokenizer.
    batch_size: examples per step.
    train_flops_per_step: FLOPs of a step, for the global batch.
    steps: steps of the run.
    bytes_per_row: bytes per example that a host sends to its devices.
    record_bytes: bytes per record on disk, by "video" and "image".
    corpus_bytes: bytes of the number of records given; 0 if none was given.
    memory_advice: flags that reduce the memory of a step that does not fit.
    topologies: the TPU compiler's estimates by the name of each requested slice.
  """

  parameters: int
  parameters_by_module: Mapping[str, int]
  tokens_per_row: int
  batch_size: int
  train_flops_per_step: float
  steps: int | None
  bytes_per_row: int
  record_bytes: Mapping[str, int]
  corpus_bytes: int = 0
  memory_advice: Sequence[str] = ()
  topologies: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def plan_model(
  model: Any,
  *,
  batch_size: int,
  field: str,
  low_resolution: str | None = None,
  text_length: int = 64,
  steps: int | None = None,
) -> Plan:
  """Figures of a model trained on a record field.

  Args:
    model: a DenoiserModel or a VaeModel.
    batch_size: examples per step.
    field: 'latents/<t>x<h>x<w>' of a stage, 'pixels/<T>x<H>x<W>' of a tokenizer.
    low_resolution: latents field that a super-resolution stage is given.
    text_length: tokens per caption.
    steps: steps of the run.
  """
  import jax

  from data import schema
  from walt_t5x.engine.builtin.train_state import split_variables
  from walt_t5x.engine.flops import count_flops_of
  from walt_t5x.models.input_shapes import input_shapes, record_bytes, without_data
  from walt_t5x.models.vae_model import VaeModel

  model = without_data(model)
  # A step's FLOPs are those of one example times the batch size; one example is traced.
  batch = input_shapes(
    model, rows=1, field=field, low_resolution=low_resolution, text_length=text_length
  )
  shapes = {name: spec.shape for name, spec in batch.items()}
  types = {name: spec.dtype for name, spec in batch.items()}
  variables, _ = split_variables(
    jax.eval_shape(lambda: model.get_initial_variables(jax.random.key(0), shapes, types))
  )
  params = variables.pop("params")
  arguments = (params, batch, jax.eval_shape(lambda: jax.random.key(0)))
  # Tokenizers with a discriminator have further collections.
  arguments += (variables,) if variables else ()
  flops = count_flops_of(jax.grad(lambda *given: model.loss_fn(*given)[0]), *arguments)
  module = model.module
  if isinstance(model, VaeModel):
    t, h, w, _ = module.latent_shape(schema.pixels_shape(field))
  else:
    t, h, w = schema.latents_shape(field)
    h, w = h // module.patch_size, w // module.patch_size
  by_module = parameters_by_module(params)
  return Plan(
    parameters=sum(by_module.values()),
    parameters_by_module=by_module,
    tokens_per_row=t * h * w,
    batch_size=batch_size,
    train_flops_per_step=flops * batch_size,
    steps=steps,
    bytes_per_row=sum(spec.size * spec.dtype.itemsize for spec in batch.values()),
    record_bytes=record_bytes(
      model,
      field=field,
      low_resolution=low_resolution,
      caption_tokens=min(_CAPTION_TOKENS, text_length),
    ),
  )


def parameters_by_module(params: Mapping[str, Any]) -> dict[str, int]:
  """Parameters by part: the first name of the path, and for the transformer's layers the part within a layer.

  Pairs of layers, scanned or not, are summed: "layers/attention" is all self-attention of the model.
  """
  from flax import traverse_util

  counts: dict[str, int] = {}
  flat: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(dict(params))
  for path, leaf in flat.items():
    if path[0].startswith("pairs"):
      part = f"layers/{path[2]}"
      if path[3] == "relative_position_bias":
        part = "layers/relative_position_bias"
    elif path[0] == "vae":
      part = f"vae/{path[1]}"
    else:
      part = path[0]
    counts[part] = counts.get(part, 0) + leaf.size
  return counts


def _configured() -> tuple[Any, dict[str, Any]]:
  """The model of the parsed gin files, and its data as arguments of `plan_model`."""
  from walt_t5x.config import gin_config

  model = gin_config.macro_value("MODEL")
  field = gin_config.macro_value("LATENTS") or gin_config.binding("pixel_task.pixels")
  if model is None or field is None:
    raise gin_config.GinError(
      f"MODEL is {'set' if model is not None else 'missing'}, LATENTS (or pixel_task.pixels) is "
      f"{'set' if field else 'missing'}: expected a file that trains a model, such as gin/walt_3b.gin"
    )
  return model, {
    "field": field,
    "low_resolution": gin_config.macro_value("LOW_RESOLUTION"),
    "text_length": gin_config.macro_value("TEXT_LENGTH", 64),
  }


def plan_gin(batch_size: int | None = None) -> Plan:
  """The plan of the parsed gin files.

  Args:
    batch_size: examples per step; the files' batch size by default.

  Raises:
    GinError: the files define no model or no field.
  """
  from walt_t5x.config import gin_config

  model, data = _configured()
  rows: int = batch_size or gin_config.macro_value("BATCH_SIZE")
  steps = gin_config.macro_value("TRAIN_STEPS")
  plan = plan_model(model, batch_size=rows, steps=steps, **data)
  advice = plan_text.memory_advice(
    remat=model.module.remat,
    remat_name=gin_config.name_of_binding("remat", of=type(model.module).__name__),
    batch_size=rows,
    num_microbatches=gin_config.macro_value("NUM_MICROBATCHES") or 1,
    fully_sharded=bool(gin_config.binding("partitioning.rules.fully_sharded")),
  )
  return dataclasses.replace(plan, memory_advice=advice)


def _report(plan: Plan, model: Any, rows: int, *, data: Mapping[str, Any], topology: str) -> Any:
  """The TPU compiler's report on a step of `rows` examples, with the mesh and rules of the parsed gin files."""
  from walt_t5x.config import gin_config
  from walt_t5x.models.input_shapes import input_shapes, without_data
  from walt_t5x.planning import tpu_report

  return tpu_report.report(
    without_data(model),
    input_shapes(model, rows=rows, **data),
    topology=topology,
    num_partitions=gin_config.macro_value("NUM_PARTITIONS", 1),
    rules=gin_config.binding("PjitPartitioner.logical_axis_rules"),
    num_microbatches=gin_config.macro_value("NUM_MICROBATCHES"),
    flops_per_step=plan.train_flops_per_step / plan.batch_size * rows,
    say=lambda line: print(line, file=sys.stderr, flush=True),
  )


def topologies_gin(plan: Plan, names: Sequence[str]) -> dict[str, Any]:
  """The TPU compiler's reports for the parsed gin files, of `plan`, on slices such as 'v5p:4x4x4'."""
  model, data = _configured()
  return {
    name: dataclasses.asdict(_report(plan, model, plan.batch_size, data=data, topology=name))
    for name in names
  }


def search_gin(plan: Plan, name: str, batch_sizes: Sequence[int]) -> list[Any]:
  """The TPU compiler's reports on every remat policy at some batch sizes; `tpu_report.Variant`s.

  Args:
    plan: the plan of the parsed gin files.
    name: slice such as 'v5p:4x4x4'.
    batch_sizes: batch sizes; empty for half, once and twice that of the plan.
  """
  from walt_t5x.planning import tpu_report

  model, data = _configured()
  rows = plan.batch_size

  def try_one(model: Any, rows: int) -> Any:
    print(f"{name}: batch size {rows:,}, remat {model.module.remat!r}", file=sys.stderr, flush=True)
    return _report(plan, model, rows, data=data, topology=name)

  sizes = batch_sizes or sorted({max(rows // 2, 1), rows, 2 * rows})
  return list(tpu_report.search(model, batch_sizes=sizes, try_one=try_one))
