"""The engine's own training step, lowered for TPU slices that are not there.

libtpu (a registry package, extra `[tpu]`) compiles for any slice on a CPU machine. What comes back is what the compiler
thinks: bytes of memory a chip, collectives, a cost model's seconds. They are estimates and are called so.
"""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

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


def check_topology(topology: str) -> None:
  """Refuses a slice that cannot be compiled for, at once.

  Raises:
    ValueError: for a chip that is not known here.
    ImportError: without libtpu, naming the extra.
  """
  kind = topology.split(":", 1)[0]
  if kind not in CHIPS or ":" not in topology:
    raise ValueError(
      f"--topology={topology}: expected <chip>:<shape> with a chip of {sorted(CHIPS)}, e.g. v5p:4x4x4"
    )
  if importlib.util.find_spec("libtpu") is None:
    raise ImportError(
      "compiling for TPU needs libtpu: install the extra, `pip install 'walt_t5x[tpu]'`, and set JAX_PLATFORMS=cpu"
    )


def topology_devices(topology: str) -> Sequence[Any]:
  """Devices of a slice such as 'v5p:4x4x4', for compilation only.

  Raises:
    ValueError, ImportError: as `check_topology`.
  """
  check_topology(topology)
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  from jax.experimental import topologies

  name = CHIPS[topology.split(":", 1)[0]].topology_prefix + topology
  return topologies.get_topology_desc(platform="tpu", topology_name=name).devices


def lower_step(
  model: Any,
  batch: Mapping[str, Any],
  partitioner: Any,
  *,
  num_microbatches: int | None = None,
) -> Any:
  """The training step of the built-in engine, not yet compiled: loss, gradient, optimizer, parameter average, metrics.

  Args:
    model: what is trained.
    batch: shapes of the whole batch.
    partitioner: mesh and rules, over the slice's devices.
    num_microbatches: as of `engine.Trainer`.
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
    num_microbatches=num_microbatches,
  )
  return step.lower(initializer.shapes, batch)


def slice_partitioner(devices: Sequence[Any], *, num_partitions: int, rules: Any) -> Any:
  """The built-in partitioner over devices that can only be compiled for."""
  import jax

  from walt_t5x.engine.builtin.partitioner import PjitPartitioner

  class SlicePartitioner(PjitPartitioner):
    @property
    def devices(self) -> Sequence[Any]:
      return devices

    @property
    def replicated(self) -> Any:
      # Where the trainer puts values at once: these devices hold none.
      return jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])

  return SlicePartitioner(num_partitions=num_partitions, logical_axis_rules=rules)


_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


def memory_wanted(message: str) -> tuple[int, int] | None:
  """(bytes a device would need, bytes of it that programs get), from the compiler's refusal.

  None where it does not say.
  """
  found = re.search(r"[Uu]sed ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm", message) or re.search(
    # Temporaries alone may be too much; arguments come on top.
    r"required for HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)",
    message,
  )
  if found is None:
    return None
  used, unit, limit, limit_unit = found.groups()
  return int(float(used) * _UNITS[unit]), int(float(limit) * _UNITS[limit_unit])


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


# Of v5e programs (libtpu 0.0.51): a buffer is given another shape, nothing is computed or moved.
_FREE_CALL = 'custom_call_target="ConcatBitcast"'


def estimated_seconds(compiled: Any) -> float | None:
  """Seconds of the compiler's cost model for one run of the program, loops counted once; None where it has no answer.

  The model adds -1 for a call that it does not know. Of these it does not know `ConcatBitcast`, which costs nothing,
  so each is added back; with that a step of W.A.L.T-L on v5e goes from -90.988 s to 0.012 s. Those of the entry alone:
  of a condition's branches the model takes the dearest, so a branch that holds such a call counts as nothing (of a
  tokenizer's step the gradient penalty). A sum that is still negative holds another unknown, and is no estimate.
  """
  entry = compiled.as_text().rpartition("\nENTRY ")[2]  # The last of the text.
  seconds = compiled.cost_analysis()["optimal_seconds"] + entry.count(_FREE_CALL)
  return seconds if seconds > 0 else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChipMemory:
  """Whether a program fits a chip.

  Attributes:
    fits: whether it does.
    needed: bytes a chip needs; where the compiler refuses, what it says it would need, or None.
    limit: bytes of a chip; where the compiler refuses, what it says programs get.
    problem: the compiler's words where it refused.
  """

  fits: bool
  needed: int | None
  limit: int
  problem: str = ""


def compiled_or_refused(lowered: Any, topology: str) -> tuple[Any, ChipMemory]:
  """(the compiled program, its memory); None for a program that does not fit.

  Args:
    lowered: for devices of the slice.
    topology: the slice.
  """
  limit = CHIPS[topology.split(":", 1)[0]].hbm_bytes
  try:
    compiled = lowered.compile()
  except Exception as error:
    message = str(error)
    if "RESOURCE_EXHAUSTED" not in message and "memory" not in message.lower():
      raise
    needed, limit = memory_wanted(message) or (None, limit)
    problem = message.strip().splitlines()[0][:500]
    return None, ChipMemory(fits=False, needed=needed, limit=limit, problem=problem)
  needed = memory_of(compiled)
  return compiled, ChipMemory(fits=needed <= limit, needed=needed, limit=limit)
