"""Estimates of the TPU compiler for every stage: memory per chip, step time, utilization, days. Nothing runs on a TPU.

  JAX_PLATFORMS=cpu python benchmarks/tpu_plan.py                # all missing entries; over an hour on two cores
  JAX_PLATFORMS=cpu python benchmarks/tpu_plan.py --only=walt_3b --slices=v5p:4x4x4
  JAX_PLATFORMS=cpu python benchmarks/tpu_plan.py --pair                # one pair of layers at width 2048, v5p
  JAX_PLATFORMS=cpu python benchmarks/tpu_plan.py --table               # writes the table again from the JSON file

Each entry is computed in a separate process and written to benchmarks/tpu_plan.json immediately, so a stopped command
resumes. Delete an entry to compute it again. Needs the extra [tpu].
"""

import argparse
import dataclasses
import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "tpu_plan.json"
STAGES = (
  "walt_l_ucf101",
  "walt_l_t2v",
  "walt_3b",
  "walt_3b_mxu",
  "walt_3b_9x16",
  "walt_sr_256x448",
  "walt_sr_512x896",
  "walt_sr_512x896_p2",
  "vae_t2v",
)
SLICES = ("v5p:4x4x4", "v5e:16x16")
# Additional bindings of a stage: a width of 1728 or 1408 is not divisible by 256 chips.
BINDINGS = {
  (name, "v5e:16x16"): ("NUM_PARTITIONS=4",)
  for name in ("walt_3b", "walt_3b_9x16", "walt_sr_256x448")
}
# Table 3b of the paper: step time of windows compared with full attention at L size, for each implementation.
EINSUM = "walt_t5x.denoiser.transformer.WaltDenoiser.attention_implementation='einsum'"
WINDOWS = {
  "5x8x8 einsum": ("ablations/default", (EINSUM,)),
  "full einsum": ("ablations/full_attention", (EINSUM,)),
  "5x8x8 kernel": ("ablations/default", ()),
}


@dataclasses.dataclass(frozen=True)
class Job:
  """One gin file, for one slice, with bindings."""

  file: str
  slice: str
  bindings: tuple[str, ...] = ()

  @property
  def key(self) -> str:
    return " ".join((self.file, self.slice, *self.bindings))

  def run(self) -> dict[str, Any]:
    """The compiler's plan, or its error."""
    command = [sys.executable, "-m", "walt_t5x.plan", f"--gin_file=gin/{self.file}.gin", "--json"]
    command += [f"--topology={self.slice}", *(f"--gin.{binding}" for binding in self.bindings)]
    started = time.monotonic()
    done = subprocess.run(
      command, cwd=ROOT, capture_output=True, text=True, check=False, env=_environment()
    )
    if done.returncode:
      raise SystemExit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    plan = json.loads(done.stdout.strip().splitlines()[-1])
    return {
      "gin_file": f"gin/{self.file}.gin",
      "slice": self.slice,
      "bindings": list(self.bindings),
      "batch_size": plan["batch_size"],
      "steps": plan["steps"],
      "train_flops_per_step": plan["train_flops_per_step"],
      "bytes_per_row": plan["bytes_per_row"],
      **plan["topologies"][self.slice],
      "seconds_to_plan": round(time.monotonic() - started),
      **versions(),
    }


def _environment() -> dict[str, str]:
  return os.environ | {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}


def versions() -> dict[str, str]:
  """Versions of libtpu and jax, and the date."""
  from importlib import metadata

  found = {name: metadata.version(name) for name in ("libtpu", "jax")}
  return found | {"date": datetime.date.today().isoformat()}


