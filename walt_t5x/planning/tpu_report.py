"""The TPU compiler's estimates for a training step on a slice: memory, collectives, seconds; and for its variants.

The compiler's cost model counts the body of a scanned stack once. Memory and collectives are therefore taken from the
actual complete step, whose program contains the trip counts, and time from two unrolled models with few layers, whose
difference is the cost of a pair of layers. The three are compiled at the same time, each in a separate thread.
"""

import concurrent.futures
import copy
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from walt_t5x.engine.chips import TPUS
from walt_t5x.planning import tpu_compile
from walt_t5x.planning.collectives import collective_bytes

# Layers of the two unrolled models.
_SHALLOW = (2, 4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopologyReport:
  """The TPU compiler's estimates for one step on one slice.

  Attributes:
    chips, hosts: number of chips and hosts of the slice.
    fits: whether the step fits into the memory of a chip.
    hbm_bytes_per_chip: arguments, temporaries and code; if compilation fails, what the compiler reports as needed, or
      None.
    hbm_limit_bytes: memory of the chip; if compilation fails, what the compiler reports as available to programs.
    estimated_step_seconds: from the compiler's cost model, extrapolated over depth; None if it was not requested.
    estimated_utilization: the model's FLOPs divided by the chips' peak in that time.
    collective_bytes: bytes by kind, per step and chip, of the complete step: a loop's collectives count per iteration.
    problem: the compiler's message if it rejected the step, or the models that time is estimated from.
    seconds_to_compile: wall-clock time on this machine.
  """

  chips: int
  hosts: int
  fits: bool
  hbm_bytes_per_chip: int | None
  hbm_limit_bytes: int
  estimated_step_seconds: float | None = None
  estimated_utilization: float | None = None
  collective_bytes: Mapping[str, float] = dataclasses.field(default_factory=dict)
  problem: str = ""
  seconds_to_compile: float = 0.0


def report(
  model: Any,
  batch: Mapping[str, Any],
  *,
  topology: str,
  num_partitions: int = 1,
  rules: Any = None,
  num_microbatches: int | None = None,
  flops_per_step: float | None = None,
  say: Callable[[str], None] = lambda line: None,
) -> TopologyReport:
  """Compiles the complete step, and two shallow ones for the estimate of time.

  Args:
    model: a DenoiserModel (a VaeModel has no depth to extrapolate over: its complete step is used).
    batch: shapes of the global batch.
    topology: slice such as 'v5p:4x4x4'.
    num_partitions: size of the model axis.
    rules: logical axis rules.
    num_microbatches: as in `engine.Trainer`; the time is then that of a microbatch times their number, which counts
      the optimizer too often.
    flops_per_step: FLOPs of the model, for the utilization.
    say: called with progress messages, as compilation takes minutes.
  """
  devices = tpu_compile.topology_devices(topology)
  partitioner = tpu_compile.slice_partitioner(devices, num_partitions=num_partitions, rules=rules)
  started = time.monotonic()
  parts = num_microbatches or 1

  def compiling(name: str, lowered: Any) -> tuple[Any, tpu_compile.ChipMemory]:
    say(f"{topology}: tracing {name} after {time.monotonic() - started:.0f} s")
    try:
      return tpu_compile.compiled_or_rejected(lowered, topology)
    finally:
      say(f"{topology}: compiled {name} after {time.monotonic() - started:.0f} s")

  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    lowered = tpu_compile.lower_step(model, batch, partitioner, num_microbatches=num_microbatches)
    complete = pool.submit(compiling, "the complete step", lowered)
    timed = [
      pool.submit(
        compiling, name, tpu_compile.lower_step(simpler, _part(batch, parts), partitioner)
      )
      for name, simpler in _timed(model, parts).items()
    ]
    compiled, memory = complete.result()
    if compiled is None:
      for future in timed:
        future.cancel()
      programs = []
    else:
      programs = [future.result() for future in timed] or [(compiled, memory)]
  seconds = utilization = None
  problem = memory.problem
  if rejected := [m.problem for program, m in programs if program is None]:
    problem = f"no estimate of time: {rejected[0]}"
  elif programs:
    costs = [tpu_compile.estimated_seconds(program) for program, _ in programs]
    known = [cost for cost in costs if cost is not None]
    seconds = _extrapolated(model, known) * parts if len(known) == len(costs) else None
    if seconds is None or seconds <= 0:
      problem = f"no estimate of time: the compiler's seconds for {topology} are {costs}"
      seconds = None
  if flops_per_step is not None and seconds:
    peak = TPUS[topology.split(":", 1)[0]].peak_flops
    utilization = flops_per_step / (seconds * len(devices) * peak)
  return TopologyReport(
    chips=len(devices),
    hosts=len({d.process_index for d in devices}),
    fits=memory.fits,
    hbm_bytes_per_chip=memory.needed,
    hbm_limit_bytes=memory.limit,
    estimated_step_seconds=seconds,
    estimated_utilization=utilization,
    collective_bytes={} if compiled is None else collective_bytes(compiled.as_text()),
    problem=problem,
    seconds_to_compile=time.monotonic() - started,
  )


def _with(model: Any, **fields: Any) -> Any:
  """The model with other values for fields of its module."""
  model = copy.copy(model)
  model.module = model.module.clone(**fields)
  return model


def _timed(model: Any, parts: int) -> dict[str, Any]:
  """Models that are compiled for the estimate of time, by a readable name; a loop would hide costs."""
  if hasattr(model.module, "num_layers"):
    return {
      f"a step of {layers} layers": _with(model, num_layers=layers, scan_layers=False)
      for layers in _SHALLOW
    }
  return {"a step of one microbatch": model} if parts > 1 else {}


def _extrapolated(model: Any, costs: Sequence[float]) -> float:
  """Seconds for all layers."""
  if len(costs) == 1:
    return costs[0]
  less, more = _SHALLOW
  return costs[0] + (model.module.num_layers - less) / (more - less) * (costs[1] - costs[0])


def _part(batch: Mapping[str, Any], parts: int) -> dict[str, Any]:
  """Shapes of a microbatch."""
  return {n: type(s)((s.shape[0] // parts, *s.shape[1:]), s.dtype) for n, s in batch.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
  """One remat policy at one batch size.

  Attributes:
    remat: the module's setting: "none", "dots" or "full" of a stage, False or True of a tokenizer.
    batch_size: examples per step.
    report: None if it was skipped because a smaller batch did not fit.
  """

  remat: str | bool
  batch_size: int
  report: TopologyReport | None

  @property
  def fits(self) -> bool:
    return self.report is not None and self.report.fits

  @property
  def rows_per_second(self) -> float:
    """Estimated examples per second; 0 if it does not fit."""
    if not self.fits or self.report is None or not self.report.estimated_step_seconds:
      return 0.0
    return self.batch_size / self.report.estimated_step_seconds


def search(
  model: Any,
  *,
  batch_sizes: Sequence[int],
  try_one: Callable[[Any, int], TopologyReport],
) -> Iterator[Variant]:
  """Every remat policy at every batch size, smallest first; one that does not fit is not tried with larger batches.

  Args:
    model: its module has a field `remat`.
    batch_sizes: examples per step.
    try_one: (model, batch size) -> report.
  """
  policies = (False, True) if isinstance(model.module.remat, bool) else ("none", "dots", "full")
  rejected: set[str | bool] = set()
  for rows in sorted(batch_sizes):
    for remat in policies:
      found = None if remat in rejected else try_one(_with(model, remat=remat), rows)
      if found is None or not found.fits:
        rejected.add(remat)
      yield Variant(remat=remat, batch_size=rows, report=found)


def recommended(variants: Sequence[Variant]) -> Variant | None:
  """The variant with the most examples per second; within 1% of it, that with the least memory. None if none fits."""
  most = max((v.rows_per_second for v in variants), default=0.0)
  close = [v for v in variants if v.fits and v.rows_per_second >= 0.99 * most]

  def memory(variant: Variant) -> int:
    return (variant.report.hbm_bytes_per_chip if variant.report else None) or 0

  return min(close, key=memory, default=None)
