"""The cost of sampling a cascade, from its gin file: parameters, tokens and FLOPs of each stage's chain.

  python -m walt_t5x.plan_sampling --gin_file=gin/walt_cascade_512x896.gin
  python -m walt_t5x.plan_sampling --gin_file=gin/walt_cascade_512x896.gin --topology=v5p:2x2x1 --samples=4

Reads only the gin files. With --topology the TPU compiler estimates the memory that a chip needs for the complete chain
of a batch (weights, activations, code), compiled on this machine; that needs the extra [tpu] and takes minutes. Whether
the chips split the weights is the macro STAGE_WEIGHTS: 'auto', 'sharded' or 'replicated'.
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
    network_calls: network calls per sample that compute the blocks; all of them if a cache reads the weights.
    topologies: memory that a batch's chain needs per chip, by slice, as a `tpu_compile.ChipMemory`.
    chip_weight_bytes: size of the weights that a chip holds, by slice.
  """

  stage: str
  parameters: int
  weight_bytes: int
  tokens_per_row: int
  network_rows: float
  network_calls: int
  flops_per_sample: float
  topologies: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  chip_weight_bytes: Mapping[str, int] = dataclasses.field(default_factory=dict)


def _weights(config: Any, text_length: int) -> Any:
  """Shapes of a stage's weights, in its dtype."""
  import jax

  return jax.tree.map(
    lambda p: jax.ShapeDtypeStruct(p.shape, config.weights_dtype or p.dtype),
    config.parameter_shapes(text_length),
  )


def weight_bytes(config: Any, text_length: int) -> int:
  """Size of a stage's weights in its dtype."""
  import jax

  leaves = jax.tree.leaves(_weights(config, text_length))
  return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def plan_stage(
  config: Any, *, text_length: int, batch_size: int, topologies: Mapping[str, bool] | None = None
) -> SamplingPlan:
  """Figures of a stage, and the memory of a batch on TPU slices.

  Args:
    config: the stage, a `StageConfig`.
    text_length: tokens per prompt.
    batch_size: clips per batch.
    topologies: slices such as 'v5p:2x2x1', and whether their chips split the weights.
  """
  import jax
  import jax.numpy as jnp

  from data import schema
  from walt_t5x.denoiser.transformer import Conditioning
  from walt_t5x.engine.flops import count_flops_of
  from walt_t5x.generation.stage_sampler import StageSampler, mesh_for
  from walt_t5x.planning import tpu_compile

  sampler, module = config.model.sampler, config.module
  t, h, w = schema.latents_shape(config.latents)
  params = _weights(config, text_length)

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

  def call(
    params: Any, noise: Any, low_noise: Any, fields: Any, null_text: Any, change: Any = None
  ) -> Any:
    conditioning = Conditioning(**fields)
    if low_noise is not None:
      time = jnp.zeros((1,))
      conditioning = config.model.low_resolution_noised(conditioning, low_noise, time=time)
    if module.guidance_range is not None:
      conditioning = dataclasses.replace(conditioning, guidance=jnp.ones((1,)))
    steps = jnp.ones((1,), jnp.int32)
    return module.apply({"params": params}, noise, steps, noise, conditioning, change)

  memory, held = {}, {}
  for name, sharded in (topologies or {}).items():
    devices = tpu_compile.topology_devices(name)
    print(f"{name}: tracing the chain of {config.name}", file=sys.stderr, flush=True)
    chain = StageSampler(config, mesh=mesh_for(batch_size, devices), sharded=sharded)
    lowered = chain.lower(params, *arguments(batch_size), devices=devices)
    memory[name] = tpu_compile.compiled_or_rejected(lowered, name)[1]
    held[name] = chain.device_bytes(params)
  counts = sampler.branch_counts(config.model.schedule, branches=config.model.branches)
  computing = [count for count in counts if count]
  flops = count_flops_of(call, params, *arguments(1)) * sum(counts)
  if len(computing) < len(counts):
    grid = (t, h // module.patch_size, w // module.patch_size, module.width)
    change = jax.ShapeDtypeStruct((1, *grid), module.dtype)
    everywhere = dataclasses.replace(sampler, cache=None)
    reusing = sum(everywhere.branch_counts(config.model.schedule, branches=config.model.branches))
    flops += count_flops_of(call, params, *arguments(1), change) * (reusing - sum(counts))
  return SamplingPlan(
    stage=config.name,
    parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
    weight_bytes=weight_bytes(config, text_length),
    tokens_per_row=t * (h // module.patch_size) * (w // module.patch_size),
    network_rows=sum(computing) / len(computing),
    network_calls=len(computing),
    flops_per_sample=flops,
    topologies=memory,
    chip_weight_bytes=held,
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
      parts = [f"weights {plan.chip_weight_bytes[name] / GIB:.2f}"]
      if memory.temporaries is not None:
        parts.append(f"temporaries {memory.temporaries / GIB:.2f}")
      lines.append(
        f"  {plan.stage:<8} {size} of {memory.limit / GIB:.2f} GiB per chip ({', '.join(parts)}): {verdict}"
      )
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
  from walt_t5x.engine.chips import TPUS
  from walt_t5x.generation import weight_sharding
  from walt_t5x.generation.checks import choose_stages
  from walt_t5x.generation.loading import CascadeConfig
  from walt_t5x.planning import tpu_compile

  programs.register(train=engine.train, generate=CascadeConfig)
  with programs.user_errors("plan_sampling"):
    for name in FLAGS.topology:
      tpu_compile.check_topology(name)
    gin_flags.read(finalize=False)
    stages = choose_stages(gin_config.macro_value("STAGES"), FLAGS.stages)
    length = gin_config.macro_value("TEXT_LENGTH", 64)
    with waiting("plan_sampling", "tracing the stages"):
      sizes = [weight_bytes(stage, length) for stage in stages] if FLAGS.topology else [0]
      one_at_a_time = gin_config.macro_value("ONE_STAGE_AT_A_TIME", False)
      topologies = {
        name: weight_sharding.is_sharded(
          gin_config.macro_value("STAGE_WEIGHTS", weight_sharding.AUTO),
          weight_bytes=max(sizes) if one_at_a_time else sum(sizes),
          device_bytes=TPUS[name.split(":", 1)[0]].hbm_bytes,
        )
        for name in FLAGS.topology
      }
      plans = [
        plan_stage(stage, text_length=length, batch_size=FLAGS.samples, topologies=topologies)
        for stage in stages
      ]
  if FLAGS.json:
    print(json.dumps([dataclasses.asdict(plan) for plan in plans]))
  else:
    print(table(plans, batch_size=FLAGS.samples))


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=gin_flags.parse_args)
