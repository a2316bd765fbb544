"""The report: scores, samples, and for each run its curves, data, checkpoints, plan and configuration."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from walt_t5x.engine.goodput import Account
from walt_t5x.files.paths import AnyPath
from walt_t5x.html.curve_chart import chart, grouped
from walt_t5x.html.gallery import GalleryItem, card
from walt_t5x.html.page import write_page
from walt_t5x.html.report_inputs import RunFolder, ScoreRow

# Quantities whose curves are visible on the page; the others are collapsed below them.
_QUALITY = ("loss", "loss_video", "loss_image", "psnr", "ssim", "mse", "gradient_norm")
_SHOWN = (
  *_QUALITY,
  "learning_rate",
  "steps_per_second",
  "data_wait_share",
  "goodput/share",
  "goodput/job_share",
)


def write_report(
  path: AnyPath,
  *,
  title: str,
  runs: Sequence[RunFolder],
  plans: Mapping[str, Mapping[str, Any] | str],
  scores: Sequence[ScoreRow],
  samples: Iterable[GalleryItem],
) -> AnyPath:
  """Writes the page atomically.

  Args:
    path: ends in .html, else ValueError.
    title: heading and window title.
    runs: runs in order of appearance.
    plans: run name -> figures of `walt_t5x.plan`, or the reason why there are none.
    scores: scores of all sample folders.
    samples: cards of samples; an iterator is consumed one at a time.
  """
  return write_page(
    path,
    "report",
    title=title,
    runs=[_run(run, plans.get(run.name, "not planned")) for run in runs],
    scores=_score_tables(scores),
    cards=map(card, samples),
  )


def _score_tables(scores: Sequence[ScoreRow]) -> list[dict[str, Any]]:
  """One table per protocol, folder and network: a line for each stage, a column for each score."""
  tables: dict[tuple[str, ...], dict[str, dict[str, str]]] = {}
  for score in scores:
    stage, _, name = score.name.rpartition(": ")
    table = tables.setdefault((score.protocol, score.samples, score.network), {})
    # "3 of 4" stays on one line.
    value = score.value.replace(" of ", "\u00a0of\u00a0")
    table.setdefault(stage, {"stage": stage})[name] = value
    table[stage]["counts"] = score.counts
  found = []
  for (protocol, samples, network), stages in tables.items():
    names = dict.fromkeys(name for line in stages.values() for name in line)
    head = [name for name in names if name != "counts" and (name != "stage" or any(stages))]
    head.append("counts")
    rows = [[line.get(name, "") for name in head] for line in stages.values()]
    found.append(
      {"protocol": protocol, "samples": samples, "network": network, "head": head, "rows": rows}
    )
  return found


def _facts(run: RunFolder, plan: Mapping[str, Any] | str) -> list[tuple[str, object]]:
  rows: list[tuple[str, object]] = [("folder", run.path), ("newest step", f"{run.last_step:,}")]
  if isinstance(plan, str):
    rows.append(("plan", plan))
  else:
    rows += [
      ("parameters", f"{plan['parameters']:,}"),
      ("tokens per example", f"{plan['tokens_per_row']:,}"),
      ("batch size", f"{plan['batch_size']:,}"),
      ("training FLOPs per step", f"{plan['train_flops_per_step']:.4g}"),
    ]
    if plan.get("steps"):
      total = plan["steps"] * plan["train_flops_per_step"]
      rows.append(("training FLOPs of the run", f"{total:.4g} in {plan['steps']:,} steps"))
  for step, problem in run.checkpoints.items():
    rows.append((f"checkpoint {step:,}", problem or "complete"))
  if run.unreadable_lines:
    rows.append(("unreadable lines of metrics.jsonl", run.unreadable_lines))
  return rows


def _time(account: Account | None) -> list[tuple[str, str, str]]:
  """Where the time of a job went: name, seconds, share."""
  if account is None:
    return []
  parts = {"goodput": account.productive} | dict(account.badput)
  return [
    (name.replace("_", " "), f"{seconds:,.1f}", f"{seconds / max(account.elapsed, 1e-9):.1%}")
    for name, seconds in parts.items()
    if seconds
  ]


def _provenance(provenance: Mapping[str, Any]) -> list[tuple[str, object]]:
  rows: list[tuple[str, object]] = []
  for name, value in sorted(provenance.items()):
    if name == "latents":
      rows += [
        (f"normalization of {field}", f"{entry.get('channels')} channels")
        for field, entry in sorted(value.items())
      ]
    elif name == "null_text":
      rows.append(("null caption", f"{len(value.get('ids', ()))} tokens"))
    elif isinstance(value, Mapping):
      rows += [
        (f"{name}: {k}", json.dumps(v) if isinstance(v, (dict, list)) else v)
        for k, v in sorted(value.items())
      ]
    else:
      rows.append((name, value))
  return rows


def _run(run: RunFolder, plan: Mapping[str, Any] | str) -> dict[str, Any]:
  charts = grouped(run.curves)
  return {
    "name": run.name,
    "facts": _facts(run, plan),
    "time": _time(run.time),
    "provenance": _provenance(run.provenance),
    "shown": [chart(name, charts[name]) for name in _SHOWN if name in charts],
    "hidden": [chart(name, charts[name]) for name in sorted(charts.keys() - _SHOWN)],
    "config": run.config,
  }
