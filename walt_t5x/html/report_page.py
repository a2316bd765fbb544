"""The report: scores, samples, and for each run its curves, data, checkpoints, plan and configuration."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from walt_t5x.html.curve_chart import chart, grouped
from walt_t5x.html.page import data_uri, write_page
from walt_t5x.html.report_inputs import RunFolder, ScoreRow

# Quantities whose curves are visible on the page; the others are collapsed below them.
_QUALITY = ("loss", "loss_video", "loss_image", "psnr", "ssim", "mse", "gradient_norm")
_SHOWN = (*_QUALITY, "learning_rate", "steps_per_second", "data_wait_share", "goodput/share")


def write_report(
  path: Path,
  *,
  title: str,
  runs: Sequence[RunFolder],
  plans: Mapping[str, Mapping[str, Any] | str],
  scores: Sequence[ScoreRow],
  samples: Sequence[Any],
) -> Path:
  """Writes the page atomically.

  Args:
    path: ends in .html, else ValueError.
    title: heading and window title.
    runs: runs in order of appearance.
    plans: run name -> figures of `walt_t5x.plan`, or the reason why there are none.
    scores: scores of all sample folders.
    samples: `generation.sample_folder.StoredSample`s to show.
  """
  return write_page(
    path,
    "report",
    title=title,
    runs=[_run(run, plans.get(run.name, "not planned")) for run in runs],
    scores=[dataclasses.astuple(score) for score in scores],
    samples=map(_sample, samples),
  )


def _medium(sample: Any, stage: str) -> dict[str, str]:
  """A stage's files as one element: a video, an animation, or the first of the PNG frames."""
  entry, best = sample.sidecar["stages"][stage], sample.files[stage]
  files = {name: best.parent / file for name, file in entry.get("files", {}).items()}
  files = files or {best.suffix[1:]: best}
  for name, tag in (("mp4", "video"), ("webm", "video"), ("gif", "image")):
    if name in files:
      return {"label": stage, tag: data_uri(f"{tag}/{name}", files[name].read_bytes())}
  first = min(files["png"].glob("*.png"))
  return {"label": f"{stage}, first frame", "image": data_uri("image/png", first.read_bytes())}


def _sample(sample: Any) -> dict[str, Any]:
  stages = sample.sidecar["stages"]
  return {
    "prompt": sample.prompt,
    "number": sample.index,
    "seed": sample.sidecar.get("seed"),
    "stages": [
      {
        "name": stage,
        "size": "x".join(map(str, stages[stage]["shape"][:3])),
        "fps": sample.sidecar["fps"],
        "file": file.name,
        "medium": _medium(sample, stage),
        "verdict": sample.verdict.get(stage, {}),
      }
      for stage, file in sample.files.items()
    ],
  }


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


def _provenance(provenance: Mapping[str, Any]) -> list[tuple[str, object]]:
  rows: list[tuple[str, object]] = []
  for name, value in sorted(provenance.items()):
    if name == "latents":
      rows += [
        (
          f"normalization of {field}",
          f"{entry.get('channels')} channels, {entry.get('count', '?')} values",
        )
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
    "provenance": _provenance(run.provenance),
    "shown": [chart(name, charts[name]) for name in _SHOWN if name in charts],
    "hidden": [chart(name, charts[name]) for name in sorted(charts.keys() - _SHOWN)],
    "config": run.config,
  }
