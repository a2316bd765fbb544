"""Compiles the engine's own training step for TPU slices that need not exist.

libtpu (a registry package, extra `[tpu]`) compiles for any slice on a CPU machine. The results are the compiler's
estimates: bytes of memory per chip, collectives, seconds of a cost model. They are labeled as estimates.
"""

import dataclasses
import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from walt_t5x.engine.chips import TPUS


def check_topology(topology: str) -> None:
  """Raises ValueError for a slice of an unknown chip, and ImportError if libtpu is not installed."""
  kind = topology.split(":", 1)[0]
  if kind not in TPUS or ":" not in topology:
    raise ValueError(
      f"--topology={topology}: expected <chip>:<shape> with a chip of {sorted(TPUS)}, e.g. v5p:4x4x4"
    )
  if importlib.util.find_spec("libtpu") is None:
    raise ImportError(
      "compiling for TPU needs libtpu: `pip install --no-deps --require-hashes -r requirements-tpu.lock` (the extra "
      "[tpu]), and set JAX_PLATFORMS=cpu"
    )


def topology_devices(topology: str) -> Sequence[Any]:
  """Devices of a slice such as 'v5p:4x4x4', for compilation only; raises as `check_topology`."""
  check_topology(topology)
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  from jax.experimental import topologies

  name = TPUS[topology.split(":", 1)[0]].topology_prefix + topology
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
    model: the model to train.
    batch: shapes of the global batch.
    partitioner: mesh and rules, over the slice's devices.
    num_microbatches: as in `engine.Trainer`.
  """
  import jax

  from walt_t5x.engine.builtin.train_state import StateInitializer
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
  """The built-in partitioner over devices that only support compilation."""
  import jax

  from walt_t5x.engine.builtin.partitioner import PjitPartitioner

  class SlicePartitioner(PjitPartitioner):
    @property
    def devices(self) -> Sequence[Any]:
      return devices

    @property
    def replicated(self) -> Any:
      # The trainer places values here immediately; the slice's devices cannot hold any.
      return jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])

  return SlicePartitioner(num_partitions=num_partitions, logical_axis_rules=rules)


_UNITS = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3, "T": 1024**4}


def memory_wanted(message: str) -> tuple[int, int] | None:
  """(bytes that a device would need, bytes available to programs) in the compiler's error message; None if absent."""
  found = re.search(r"[Uu]sed ([\d.]+)([KMGT]?) of ([\d.]+)([KMGT]?) hbm", message) or re.search(
    # Temporaries alone may exceed the memory; arguments are additional.
    r"required for HLO temporaries \(([\d.]+)([KMGT]?)\) exceeds available HBM \(([\d.]+)([KMGT]?)\)",
    message,
  )
  if found is None:
    return None
  used, unit, limit, limit_unit = found.groups()
  return int(float(used) * _UNITS[unit]), int(float(limit) * _UNITS[limit_unit])


def memory_of(compiled: Any) -> int:
  """Bytes that a device needs: arguments, results that do not alias an argument, temporaries, code."""
  m = compiled.memory_analysis()
  return (
    m.argument_size_in_bytes
    + m.output_size_in_bytes
    - m.alias_size_in_bytes
    + m.temp_size_in_bytes
    + m.generated_code_size_in_bytes
  )


# In v5e programs (libtpu 0.0.51): reinterprets the shape of a buffer; computes and moves nothing.
_FREE_CALL = 'custom_call_target="ConcatBitcast"'


def estimated_seconds(compiled: Any) -> float | None:
  """Seconds of the compiler's cost model for one run of the program, loops counted once; None if it has no estimate.

  The model adds -1 for an unknown call. One of these is `ConcatBitcast`, which costs nothing, so each is added back; a
  step of W.A.L.T-L on v5e then changes from -90.988 s to 0.012 s. Only those of the entry are added back: for a
  conditional the model takes the most expensive branch, so a branch with such a call counts as nothing (in a
  tokenizer's step, the gradient penalty). A sum that is still negative has another unknown call and is not an estimate.
  """
  entry = compiled.as_text().rpartition("\nENTRY ")[2]  # The last computation of the text.
  seconds = compiled.cost_analysis()["optimal_seconds"] + entry.count(_FREE_CALL)
  return seconds if seconds > 0 else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChipMemory:
  """Whether a program fits a chip.

  Attributes:
    fits: whether it fits.
    needed: bytes that a chip needs; if compilation fails, what the compiler reports as needed, or None.
    limit: bytes of a chip; if compilation fails, what the compiler reports as available to programs.
    problem: the compiler's message if compilation fails.
    temporaries: the part of `needed` that is neither arguments, results nor code; None if compilation fails.
  """

  fits: bool
  needed: int | None
  limit: int
  problem: str = ""
  temporaries: int | None = None


def compiled_or_rejected(lowered: Any, topology: str) -> tuple[Any, ChipMemory]:
  """(the program compiled for a slice, its memory); the program is None if it does not fit."""
  limit = TPUS[topology.split(":", 1)[0]].hbm_bytes
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
  temporaries = compiled.memory_analysis().temp_size_in_bytes
  return compiled, ChipMemory(
    fits=needed <= limit, needed=needed, limit=limit, temporaries=temporaries
  )
