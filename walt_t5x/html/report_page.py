"""The report's HTML: scores, samples, and for each run its curves, data, checkpoints, plan and configuration.

The page includes all its media and a content security policy blocks every request, so it opens from disk and can be
sent by mail.
"""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from walt_t5x.html.curve_chart import chart, grouped
from walt_t5x.html.embedded_media import data_uri
from walt_t5x.html.offline_page import PLAY_IN_VIEW, offline_page
from walt_t5x.html.run_folder import RunFolder
from walt_t5x.html.scores import ScoreRow

# Quantities whose curves are visible on the page; the others are collapsed below them.
_SHOWN = (
  "loss",
  "loss_video",
  "loss_image",
  "psnr",
  "ssim",
  "mse",
  "gradient_norm",
  "learning_rate",
)
_SHOWN += ("steps_per_second", "data_wait_share", "goodput/share")


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
    path: ends in .html.
    title: heading and window title.
    runs: runs in order of appearance.
    plans: run name -> figures of `walt_t5x.plan`, or the reason why there are none.
    scores: scores of all sample folders.
    samples: `generation.sample_folder.StoredSample`s to show.

  Raises:
    ValueError: the path has another suffix.
  """
  with offline_page(path, title=title, style=_STYLE) as page:
    page.write(f"<h1>{html.escape(title)}</h1>")
    links = "".join(f'<a href="#run{i}">{html.escape(run.name)}</a>' for i, run in enumerate(runs))
    page.write(f'<nav><a href="#scores">scores</a><a href="#samples">samples</a>{links}</nav>')
    page.write(f'<h2 id="scores">Scores</h2>{_scores(scores)}')
    page.write('<h2 id="samples">Samples</h2><div class="row">')
    for sample in samples:
      page.write(_sample(sample))
    page.write("</div>" if samples else '</div><p class="note">No sample folders were given.</p>')
    for index, run in enumerate(runs):
      page.write(_run(index, run, plans.get(run.name, "not planned")))
    page.write(f"<script>{PLAY_IN_VIEW}</script>")
  return path


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
  top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
  body = "".join(
    "<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
  )
  return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _scores(scores: Sequence[ScoreRow]) -> str:
  if not scores:
    return '<p class="note">No scores were found; <code>python -m walt_t5x.evaluate</code> writes them.</p>'
  head = ("protocol", "score", "value", "counts", "network", "judged")
  rows = [(s.protocol, s.name, s.value, s.counts, s.network, s.samples) for s in scores]
  note = "Scores are comparable only with the same protocol hash and network fingerprint."
  return f'{_table(head, rows)}<p class="note">{note}</p>'


def _medium(sample: Any, stage: str) -> str:
  """The HTML element for a stage's files: a video, an animation, or the first of the PNG frames."""
  entry, best = sample.sidecar["stages"][stage], sample.files[stage]
  files = {name: best.parent / file for name, file in entry.get("files", {}).items()}
  files = files or {best.suffix[1:]: best}
  label = html.escape(stage, quote=True)
  for name in ("mp4", "webm"):
    if name in files:
      source = data_uri(f"video/{name}", files[name].read_bytes())
      return f'<video src="{source}" loop muted playsinline aria-label="{label}"></video>'
  if "gif" in files:
    return f'<img src="{data_uri("image/gif", files["gif"].read_bytes())}" alt="{label}">'
  first = min(files["png"].glob("*.png"))
  return f'<img src="{data_uri("image/png", first.read_bytes())}" alt="{label}, first frame">'


def _sample(sample: Any) -> str:
  figures = []
  for stage in sample.files:
    size = "x".join(str(n) for n in sample.sidecar["stages"][stage]["shape"][:3])
    figures.append(
      f"<figure>{_medium(sample, stage)}<figcaption>{html.escape(stage)} {size}</figcaption></figure>"
    )
  facts = f"seed {sample.sidecar.get('seed')}"
  return (
    f'<article><h3>{html.escape(sample.prompt)}</h3><div class="row">{"".join(figures)}</div>'
    f'<p class="note">{html.escape(facts)}</p></article>'
  )


def _facts(run: RunFolder, plan: Mapping[str, Any] | str) -> str:
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
  for saved in run.checkpoints:
    rows.append((f"checkpoint {saved.step:,}", saved.problem or "complete"))
  if run.unreadable_lines:
    rows.append(("unreadable lines of metrics.jsonl", run.unreadable_lines))
  return _table(("run", ""), rows)


def _provenance(provenance: Mapping[str, Any]) -> str:
  if not provenance:
    return '<p class="note">The run recorded no provenance of its data.</p>'
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
  return _table(("data", ""), rows)


def _run(index: int, run: RunFolder, plan: Mapping[str, Any] | str) -> str:
  charts = grouped(run.curves)
  shown = [name for name in _SHOWN if name in charts]
  hidden = sorted(set(charts) - set(shown))
  drawn = "".join(chart(name, charts[name]) for name in shown)
  more = "".join(chart(name, charts[name]) for name in hidden)
  folded = (
    f'<details><summary>{len(hidden)} more curves</summary><div class="row">{more}</div></details>'
  )
  config = (
    f"<details><summary>configuration (gin)</summary><pre>{html.escape(run.config)}</pre></details>"
  )
  return (
    f'<h2 id="run{index}">{html.escape(run.name)}</h2><div class="row">{_facts(run, plan)}'
    f'{_provenance(run.provenance)}</div><div class="row">{drawn}</div>'
    f"{folded if hidden else ''}{config if run.config else ''}"
  )


_STYLE = """
:root { --line-1: #2f6fb5; --line-2: #c0562b; --line-3: #3a8a4d; --line-4: #8a4fae; }
@media (prefers-color-scheme: dark) {
  :root { --line-1: #7fb0e6; --line-2: #f0986f; --line-3: #79cf8d; --line-4: #c79be6; } }
nav a { margin-right: 14px; color: var(--line-1); }
th, td { overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 500; } td:first-child { overflow-wrap: normal; }
.row { margin-bottom: 14px; }
.chart { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 8px 12px; width: 366px; }
summary { color: var(--soft); font-size: 12px; }
.legend span { margin-right: 12px; } .legend i { display: inline-block; width: 10px; height: 10px;
  border-radius: 2px; margin-right: 4px; }
svg polyline { fill: none; stroke-width: 1.5; } svg .grid { stroke: var(--line); }
svg text { fill: var(--soft); font-size: 10px; }
video { height: 160px; }
pre { overflow: auto; font-size: 12px; background: var(--card); padding: 10px; }
"""
