"""The engine's own training step, compiled for TPU slices that are not there.

libtpu (a registry package, extra `[tpu]`) compiles for any slice on a CPU machine. What comes back is what the compiler
thinks: bytes of memory a chip, collectives, a cost model's seconds. They are estimates and are called so.

A scanned stack costs its body once in the compiler's cost model. So memory and collectives come from the real, whole
step, whose program says how often a loop turns, and time from two unrolled models of few layers, whose difference is
the price of a pair of layers.
"""

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from walt_t5x.hlo_collectives import collective_bytes

GIB = 1024**3


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published figures of what JAX counts as one device: memory in bytes, bfloat16 operations a second.

  That is a chip, but for 7x, whose two halves are a device each.
  """

  hbm_bytes: int
  peak_flops: float
  topology_prefix: str = ""


# Google Cloud's pages of each generation, 2025.
CHIPS = {
  "v4": Chip(32 * GIB, 275e12),
  "v5e": Chip(16 * GIB, 197e12),
  "v5p": Chip(95 * GIB, 459e12),
  "v6e": Chip(32 * GIB, 918e12),
  "7x": Chip(96 * GIB, 2307e12 / 2, topology_prefix="tpu"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopologyReport:
  """What the TPU compiler says of one step on one slice.

  Attributes:
    fits: whether the step fits into the memory of a chip.
    hbm_bytes_per_chip: arguments, temporaries and code; where the compiler refuses, what it says it would need, or
      None.
    hbm_limit_bytes: of the chip.
    estimated_step_seconds: of the compiler's cost model, extrapolated over depth; None where it was not asked for.
    estimated_utilization: operations of the model over the chips' peak in that time.
    collective_bytes: by kind, a step and chip, of the whole step: a loop's collectives as often as it turns.
    problem: the compiler's words where it refused.
  """

  fits: bool
  hbm_bytes_per_chip: int | None
  hbm_limit_bytes: int
  estimated_step_seconds: float | None = None
  estimated_utilization: float | None = None
  collective_bytes: Mapping[str, float] = dataclasses.field(default_factory=dict)
  problem: str = ""


def topology_devices(topology: str) -> Sequence[Any]:
  """Devices of a slice such as 'v5p:4x4x4', for compilation only.

  Raises:
    ValueError: for a chip that is not known here.
    ImportError: without libtpu, naming the extra.
  """
  kind = topology.split(":", 1)[0]
  if kind not in CHIPS or ":" not in topology:
    raise ValueError(
      f"--topology={topology}: expected <chip>:<shape> with a chip of {sorted(CHIPS)}, e.g. v5p:4x4x4"
    )
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  try:
    import libtpu  # noqa: F401
  except ImportError as error:
    raise ImportError(
      "compiling for TPU needs libtpu: install the extra, `pip install 'walt_t5x[tpu]'`, and set JAX_PLATFORMS=cpu"
    ) from error
  from jax.experimental import topologies

  name = CHIPS[kind].topology_prefix + topology
  return topologies.get_topology_desc(platform="tpu", topology_name=name).devices


def compile_step(model: Any, batch: Mapping[str, Any], partitioner: Any) -> Any:
  """The compiled training step of the built-in engine: loss, gradient, optimizer, parameter average, metrics.

  Args:
    model: what is trained.
    batch: shapes of the whole batch.
    partitioner: mesh and rules, over the slice's devices.
  """
  import jax

  from walt_t5x.engine.builtin.initial_state import StateInitializer
  from walt_t5x.engine.builtin.training_step import TrainingStep

  initializer = StateInitializer(model, input_spec=batch, partitioner=partitioner)
  step = TrainingStep(
    model=model,
    partitioner=partitioner,
    axes=initializer.axes,
    rng=jax.random.PRNGKey(0),
    learning_rate_fn=lambda step: 0.0,
  )
  return step.compile(initializer.shapes, batch)


def slice_partitioner(devices: Sequence[Any], *, num_partitions: int, rules: Any) -> Any:
  """The built-in partitioner over devices that can only be compiled for."""
  import functools

  import jax
  from jax.experimental import mesh_utils
  from jax.sharding import Mesh

  from walt_t5x.engine.builtin.partitioner import PjitPartitioner

  class SlicePartitioner(PjitPartitioner):
    @functools.cached_property
    def mesh(self) -> Mesh:
      shape = (len(devices) // num_partitions, num_partitions)
      return Mesh(mesh_utils.create_device_mesh(shape, devices=devices), ("data", "model"))

    @property
    def replicated(self) -> Any:
      # Where the trainer puts values at once: these devices hold none.
      return jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])

  return SlicePartitioner(num_partitions=num_partitions, logical_axis_rules=rules)


_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


def memory_wanted(message: str) -> int | None:
  """Bytes a device would need, from the compiler's refusal; None where it does not say."""
  found = re.search(r"[Uu]sed ([\d.]+)([KMGT]?) of [\d.]+[KMGT]? hbm", message)
  return int(float(found[1]) * _UNITS[found[2]]) if found else None


