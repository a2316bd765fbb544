"""What the TPU compiler says of a training step on a slice: memory, collectives, seconds; and of its variants.

A scanned stack costs its body once in the compiler's cost model. So memory and collectives come from the real, whole
step, whose program says how often a loop turns, and time from two unrolled models of few layers, whose difference is
the price of a pair of layers. The three are compiled at the same time, by a thread each.
"""

import concurrent.futures
import copy
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from walt_t5x.planning import tpu_compile
from walt_t5x.planning.collectives import collective_bytes

# Layers of the two unrolled models.
_SHALLOW = (2, 4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopologyReport:
  """What the TPU compiler says of one step on one slice.

  Attributes:
    chips, hosts: of the slice.
    fits: whether the step fits into the memory of a chip.
    hbm_bytes_per_chip: arguments, temporaries and code; where the compiler refuses, what it says it would need, or
      None.
    hbm_limit_bytes: of the chip; where the compiler refuses, what it says programs get.
    estimated_step_seconds: of the compiler's cost model, extrapolated over depth; None where it was not asked for.
    estimated_utilization: operations of the model over the chips' peak in that time.
    collective_bytes: by kind, a step and chip, of the whole step: a loop's collectives as often as it turns.
    problem: the compiler's words where it refused the step, or the models that time is estimated from.
    seconds_to_compile: of the wall clock of this machine.
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
  """Compiles the whole step, and two shallow ones for the estimate of time.

  Args:
    model: a DenoiserModel (a VaeModel has no depth to extrapolate over: its step is taken whole).
    batch: shapes of the whole batch.
    topology: such as 'v5p:4x4x4'.
    num_partitions: size of the model axis.
    rules: logical axis rules.
    num_microbatches: as of `engine.Trainer`; the time is then that of a microbatch times their number, which counts
      the optimizer too often.
    flops_per_step: operations of the model, for the utilisation.
    say: is told what has been done, as it takes minutes.
  """
  devices = tpu_compile.topology_devices(topology)
  partitioner = tpu_compile.slice_partitioner(devices, num_partitions=num_partitions, rules=rules)
  started = time.monotonic()
  parts = num_microbatches or 1

  def compiling(name: str, lowered: Any) -> tuple[Any, tpu_compile.ChipMemory]:
    say(f"{topology}: {name} is traced after {time.monotonic() - started:.0f} s")
    try:
      return tpu_compile.compiled_or_refused(lowered, topology)
    finally:
      say(f"{topology}: {name} has left the compiler after {time.monotonic() - started:.0f} s")

  with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
    lowered = tpu_compile.lower_step(model, batch, partitioner, num_microbatches=num_microbatches)
    whole = pool.submit(compiling, "the whole step", lowered)
    timed = [
      pool.submit(
        compiling, name, tpu_compile.lower_step(simpler, _part(batch, parts), partitioner)
      )
      for name, simpler in _timed(model, parts).items()
    ]
    compiled, memory = whole.result()
    if compiled is None:
      for future in timed:
        future.cancel()
      programs = []
    else:
      programs = [future.result() for future in timed] or [(compiled, memory)]
  seconds = utilisation = None
  problem = memory.problem
  if refused := [m.problem for program, m in programs if program is None]:
    problem = f"no estimate of time: {refused[0]}"
  elif programs:
    costs = [tpu_compile.estimated_seconds(program) for program, _ in programs]
    known = [cost for cost in costs if cost is not None]
    seconds = _extrapolated(model, known) * parts if len(known) == len(costs) else None
    if seconds is None or seconds <= 0:
      problem = f"no estimate of time: the compiler's seconds for {topology} are {costs}"
      seconds = None
  if flops_per_step is not None and seconds:
    peak = tpu_compile.CHIPS[topology.split(":", 1)[0]].peak_flops
    utilisation = flops_per_step / (seconds * len(devices) * peak)
  return TopologyReport(
    chips=len(devices),
    hosts=len({d.process_index for d in devices}),
    fits=memory.fits,
    hbm_bytes_per_chip=memory.needed,
    hbm_limit_bytes=memory.limit,
    estimated_step_seconds=seconds,
    estimated_utilization=utilisation,
    collective_bytes={} if compiled is None else collective_bytes(compiled.as_text()),
    problem=problem,
    seconds_to_compile=time.monotonic() - started,
  )


def _with(model: Any, **fields: Any) -> Any:
  """The model with other fields of its module."""
  model = copy.copy(model)
  model.module = model.module.clone(**fields)
  return model


def _timed(model: Any, parts: int) -> dict[str, Any]:
  """What is compiled for the estimate of time, by a name for people: no loop may hide a cost in it."""
  if hasattr(model.module, "num_layers"):
    return {
      f"a step of {layers} layers": _with(model, num_layers=layers, scan_layers=False)
      for layers in _SHALLOW
    }
  return {"a step of one microbatch": model} if parts > 1 else {}


def _extrapolated(model: Any, costs: Sequence[float]) -> float:
  """Seconds of all layers."""
  if len(costs) == 1:
    return costs[0]
  less, more = _SHALLOW
  return costs[0] + (model.module.num_layers - less) / (more - less) * (costs[1] - costs[0])


def _part(batch: Mapping[str, Any], parts: int) -> dict[str, Any]:
  """Shapes of a microbatch."""
  return {n: type(s)((s.shape[0] // parts, *s.shape[1:]), s.dtype) for n, s in batch.items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
  """One remat policy at one size of the batch.

  Attributes:
    remat: of the module: "none", "dots" or "full" of a stage, False or True of a tokenizer.
    batch_size: rows a step.
    report: None where it was left out because fewer rows did not fit already.
  """

  remat: str | bool
  batch_size: int
  report: TopologyReport | None

  @property
  def fits(self) -> bool:
    return self.report is not None and self.report.fits

  @property
  def rows_per_second(self) -> float:
    """Estimated; 0 where it does not fit."""
    if not self.fits or self.report is None or not self.report.estimated_step_seconds:
      return 0.0
    return self.batch_size / self.report.estimated_step_seconds


def search(
  model: Any,
  *,
  batch_sizes: Sequence[int],
  try_one: Callable[[Any, int], TopologyReport],
) -> Iterator[Variant]:
  """Every remat policy at every size of the batch, fewest rows first.

  A policy that does not fit is not tried with more rows.

  Args:
    model: its module has a field `remat`.
    batch_sizes: rows a step.
    try_one: (model, rows) -> report.
  """
  policies = (False, True) if isinstance(model.module.remat, bool) else ("none", "dots", "full")
  refused: set[str | bool] = set()
  for rows in sorted(batch_sizes):
    for remat in policies:
      found = None if remat in refused else try_one(_with(model, remat=remat), rows)
      if found is None or not found.fits:
        refused.add(remat)
      yield Variant(remat=remat, batch_size=rows, report=found)


def recommended(variants: Sequence[Variant]) -> Variant | None:
  """The variant of most rows a second; of those within 1% of it, what needs the least memory. None if nothing fits."""
  most = max((v.rows_per_second for v in variants), default=0.0)
  close = [v for v in variants if v.fits and v.rows_per_second >= 0.99 * most]

  def memory(variant: Variant) -> int:
    return (variant.report.hbm_bytes_per_chip if variant.report else None) or 0

  return min(close, key=memory, default=None)
