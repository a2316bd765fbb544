"""The tables of benchmarks/tpu_plan.md, from the results of benchmarks/tpu_plan.py."""

from collections.abc import Mapping
from typing import Any

GIB = 1024**3
_COLUMNS = (
  "gin file", "slice", "bindings", "batch size", "memory per chip, GiB", "step, s", "examples/s",
  "model operations / peak", "run, days", "input per host, MB/s",
  "collectives per step and chip, GiB", "seconds to plan", "libtpu", "date",
)  # fmt: skip


def lines(
  results: Mapping[str, Any], windows: Mapping[str, tuple[str, tuple[str, ...]]]
) -> list[str]:
  """All tables.

  Args:
    results: results by key.
    windows: rows of Table 3b: (gin file, bindings).
  """
  apart = {"pair", *(file for file, _ in windows.values())}
  stages = [r for key, r in results.items() if key.split(" ")[0] not in apart]
  found = [
    "# Estimates of the TPU compiler",
    "",
    "Written by `benchmarks/tpu_plan.py` from `benchmarks/tpu_plan.json`: estimates of the compiler's cost model, not",
    "measurements; nothing has run on a TPU. Memory and collectives are those of a complete step of the built-in",
    "engine, including the optimizer; seconds are extrapolated over depth from two and four unrolled layers, without",
    "the time spent waiting for collectives. A fused kernel counts with the operations and bytes that it declares.",
    "",
    *_table(_COLUMNS, [_stage(r) for r in stages]),
    "",
    "Steps and days of `gin/walt_3b_9x16.gin` include the base's 550,000 steps: the fine-tuning is 250,000 of its",
    "800,000. If a step does not fit, `plan` says what to set; the table is for the files without changes. The seconds",
    "of the tokenizer's step on v5e do not include the gradient penalty (`tpu_compile.estimated_seconds`).",
  ]
  return found + _windows(results, windows) + _pairs(results)


def _table(columns: tuple[str, ...], rows: list[list[str]]) -> list[str]:
  heading = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
  return heading + ["| " + " | ".join(row) + " |" for row in rows]


def _figure(value: float | None, style: str) -> str:
  return "-" if value is None else format(value, style)


def _stage(r: Mapping[str, Any]) -> list[str]:
  needed, limit = r["hbm_bytes_per_chip"], r["hbm_limit_bytes"] / GIB
  size = "more" if needed is None else f"{needed / GIB:.1f}"
  seconds = r["estimated_step_seconds"]
  rows = r["batch_size"] / seconds if seconds else None
  traffic = ", ".join(f"{k} {n / GIB:.1f}" for k, n in sorted(r["collective_bytes"].items()))
  return [
    f"`{r['gin_file']}`",
    r["slice"],
    ", ".join(f"`{binding.rsplit('.', 1)[-1]}`" for binding in r["bindings"]) or "-",
    f"{r['batch_size']:,}",
    f"{size} of {limit:.0f}: {'fits' if r['fits'] else '**does not fit**'}",
    _figure(seconds, ".3f"),
    _figure(rows, ",.0f"),
    _figure(r["estimated_utilization"], ".1%"),
    _figure(seconds * r["steps"] / 86400 if seconds and r["steps"] else None, ".1f"),
    _figure(rows * r["bytes_per_row"] / r["hosts"] / 1e6 if rows and "hosts" in r else None, ".1f"),
    traffic or "-",
    str(r["seconds_to_plan"]),
    r["libtpu"],
    r["date"],
  ]


def _windows(
  results: Mapping[str, Any], windows: Mapping[str, tuple[str, tuple[str, ...]]]
) -> list[str]:
  rows, seconds = [], {}
  for name, (file, bindings) in windows.items():
    for r in results.values():
      if r.get("gin_file") == f"gin/{file}.gin" and tuple(r["bindings"]) == bindings:
        seconds[name] = r["estimated_step_seconds"]
        rows.append([name, *_stage(r)[1:2], *_stage(r)[3:9]])
  if not rows:
    return []
  columns = ("attention", _COLUMNS[1], *_COLUMNS[3:9])
  found = ["", "## Windows compared with full attention (Table 3b), W.A.L.T-L", ""]
  found += [
    "`--windows`. The paper reports 2.00 and 1.20 steps per second, a ratio of 1.67.",
    "",
    *_table(columns, rows),
    "",
  ]
  full = seconds.get("full einsum")
  for name, value in seconds.items():
    if full and value and name != "full einsum":
      found.append(
        f"- {name} compared with full einsum: {full / value:.2f} times the steps per second."
      )
  return found


def _pairs(results: Mapping[str, Any]) -> list[str]:
  pairs = [r for key, r in results.items() if key.startswith("pair ")]
  if not pairs:
    return []
  rows = [
    [
      r["implementation"],
      f"{r['seconds']:.5f}",
      f"{r['bytes'] / 1e9:.1f}",
      f"{r['utilization_6nd']:.1%}",
    ]
    for r in pairs
  ]
  return [
    "",
    "## One pair of layers",
    "",
    "Width 2048, 16 heads, no text, forward and backward without remat, 10,240 tokens on a v5p chip (`--pair`):",
    "",
    *_table(("attention", "seconds", "GB of HBM traffic", "6ND / peak"), rows),
  ]