def memory_of(compiled: Any) -> int:
  """Bytes a device needs at once: arguments, results that take no argument's place, temporaries, code."""
  m = compiled.memory_analysis()
  return (
    m.argument_size_in_bytes
    + m.output_size_in_bytes
    - m.alias_size_in_bytes
    + m.temp_size_in_bytes
    + m.generated_code_size_in_bytes
  )


def report(
  model: Any,
  batch: Mapping[str, Any],
  *,
  topology: str,
  num_partitions: int = 1,
  rules: Any = None,
  flops_per_step: float | None = None,
) -> TopologyReport:
  """Compiles the whole step, and two shallow ones for the estimates of time and traffic.

  Args:
    model: a DenoiserModel (a VaeModel has no depth to extrapolate over: its step is taken whole).
    batch: shapes of the whole batch.
    topology: such as 'v5p:4x4x4'.
    num_partitions: size of the model axis.
    rules: logical axis rules.
    flops_per_step: operations of the model, for the utilisation.
  """
  devices = topology_devices(topology)
  chip = CHIPS[topology.split(":", 1)[0]]
  partitioner = slice_partitioner(devices, num_partitions=num_partitions, rules=rules)
  try:
    compiled = compile_step(model, batch, partitioner)
  except Exception as error:
    message = str(error)
    if "RESOURCE_EXHAUSTED" not in message and "memory" not in message.lower():
      raise
    return TopologyReport(
      False,
      memory_wanted(message),
      chip.hbm_bytes,
      problem=message.strip().splitlines()[0][:500],
    )
  memory = memory_of(compiled)
  seconds = _seconds(model, batch, partitioner, compiled)
  utilisation = None
  if flops_per_step is not None and seconds:
    utilisation = flops_per_step / (seconds * len(devices) * chip.peak_flops)
  return TopologyReport(
    fits=memory <= chip.hbm_bytes,
    hbm_bytes_per_chip=memory,
    hbm_limit_bytes=chip.hbm_bytes,
    estimated_step_seconds=seconds,
    estimated_utilization=utilisation,
    collective_bytes=collective_bytes(compiled.as_text()),
  )


def _seconds(model: Any, batch: Any, partitioner: Any, whole: Any) -> float:
  """Seconds of the whole step."""
  if not hasattr(model.module, "num_layers"):
    return whole.cost_analysis()["optimal_seconds"]
  saved, found = model.module, []
  try:
    for layers in (2, 4):
      model.module = saved.clone(num_layers=layers, scan_layers=False)
      shallow = compile_step(model, batch, partitioner)
      found.append(shallow.cost_analysis()["optimal_seconds"])
  finally:
    model.module = saved
  first, second = found
  return first + (saved.num_layers - 2) / 2 * (second - first)
