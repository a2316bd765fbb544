"""What a run will cost, from its gin file: parameters, tokens and operations a step, from shapes alone.

  python -m walt_t5x.plan --gin_file=gin/walt_3b.gin
  python -m walt_t5x.plan --gin_file=gin/walt_3b.gin --json --gin.BATCH_SIZE=256
  python -m walt_t5x.plan --gin_file=gin/walt_3b.gin --topology=v5p:4x4x4     # needs the extra [tpu], takes minutes
  python -m walt_t5x.plan --compare gin/walt_3b.gin gin/walt_3b_mxu.gin       # one column a file

Nothing is read but the gin files. Operations are those of matrix products and convolutions in the loss and its
gradient, with the self-conditioning pass and without what a remat policy computes again. With --topology the TPU
compiler compiles the engine's step for that slice, on this machine, and its estimates are printed too.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

FLAGS = flags.FLAGS
_REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """Figures of one run.

  Attributes:
    parameters: of the model.
    parameters_by_module: parameters by part; layers of a kind are added up.
    tokens_per_row: of the transformer; latent cells of a row for a tokenizer.
    batch_size: rows a step.
    train_flops_per_step: operations of a whole step, all rows.
    steps: of the run.
    topologies: what the TPU compiler says of each slice that was asked for, by name.
  """

  parameters: int
  parameters_by_module: Mapping[str, int]
  tokens_per_row: int
  batch_size: int
  train_flops_per_step: float
  steps: int | None
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
  """Figures of a model trained on rows of a record field.

  Args:
    model: a DenoiserModel or a VaeModel.
    batch_size: rows a step.
    field: 'latents/<t>x<h>x<w>' of a stage, 'pixels/<T>x<H>x<W>' of a tokenizer.
    low_resolution: latents field that a super-resolution stage is given.
    text_length: tokens of a caption.
    steps: of the run.
  """
  import jax

  from data import schema
  from walt_t5x.flops import count_flops_of
  from walt_t5x.models.input_shapes import input_shapes
  from walt_t5x.models.vae_model import VaeModel

  # A step's operations are those of one row times the rows; one row is traced.
  batch = input_shapes(
    model, rows=1, field=field, low_resolution=low_resolution, text_length=text_length
  )
  shapes = {name: spec.shape for name, spec in batch.items()}
  types = {name: spec.dtype for name, spec in batch.items()}
  params = jax.eval_shape(
    lambda: model.get_initial_variables(jax.random.key(0), shapes, types)["params"]
  )
  key = jax.eval_shape(lambda: jax.random.key(0))
  flops = count_flops_of(jax.grad(lambda p, b, k: model.loss_fn(p, b, k)[0]), params, batch, key)
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
  )


def parameters_by_module(params: Mapping[str, Any]) -> dict[str, int]:
  """Parameters by part: the first name of the path, and for the transformer's layers the part within a layer.

  Pairs of layers, scanned or not, are added up: "layers/attention" is all self-attention of the model.
  """
  from flax import traverse_util

  counts: dict[str, int] = {}
  for path, leaf in traverse_util.flatten_dict(dict(params)).items():
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


def plan_gin() -> Plan:
  """The plan of the parsed gin files, whose rows the macros LATENTS, LOW_RESOLUTION and TEXT_LENGTH describe; a

  tokenizer's, `pixel_task.pixels`.

  Raises:
    GinError: if the files define no model or no field.
  """
  from walt_t5x.engine import gin_config

  model = gin_config.macro_value("MODEL")
  field = gin_config.macro_value("LATENTS") or gin_config.binding("pixel_task.pixels")
  if model is None or field is None:
    raise gin_config.GinError(
      f"MODEL is {'set' if model is not None else 'missing'}, LATENTS (or pixel_task.pixels) is "
      f"{'set' if field else 'missing'}: expected a file that trains a model, such as gin/walt_3b.gin"
    )
  return plan_model(
    model,
    batch_size=gin_config.macro_value("BATCH_SIZE"),
    field=field,
    low_resolution=gin_config.macro_value("LOW_RESOLUTION"),
    text_length=gin_config.macro_value("TEXT_LENGTH", 64),
    steps=gin_config.macro_value("TRAIN_STEPS"),
  )


def topologies_gin(plan: Plan, names: Sequence[str]) -> dict[str, Any]:
  """The TPU compiler's reports for the parsed gin files, with their mesh and rules.

  Args:
    plan: of the same files.
    names: slices such as 'v5p:4x4x4'.
  """
  from walt_t5x import tpu_compile
  from walt_t5x.engine import gin_config
  from walt_t5x.models.input_shapes import input_shapes

  model = gin_config.macro_value("MODEL")
  batch = input_shapes(
    model,
    rows=plan.batch_size,
    field=gin_config.macro_value("LATENTS") or gin_config.binding("pixel_task.pixels"),
    low_resolution=gin_config.macro_value("LOW_RESOLUTION"),
    text_length=gin_config.macro_value("TEXT_LENGTH", 64),
  )
  return {
    name: dataclasses.asdict(
      tpu_compile.report(
        model,
        batch,
        topology=name,
        num_partitions=gin_config.macro_value("NUM_PARTITIONS", 1),
        rules=gin_config.binding("PjitPartitioner.logical_axis_rules"),
        flops_per_step=plan.train_flops_per_step,
      )
    )
    for name in names
  }


def table(plan: Plan) -> str:
  """The figures for people."""
  lines = [f"{'part':<34} {'parameters':>15}  share"]
  for name, count in sorted(plan.parameters_by_module.items(), key=lambda item: -item[1]):
    lines.append(f"{name:<34} {count:>15,}  {count / plan.parameters:6.1%}")
  lines.append(f"{'total':<34} {plan.parameters:>15,}")
  lines.append("")
  lines.append(f"tokens a row                       {plan.tokens_per_row:>15,}")
  lines.append(f"rows a step                        {plan.batch_size:>15,}")
  lines.append(f"training operations a step         {plan.train_flops_per_step:>15.4g}")
  if plan.steps:
    total = plan.steps * plan.train_flops_per_step
    lines.append(f"steps                              {plan.steps:>15,}")
    lines.append(f"training operations of the run     {total:>15.4g}")
  for name, report in plan.topologies.items():
    lines += ["", *_topology_lines(name, report, steps=plan.steps)]
  return "\n".join(lines)


def comparison(plans: Mapping[str, Plan]) -> str:
  """The figures of several files side by side.

  Args:
    plans: by the name of the file.
  """
  rows: dict[str, list[str]] = {"": [Path(name).stem for name in plans]}
  names = {name: None for plan in plans.values() for name in plan.topologies}
  found = list(plans.values())
  rows["parameters"] = [f"{plan.parameters:,}" for plan in found]
  rows["tokens a row"] = [f"{plan.tokens_per_row:,}" for plan in found]
  rows["rows a step"] = [f"{plan.batch_size:,}" for plan in found]
  rows["training operations a step"] = [f"{plan.train_flops_per_step:.4g}" for plan in found]
  for name in names:
    reports = [plan.topologies[name] for plan in found]
    rows[f"{name}: memory a chip, GiB"] = [_gib(r["hbm_bytes_per_chip"]) for r in reports]
    rows[f"{name}: step, s (estimated)"] = [
      _figure(r["estimated_step_seconds"], ".3f") for r in reports
    ]
    rows[f"{name}: model operations over the peak"] = [
      _figure(r["estimated_utilization"], ".1%") for r in reports
    ]
  return "\n".join(
    f"{name:<44}" + "".join(f"{cell:>24}" for cell in cells) for name, cells in rows.items()
  )


def _gib(size: float | None) -> str:
  return "does not fit" if size is None else f"{size / 1024**3:.1f}"


def _figure(value: float | None, style: str) -> str:
  return "-" if value is None else format(value, style)


def _topology_lines(name: str, report: Mapping[str, Any], *, steps: int | None) -> list[str]:
  gib = 1024**3
  limit, needed = report["hbm_limit_bytes"], report["hbm_bytes_per_chip"]
  lines = [f"{name}: estimated by the TPU compiler, not measured"]
  if not report["fits"] and report["problem"]:
    by = "" if needed is None else f", by {(needed - limit) / gib:.1f} GiB"
    return [*lines, f"  does not fit into {limit / gib:.0f} GiB a chip{by}: {report['problem']}"]
  verdict = "fits" if report["fits"] else f"does not fit, by {(needed - limit) / gib:.1f} GiB"
  lines.append(
    f"  memory a chip                    {needed / gib:>15.1f} GiB of {limit / gib:.0f}: {verdict}"
  )
  seconds, utilisation = report["estimated_step_seconds"], report["estimated_utilization"]
  if seconds:
    lines.append(f"  step                             {seconds:>15.3f} s")
    if steps:
      lines.append(f"  the run's {steps:,} steps           {seconds * steps / 86400:>15.1f} days")
  if utilisation:
    lines.append(f"  model operations over the peak   {utilisation:>15.1%}")
  for kind, count in sorted(report["collective_bytes"].items()):
    lines.append(f"  {kind + ' a step and chip':<32} {count / gib:>15.2f} GiB")
  return lines


def define_flags() -> None:
  """Registers this program's flags with absl."""
  flags.DEFINE_multi_string("gin_file", None, "gin files; later ones override earlier ones.")
  flags.DEFINE_multi_string(
    "gin_bindings", [], "Single bindings; `--gin.NAME=value` is short for one."
  )
  flags.DEFINE_list(
    "gin_search_paths", ["."], "Folders to look for gin files in, before the repository."
  )
  flags.DEFINE_multi_string(
    "topology", [], "TPU slice to compile the step for, e.g. v5p:4x4x4; may be repeated."
  )
  flags.DEFINE_boolean("json", False, "Print JSON instead of a table.")
  flags.DEFINE_boolean("compare", False, "One column for each gin file given as an argument.")


