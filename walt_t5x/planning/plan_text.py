"""Formats the figures of `python -m walt_t5x.plan`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

GIB = 1024**3


def table(plan: Any) -> str:
  """All figures of one `run_plan.Plan`."""
  lines = [f"{'part':<34} {'parameters':>15}  share"]
  for name, count in sorted(plan.parameters_by_module.items(), key=lambda item: -item[1]):
    lines.append(f"{name:<34} {count:>15,}  {count / plan.parameters:6.1%}")
  lines += [f"{'total':<34} {plan.parameters:>15,}", ""]
  figures = _step_figures(plan)
  if plan.steps:
    figures["steps"] = f"{plan.steps:,}"
    figures["training FLOPs of the run"] = f"{plan.steps * plan.train_flops_per_step:.4g}"
  figures["bytes per example, host to device"] = f"{plan.bytes_per_row:,}"
  figures |= {f"bytes per record of {kind}": f"{n:,}" for kind, n in plan.record_bytes.items()}
  lines += [f"{name:<34} {value:>15}" for name, value in figures.items()]
  if plan.corpus_bytes:
    lines.append(f"{'corpus':<34} {plan.corpus_bytes / 1e12:>15.3f} TB")
  for name, report in plan.topologies.items():
    lines += ["", *topology_lines(name, report, plan)]
  return "\n".join(lines)


def _step_figures(plan: Any) -> dict[str, str]:
  return {
    "tokens per example": f"{plan.tokens_per_row:,}",
    "batch size": f"{plan.batch_size:,}",
    "training FLOPs per step": f"{plan.train_flops_per_step:.4g}",
  }


def topology_lines(name: str, report: Mapping[str, Any], plan: Any) -> list[str]:
  """The TPU compiler's estimates for a slice; if the step does not fit, by how much and what to set.

  Args:
    name: name of the slice.
    report: a `tpu_report.TopologyReport` as a dict.
    plan: the run's other figures.
  """
  limit, needed = report["hbm_limit_bytes"], report["hbm_bytes_per_chip"]
  lines = [f"{name}: estimated by the TPU compiler, not measured"]
  if not report["fits"]:
    wants = "more" if needed is None else f"{needed / GIB:.1f} GiB, more"
    by = "" if needed is None else f": {(needed - limit) / GIB:.1f} GiB too much"
    lines.append(
      f"  DOES NOT FIT: the training step of {plan.batch_size:,} examples needs {wants} than the "
      f"{limit / GIB:.2f} GiB of a chip of {name}{by}"
    )
    if needed is None and report["problem"]:
      lines.append(f"  compiler message: {report['problem']}")
    return lines + [f"  try: {advice}" for advice in plan.memory_advice]

  def add(name: str, value: str, unit: str = "") -> None:
    lines.append(f"  {name:<32} {value:>15} {unit}".rstrip())

  add("memory per chip", f"{needed / GIB:.1f}", f"GiB of {limit / GIB:.0f}: fits")
  if seconds := report["estimated_step_seconds"]:
    rows, hosts = plan.batch_size / seconds, report["hosts"]
    add("step", f"{seconds:.3f}", "s")
    add("examples per second", f"{rows:.1f}")
    if plan.steps:
      add(f"the {plan.steps:,} steps of the run", *_duration(seconds * plan.steps))
    megabytes = rows * plan.bytes_per_row / 1e6
    each = f"MB/s: {megabytes / hosts:.1f} from each of {hosts}"
    add("input, all hosts", f"{megabytes:.1f}", each)
  elif report["problem"]:
    lines.append(f"  {report['problem']}")
  if utilization := report["estimated_utilization"]:
    add("model FLOPs utilization", f"{utilization:.1%}")
  for kind, count in sorted(report["collective_bytes"].items()):
    add(f"{kind} per step and chip", f"{count / GIB:.2f}", "GiB")
  return lines


def _duration(seconds: float) -> tuple[str, str]:
  """A number and its unit, the largest of which there is at least one."""
  for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
    if seconds >= size:
      return f"{seconds / size:.1f}", unit
  return f"{seconds:.1f}", "s"


def memory_advice(
  *,
  remat: str | bool,
  remat_name: str,
  batch_size: int,
  num_microbatches: int,
  fully_sharded: bool,
) -> list[str]:
  """Flags that reduce the memory of a step, cheapest first, from the run's settings; `remat_name` is remat in gin."""
  found = []
  if remat not in ("full", True):
    value = True if isinstance(remat, bool) else "\"'full'\""
    found.append(
      f"--gin.{remat_name}={value} recomputes activations in the backward pass (now {remat!r})"
    )
  if batch_size % (2 * num_microbatches) == 0:
    found.append(
      f"--gin.NUM_MICROBATCHES={2 * num_microbatches} holds fewer activations at a time, with the same gradient"
    )
  if not fully_sharded:
    found.append(
      "include 'gin/runs/fully_sharded.gin' splits parameters and optimizer over the chips"
    )
  found.append("--topology of a slice with more chips, or with more memory per chip (v5p: 95 GiB)")
  if batch_size > 1:
    found.append(f"--batch_size={batch_size // 2}: differs from the published run")
  return found


def comparison(plans: Mapping[str, Any]) -> str:
  """The figures of several files next to each other, from plans by the name of the file."""
  columns = []
  for file, plan in plans.items():
    column = {"": Path(file).stem, "parameters": f"{plan.parameters:,}"} | _step_figures(plan)
    for name, report in plan.topologies.items():
      column[f"{name}: memory per chip, GiB"] = _memory(report)
      column[f"{name}: step, s (estimated)"] = figure(report["estimated_step_seconds"], ".3f")
      column[f"{name}: model FLOPs utilization"] = figure(report["estimated_utilization"], ".1%")
    columns.append(column)
  return "\n".join(
    f"{name:<44}" + "".join(f"{column[name]:>24}" for column in columns) for name in columns[0]
  )


def search_table(name: str, variants: Sequence[Any], best: Any) -> str:
  """The `tpu_report.Variant`s that `--search` tried on the slice `name`, and the best, if any."""
  lines = [
    f"{name}: estimated by the TPU compiler, not measured",
    f"{'batch':>8} {'remat':>8} {'GiB per chip':>22} {'step, s':>10} {'examples/s':>14} {'utilization':>12}",
  ]
  for v in variants:
    if v.report is None:
      lines.append(f"{v.batch_size:>8,} {v.remat!s:>8} {'not tried: see above':>22}")
      continue
    report = vars(v.report)
    lines.append(
      f"{v.batch_size:>8,} {v.remat!s:>8} {_memory(report):>22} "
      f"{figure(v.report.estimated_step_seconds, '.3f'):>10} {v.rows_per_second:>14.1f} "
      f"{figure(v.report.estimated_utilization, '.1%'):>12}"
    )
  if best is None:
    lines.append("nothing fits: reduce --batch_size, or set NUM_MICROBATCHES or a larger slice")
  else:
    lines.append(
      f"recommended: remat = {best.remat!r} with batch size {best.batch_size:,}, the most examples per second"
    )
  return "\n".join(lines)


def _memory(report: Mapping[str, Any]) -> str:
  size = report["hbm_bytes_per_chip"]
  shown = "more than available" if size is None else f"{size / GIB:.1f}"
  return shown if report["fits"] else f"{shown}, does not fit"


def figure(value: float | None, style: str) -> str:
  """The value in a format, or a dash."""
  return "-" if value is None else format(value, style)