def pair(implementation: str) -> dict[str, Any]:
  """Seconds and 6ND / peak of a pair of layers.

  Width 2048, forward and backward without remat, 10,240 tokens on one v5p chip.
  """
  import jax
  import jax.numpy as jnp
  import numpy as np
  from flax.linen.partitioning import axis_rules

  from walt_t5x.denoiser.block import BlockPair, LayerInputs
  from walt_t5x.engine import chips
  from walt_t5x.planning import tpu_compile
  from walt_t5x.sharding import partitioning

  width, rows, tokens = 2048, 8, 1280
  device = tpu_compile.topology_devices("v5p:2x2x1")[0]
  module = BlockPair(
    spatial_window=(1, 16, 16),
    spatiotemporal_window=(5, 8, 8),
    cross_attention="spatial",
    num_heads=16,
    mlp_dim=4 * width,
    adaln="lora",
    adaln_rank=2,
    qk_norm=True,
    relative_bias=True,
    image_rows="select",
    attention_implementation=implementation,
    dtype=jnp.bfloat16,
  )

  def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    sharding = jax.sharding.SingleDeviceSharding(device)
    return jax.ShapeDtypeStruct(sizes, jnp.bfloat16, sharding=sharding)

  x = shape(rows, 2, 2, 5, 64, width)
  inputs = LayerInputs(shape(rows, 1, width), shape(rows, 1, 6 * width))

  def step(params: Any, x: Any, inputs: Any, cotangent: Any) -> Any:
    y, pull = jax.vjp(lambda p, x, i: module.apply({"params": p}, x, i)[0], params, x, inputs)
    return y, pull(cotangent)

  params = jax.eval_shape(
    lambda: module.init(jax.random.key(0), *jax.tree.map(jnp.zeros_like, (x, inputs)))
  )["params"]
  size = sum(p.size for p in jax.tree.leaves(params))
  params = jax.tree.map(
    lambda p: jax.ShapeDtypeStruct(p.shape, p.dtype, sharding=x.sharding), params
  )
  mesh = jax.sharding.Mesh(np.array(device).reshape(1, 1), ("data", "model"))
  with mesh, axis_rules(partitioning.rules()):
    compiled = jax.jit(step).lower(params, x, inputs, x).compile()
  seconds = tpu_compile.estimated_seconds(compiled)
  peak = chips.TPUS["v5p"].peak_flops
  return {
    "implementation": implementation,
    "parameters": size,
    "seconds": seconds,
    "bytes": compiled.cost_analysis()["bytes accessed"],
    "utilization_6nd": 6 * size * rows * tokens / seconds / peak,
    **versions(),
  }


def main() -> None:
  """Computes the missing entries."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--only", help="stages, by comma; default: all")
  parser.add_argument("--slices", default=",".join(SLICES))
  parser.add_argument("--bindings", nargs="*", default=[], help="gin bindings of these runs")
  parser.add_argument("--windows", action="store_true", help="Table 3b instead of the stages")
  parser.add_argument("--pair", action="store_true", help="the pair of layers instead")
  parser.add_argument("--table", action="store_true", help="only write the table again")
  arguments = parser.parse_args()
  sys.path.insert(0, str(ROOT))
  from benchmarks import tpu_plan_table

  results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}

  def keep(key: str, result: dict[str, Any]) -> None:
    results[key] = result
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(key, json.dumps(result), flush=True)

  if arguments.pair:
    for implementation in ("einsum", "pallas"):
      if f"pair {implementation}" not in results:
        keep(f"pair {implementation}", pair(implementation))
  elif not arguments.table:
    slices = arguments.slices.split(",")
    if arguments.windows:
      jobs = [Job(*WINDOWS[name][:1], slices[0], WINDOWS[name][1]) for name in WINDOWS]
    else:
      stages = arguments.only.split(",") if arguments.only else STAGES
      extra = tuple(arguments.bindings)
      jobs = [Job(s, t, (*BINDINGS.get((s, t), ()), *extra)) for t in slices for s in stages]
    for job in jobs:
      if job.key not in results:
        keep(job.key, job.run())
  (HERE / "tpu_plan.md").write_text(
    "\n".join(tpu_plan_table.lines(results, WINDOWS)) + "\n", encoding="utf-8"
  )


if __name__ == "__main__":
  main()
