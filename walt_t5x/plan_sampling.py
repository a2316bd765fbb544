"""The cost of sampling a cascade, from its gin file: parameters, tokens and FLOPs of each stage's chain.

  python -m walt_t5x.plan_sampling --gin_file=gin/walt_cascade_512x896.gin
  python -m walt_t5x.plan_sampling --gin_file=gin/walt_cascade_512x896.gin --topology=v5p:2x2x1 --samples=4

Reads only the gin files. With --topology the TPU compiler estimates the memory that a chip needs for the complete chain
of a batch (weights, activations, code), compiled on this machine; that needs the extra [tpu] and takes minutes.
"""

import dataclasses
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import app, flags

from walt_t5x.config import gin_flags, programs
from walt_t5x.config.waiting import waiting

GIB = 1024**3
FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingPlan:
  """Figures of one stage.

  Attributes:
    weight_bytes: size of the weights in the stage's dtype.
    network_rows: examples of a network call per sample: branches of guidance, on average over the calls.
    network_calls: network calls per sample.
    topologies: memory that a batch's chain needs per chip, by slice, as a `tpu_compile.ChipMemory`.
  """

  stage: str
  parameters: int
  weight_bytes: int
  tokens_per_row: int
  network_rows: float
  network_calls: int
  flops_per_sample: float
  topologies: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def plan_stage(
  config: Any, *, text_length: int, batch_size: int, topologies: Sequence[str] = ()
) -> SamplingPlan:
  """Figures of the stage of a `StageConfig`, and the memory of a batch on topologies such as 'v5p:2x2x1'."""
  import jax
  import jax.numpy as jnp

  from data import schema
  from walt_t5x.denoiser.transformer import Conditioning
  from walt_t5x.engine.flops import count_flops_of
  from walt_t5x.generation.stage_sampler import StageSampler, mesh_for
  from walt_t5x.planning import tpu_compile

  sampler, module = config.model.sampler, config.module
  t, h, w = schema.latents_shape(config.latents)
  # In the dtype of the stage.
  params = jax.tree.map(
    lambda p: jax.ShapeDtypeStruct(p.shape, config.weights_dtype or p.dtype),
    config.parameter_shapes(text_length),
  )

  def arguments(rows: int) -> tuple[Any, Any, dict[str, Any], Any]:
    """Shapes of (noise, low-resolution noise, fields of `Conditioning`, null text)."""

    def spec(*shape: int, dtype: Any = jnp.float32) -> Any:
      return jax.ShapeDtypeStruct((rows, *shape), dtype)

    noise, low_noise, null = spec(t, h, w, module.latent_channels), None, None
    fields: dict[str, Any] = {}
    if module.text_dim:
      null = spec(1, module.text_dim)
      fields["text"] = spec(1, text_length, module.text_dim)
      fields["text_mask"] = spec(1, text_length, dtype=jnp.bool_)
    if module.num_classes:
      fields["labels"] = spec(1, dtype=jnp.int32)
    if module.frame_prediction:
      fields |= {"frames": noise, "frame_mask": spec(t)}
    if config.low_resolution:
      shape = schema.latents_shape(config.low_resolution)
      low_noise = fields["low_resolution"] = spec(*shape, module.latent_channels)
    return noise, low_noise, fields, null

  def call(params: Any, noise: Any, low_noise: Any, fields: Any, null_text: Any) -> Any:
    conditioning = Conditioning(**fields)
    if low_noise is not None:
      time = jnp.zeros((1,))
      conditioning = config.model.low_resolution_noised(conditioning, low_noise, time=time)
    return module.apply({"params": params}, noise, jnp.ones((1,), jnp.int32), noise, conditioning)

  memory = {}
  for name in topologies:
    devices = tpu_compile.topology_devices(name)
    print(f"{name}: tracing the chain of {config.name}", file=sys.stderr, flush=True)
    chain = StageSampler(config, mesh=mesh_for(batch_size, devices))
    lowered = chain.lower(params, *arguments(batch_size), devices=devices)
    memory[name] = tpu_compile.compiled_or_rejected(lowered, name)[1]
  branches = 1 if sampler.guidance is None else 2 if sampler.frame_guidance is None else 3
  counts = sampler.branch_counts(config.model.schedule, branches=branches)
  return SamplingPlan(
    stage=config.name,
    parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
    weight_bytes=sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params)),
    tokens_per_row=t * (h // module.patch_size) * (w // module.patch_size),
    network_rows=sum(counts) / len(counts),
    network_calls=sampler.num_steps,
    flops_per_sample=count_flops_of(call, params, *arguments(1)) * sum(counts),
    topologies=memory,
  )


def table(plans: Sequence[SamplingPlan], *, batch_size: int) -> str:
  """The figures as a table."""
  lines = [
    f"{'stage':<8} {'parameters':>15} {'weights, GiB':>13} {'tokens':>13} {'batch x calls':>13} "
    f"{'FLOPs per sample':>20}"
  ]
  for plan in plans:
    lines.append(
      f"{plan.stage:<8} {plan.parameters:>15,} {plan.weight_bytes / GIB:>13.2f} {plan.tokens_per_row:>13,} "
      f"{f'{plan.network_rows:g} x {plan.network_calls}':>13} {plan.flops_per_sample:>20.3e}"
    )
  for name in plans[0].topologies:
    lines += ["", f"{name}, batches of {batch_size}: estimated by the TPU compiler, not measured"]
    for plan in plans:
      memory = plan.topologies[name]
      size = "more" if memory.needed is None else f"{memory.needed / GIB:.2f} GiB"
      verdict = "fits" if memory.fits else "DOES NOT FIT: use fewer --samples, or more chips"
      lines.append(f"  {plan.stage:<8} {size} of {memory.limit / GIB:.2f} GiB per chip: {verdict}")
  return "\n".join(lines)


def define_flags() -> None:
  """Defines the flags of the program."""
  gin_flags.define()
  flags.DEFINE_multi_string("topology", [], "TPU slice, e.g. v5p:2x2x1; may be repeated.")
  flags.DEFINE_integer("samples", 4, "Clips per batch.", lower_bound=1)
  flags.DEFINE_list("stages", [], "The cascade's first stages; all by default.")
  flags.DEFINE_boolean("json", False, "Print JSON instead of a table.")


def main(argv: Sequence[str]) -> None:
  """Reads the configuration and prints the plan."""
  needed = ("gin_file=gin/walt_cascade_512x896.gin",)
  gin_flags.check(argv, *needed, complete=False, scripts=("train", "generate"))
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  from walt_t5x import engine
  from walt_t5x.config import gin_config
  from walt_t5x.generation.checks import choose_stages
  from walt_t5x.generation.loading import CascadeConfig
  from walt_t5x.planning import tpu_compile

  programs.register(train=engine.train, generate=CascadeConfig)
  with programs.user_errors("plan_sampling"):
    for name in FLAGS.topology:
      tpu_compile.check_topology(name)
    gin_flags.read(finalize=False)
    stages = gin_config.macro_value("STAGES")
    with waiting("plan_sampling", "tracing the stages"):
      plans = [
        plan_stage(
          stage,
          text_length=gin_config.macro_value("TEXT_LENGTH", 64),
          batch_size=FLAGS.samples,
          topologies=FLAGS.topology,
        )
        for stage in choose_stages(stages, FLAGS.stages)
      ]
  if FLAGS.json:
    print(json.dumps([dataclasses.asdict(plan) for plan in plans]))
  else:
    print(table(plans, batch_size=FLAGS.samples))


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=gin_flags.parse_args)
