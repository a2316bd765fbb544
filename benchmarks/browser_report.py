"""Opens a report page in headless Chromium, compares its contents with the folders, and takes a screenshot.

  pip install playwright            # the driver; the browser is the system's
  python -m benchmarks.browser_report --folder=runs/quickstart

reads FOLDER/report.html, written by `scripts/quickstart.sh`, and the runs and scores that it shows. Prints each check
with the observed value, writes browser_report.json next to this file and docs/report.png, and fails if a check fails.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

from benchmarks.browser import CHROMIUM, Report

ROOT = Path(__file__).resolve().parents[1]
# Bounding boxes of all curves, in pixels of their charts.
_CURVES = """[...document.querySelectorAll('.chart')].map((chart) => {
  const box = chart.querySelector('svg').getBoundingClientRect();
  const lines = [...chart.querySelectorAll('.curve')];
  return {title: chart.querySelector('b').textContent, width: box.width,
    lines: lines.map((line) => [line.tagName, line.getBBox().width, line.getBBox().height,
      line.getAttribute('points') ? line.getAttribute('points').split(' ').length : 1,
      getComputedStyle(line)[line.tagName === 'circle' ? 'fill' : 'stroke']])};
})"""
_TABLES = """[...document.querySelectorAll('table')].map((table) => ({
  head: [...table.querySelectorAll('th')].map((cell) => cell.textContent),
  rows: [...table.querySelectorAll('tbody tr')].map((row) => [...row.cells].map((cell) => cell.textContent)),
}))"""


def points_of(run: Path, metric: str) -> int:
  """Number of steps for which a run logged a finite value."""
  steps = set()
  for line in (run / "metrics.jsonl").open(encoding="utf-8"):
    values = json.loads(line)
    if isinstance(values.get(metric), int | float) and math.isfinite(values[metric]):
      steps.add(values["step"])
  return len(steps)


def check_curves(page: Any, runs: list[Path], report: Report) -> None:
  """Checks that every chart has a line with as many points as the run has values."""
  charts = page.evaluate(_CURVES)
  flat = [
    c["title"] for c in charts if not any(line[1] > 0 or line[0] == "circle" for line in c["lines"])
  ]
  lines = sum(len(c["lines"]) for c in charts)
  report.check(
    "curves: every chart has a line",
    bool(charts) and not flat,
    f"{len(charts)} charts, {lines} lines {flat}",
  )
  unseen = [
    c["title"] for c in charts for line in c["lines"] if line[4] in ("none", "rgba(0, 0, 0, 0)")
  ]
  report.check("curves: every line has a color", not unseen, unseen or "yes")
  losses = [c for c in charts if c["title"] == "loss"]
  drawn = [max(line[3] for line in c["lines"]) for c in losses]
  wanted = [points_of(run, "loss") for run in runs]
  report.check(
    "curves: the loss of each run has its points",
    drawn == wanted and min(wanted) > 1,
    f"{drawn}, in metrics.jsonl {wanted}",
  )


def check_values(page: Any, run: Path, report: Report) -> None:
  """Checks the names of the axes, and the values that the pointer and the arrow keys show."""
  chart = page.locator(".chart").first
  axes = chart.locator(".axis").all_text_contents()
  title = chart.locator("b").inner_text()
  report.check("curves: the axes have names", axes == ["step", title], axes)
  lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
  logged = [v for v in map(json.loads, lines) if isinstance(v.get(title), int | float)]
  svg, said = chart.locator("svg"), chart.locator("figcaption")
  svg.scroll_into_view_if_needed()
  box = svg.bounding_box()
  # The first value is at the left end of the line.
  left = chart.locator(".curve").first.bounding_box()["x"]
  page.mouse.move(left, box["y"] + box["height"] / 2)
  texts = said.all_inner_texts()
  step, value = f"step {logged[0]['step']:,}", f"{logged[0][title]:.4g}"
  report.check(
    "curves: the pointer shows step and value", step in texts[0] and value in texts[1], texts
  )
  page.mouse.move(0, 0)
  svg.focus()
  page.keyboard.press("ArrowLeft")
  texts = said.all_inner_texts()
  report.check("curves: the arrows too", f"step {logged[-1]['step']:,}" in texts[0], texts)
  svg.blur()


def check_width(page: Any, report: Report) -> None:
  """Checks that a narrow page neither scrolls sideways nor breaks a score within a word."""
  page.set_viewport_size({"width": 700, "height": 1000})
  broken = """[...document.querySelectorAll('.scores td, .scores th')].filter((cell) => {
    const words = document.createRange(), text = cell.firstChild;
    return text && [...text.data.matchAll(/\\S+/g)].some((word) => {
      words.setStart(text, word.index);
      words.setEnd(text, word.index + word[0].length);
      return words.getClientRects().length > 1;
    });
  }).map((cell) => cell.textContent)"""
  found, width = (page.evaluate(text) for text in (broken, "document.documentElement.scrollWidth"))
  report.check("700 pixels: no word of a score is broken", not found, found or "none")
  report.check("700 pixels: the page does not scroll sideways", width <= 700, width)
  page.set_viewport_size({"width": 1280, "height": 1000})


def check_tables(page: Any, runs: list[Path], samples: Path, report: Report) -> None:
  """Checks scores with hashes, and the plan, checkpoints and fingerprints of each run."""
  tables = page.evaluate(_TABLES)
  scores = [t for t in tables if "counts" in t["head"]]
  wanted = set()
  for file in samples.glob("scores*.json"):
    result = json.loads(file.read_text(encoding="utf-8"))
    wanted.add(f"{result['protocol']}@{result['protocol_hash']}")
  found = set(page.locator(".scores h3").all_inner_texts())
  report.check(
    "scores: each protocol with its hash", bool(wanted) and found == wanted, sorted(found)
  )
  empty = [row for t in scores for row in t["rows"] if not (row[-1].strip() and any(row[1:-1]))]
  folders = [text for text in page.locator(".scores .note").all_inner_texts() if text.strip()]
  report.check(
    "scores: each has value, counts and folder",
    len(folders) == len(scores) > 0 and not empty,
    f"{sum(len(t['rows']) for t in scores)} lines {empty}",
  )
  facts = [dict(row[:2] for row in t["rows"]) for t in tables if t["head"][:1] == ["run"]]
  report.check(
    "runs: each has a table", len(facts) == len(runs), [f.get("newest step") for f in facts]
  )
  # model.json of a tokenizer has no losses, which are a part of its step.
  plans = [f.get("training FLOPs per step") or f.get("plan", "none") for f in facts]
  report.check(
    "runs: each has its plan, or names the command that prints it",
    all("walt_t5x.plan" in x or float(x) > 0 for x in plans) and sum("e+" in x for x in plans) > 1,
    plans,
  )
  complete = [
    [k for k, v in f.items() if k.startswith("checkpoint") and v == "complete"] for f in facts
  ]
  report.check("runs: each has a complete checkpoint", all(complete), [x[-1:] for x in complete])
  shown = page.locator("body").inner_text()
  prints, missing = 0, []
  for run in runs:
    provenance = json.loads((run / "provenance.json").read_text(encoding="utf-8"))
    for part in ("vae", "text_encoder"):
      if fingerprint := (provenance.get(part) or {}).get("fingerprint"):
        prints += 1
        if fingerprint not in shown:
          missing.append(f"{run.name}: {part}")
  report.check(
    "runs: fingerprints of the encoders of their data",
    prints > 0 and not missing,
    f"{prints} shown {missing}",
  )


def check_samples(page: Any, report: Report) -> None:
  """Checks that clips play once they are scrolled into view."""
  count = page.locator("video").count()
  page.locator("#samples").scroll_into_view_if_needed()
  playing = "[...document.querySelectorAll('video')].map((v) => [v.readyState, v.currentTime, v.videoWidth, v.error])"
  # The page's security policy does not allow `wait_for_function`.
  deadline = time.monotonic() + 120
  for index in range(count):
    page.locator("video").nth(index).scroll_into_view_if_needed()
    while not page.evaluate(playing)[index][1] and time.monotonic() < deadline:
      page.wait_for_timeout(50)
  state = page.evaluate(playing)
  wrong = [s for s in state if s[0] < 2 or not s[1] or not s[2] or s[3]]
  report.check(
    "samples: every clip plays once it is in view",
    count > 0 and not wrong,
    f"{count} players {wrong}",
  )


def main() -> None:
  """Opens the page, runs the checks and writes the results."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--folder", type=Path, required=True, help="output folder of `scripts/quickstart.sh`"
  )
  parser.add_argument(
    "--runs", default="vae,base,sr1", help="folders of the runs on the page, in order"
  )
  parser.add_argument("--screenshot", type=Path, default=ROOT / "docs/report.png")
  parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
  parser.add_argument("--chromium", default=CHROMIUM)
  args = parser.parse_args()
  from playwright.sync_api import sync_playwright

  report, said, asked = Report(), [], []
  runs = [args.folder / name for name in args.runs.split(",")]
  with sync_playwright() as driver:
    browser = driver.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
    version = browser.version
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on("request", lambda request: asked.append(request.url[:80]))
    address = (args.folder / "report.html").resolve().as_uri()
    page.goto(address)
    check_curves(page, runs, report)
    check_values(page, runs[0], report)
    check_width(page, report)
    check_tables(page, runs, args.folder / "samples", report)
    check_samples(page, report)
    for summary in page.locator("summary").all():
      summary.click()
    opened = page.locator("details[open]").count()
    report.check(
      "further curves and configurations open",
      opened == page.locator("details").count() > 0,
      f"{opened} opened",
    )
    for summary in page.locator("summary").all():
      summary.click()
    report.check("the console has no messages", not said, said[:3] or "nothing")
    others = [url for url in asked if url != address and not url.startswith("data:")]
    report.check("no requests except the page", not others, others[:3] or f"{len(asked)} requests")
    page.evaluate("window.scrollTo(0, 0)")
    page.wait_for_timeout(300)
    page.screenshot(path=args.screenshot)
    browser.close()
  report.finish(args.output, version)


if __name__ == "__main__":
  main()