def main(argv: Sequence[str]) -> None:
  """Reads the configuration and prints the plan."""
  files = [[file] for file in argv[1:]] if FLAGS.compare else [FLAGS.gin_file]
  if len(argv) > 1 and not FLAGS.compare:
    raise app.UsageError(f"unexpected arguments {list(argv[1:])}; bindings are --gin.NAME=value.")
  if FLAGS.compare and (len(files) < 2 or FLAGS.gin_file):
    raise app.UsageError("--compare takes two or more gin files as arguments, and no --gin_file.")
  if not files[0]:
    raise app.UsageError("--gin_file is missing; try --gin_file=gin/walt_3b.gin.")
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  from walt_t5x.engine import gin_config

  try:
    plans = {" ".join(names): _plan_files(names) for names in files}
  except ImportError as error:
    sys.exit(str(error))
  except gin_config.GinError as error:
    sys.exit(f"The gin configuration cannot be used.\n{error}")
  except ValueError as error:
    sys.exit(f"The model cannot be built: {error}")
  if FLAGS.json:
    found = {name: dataclasses.asdict(plan) for name, plan in plans.items()}
    print(json.dumps(found if FLAGS.compare else next(iter(found.values()))))
  else:
    print(comparison(plans) if FLAGS.compare else table(next(iter(plans.values()))))


def _plan_files(names: Sequence[str]) -> Plan:
  """The plan of gin files and the bindings of the command line."""
  import gin
  from walt_t5x import engine
  from walt_t5x.engine import gin_config

  # gin files say `import __main__ as train_script`.
  sys.modules["__main__"].train = engine.train  # type: ignore[attr-defined]
  gin.clear_config()
  bindings, folders = list(FLAGS.gin_bindings), [*FLAGS.gin_search_paths, _REPOSITORY]
  gin_config.parse(names, bindings, folders, finalize=False)
  plan = plan_gin()
  if FLAGS.topology:
    plan = dataclasses.replace(plan, topologies=topologies_gin(plan, FLAGS.topology))
  return plan


def parse_flags(args: Sequence[str]) -> list[str]:
  """Flags with `--gin.NAME=value` rewritten; returns what is left over."""
  from walt_t5x.engine import gin_config

  return app.parse_flags_with_usage(gin_config.rewrite_gin_args(list(args)))


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=parse_flags)
