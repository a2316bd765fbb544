"""Opens the page of a curated corpus in headless Chromium, tries thresholds, and compares its counts with the job's.

  pip install playwright            # the driver; the browser is the system's
  python -m beam_jobs.curate --manifest=VIDEOS --output=curated --filter='seconds>=2' --filter='motion>=0.005'
  python -m benchmarks.browser_curation --curated=curated --screenshots=curated

The flags that the page shows are given to `python -m beam_jobs.curate`, as a user would copy them, for a copy of the
folder. Prints each check with the observed value, writes browser_curation.json next to this file, and fails if a check
fails.
"""

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.browser import CHROMIUM, Report

ROOT = Path(__file__).resolve().parents[1]
_WIDTHS = (1400, 700)
# Of all histograms: name, x of the visible lines with their labels, and the color of each bar's middle.
_HISTOGRAMS = """[...document.querySelectorAll('.score')].map((panel) => ({
  name: panel.querySelector('h3').textContent,
  low: Number(panel.dataset.low), high: Number(panel.dataset.high),
  left: Number(panel.querySelector('.base').getAttribute('x1')),
  right: Number(panel.querySelector('.base').getAttribute('x2')),
  marks: [...panel.querySelectorAll('.mark')].filter((mark) => mark.style.display !== 'none')
    .map((mark) => [Number(mark.querySelector('line').getAttribute('x1')), mark.textContent]),
  fails: [...panel.querySelectorAll('clipPath rect')]
    .map((rect) => ["x", "width"].map((at) => Number(rect.getAttribute(at)))),
}))"""


def refiltered(python: str, folder: Path, flags: list[str]) -> dict[str, Any]:
  """What the job prints with these flags for a copy of the folder."""
  with tempfile.TemporaryDirectory() as copy:
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    command = [python, "-m", "beam_jobs.curate", f"--output={copy}"]
    done = subprocess.run(
      [*command, "--page_clips=0", *flags], cwd=ROOT, check=True, capture_output=True, text=True
    )
  return json.loads(done.stdout.splitlines()[-1])


def check_counts(page: Any, name: str, folder: Path, python: str, report: Report) -> None:
  """Compares the clips and seconds on the page with what the job makes with the flags on the page."""
  flags = page.locator("#copyflags").get_attribute("data-text")
  printed = refiltered(python, folder, shlex.split(flags))
  expected = f"{printed['clips']:,} clips, {printed['seconds_in_clips']:,.1f} s"
  shown = page.locator("#result").inner_text()
  report.check(f"{name}: counts are those of {flags}", shown == expected, f"{shown}; {expected}")


def check_lines(page: Any, name: str, report: Report) -> None:
  """Checks that each line is at its threshold, or at the edge that is closest to it, and colors change there."""
  wrong, lines = [], 0
  for found in page.evaluate(_HISTOGRAMS):
    for x, label in found["marks"]:
      op, value = re.findall(r"([<>=!]+) (\S+)", label)[0]
      share = (float(value) - found["low"]) / (found["high"] - found["low"])
      width = found["right"] - found["left"]
      expected = found["left"] + width * min(1.0, max(0.0, share))
      edges = [edge for begin, size in found["fails"] if size for edge in (begin, begin + size)]
      lines += 1
      if abs(x - expected) > 0.5 or x not in edges:
        wrong.append(f"{found['name']} {op} {value}")
  report.check(f"{name}: lines are at thresholds", lines > 0 and not wrong, f"{lines} {wrong}")


def middle_bar(panel: Any) -> str:
  """Where the middle one of a histogram's bars begins."""
  bars = panel.locator(".bars title").all_text_contents()
  return bars[len(bars) // 2].split()[0]


def check_trials(page: Any, folder: Path, python: str, report: Report) -> None:
  """Moves, adds and removes thresholds like a user, and restores them."""
  first = page.locator("#result").inner_text()
  check_counts(page, "first", folder, python, report)
  check_lines(page, "first", report)
  fields = page.locator(".score").first.locator("input")
  field, before = fields.first, fields.first.input_value()
  field.fill(middle_bar(page.locator(".score").first))
  shown = page.locator("#result").inner_text()
  report.check("moved: the counts change", shown != first, f"{first}; {shown}")
  check_counts(page, "moved", folder, python, report)
  check_lines(page, "moved", report)
  # Another score, whose values differ.
  others = page.locator(".score:not(.wide)").all()
  blank = max(others, key=lambda panel: panel.locator(".bars title").count())
  blank.locator("select").select_option("<=")
  blank.locator("input").fill(middle_bar(blank))
  check_counts(page, "added", folder, python, report)
  check_lines(page, "added", report)
  blank.locator("select").select_option(">")
  check_counts(page, "reversed", folder, python, report)
  field.fill("")
  check_counts(page, "removed", folder, python, report)
  field.fill("1e9")
  check_counts(page, "none left", folder, python, report)
  page.locator("#reset").click()
  shown = page.locator("#result").inner_text()
  report.check(
    "reset: all is as before",
    (shown, field.input_value(), blank.locator("input").input_value()) == (first, before, ""),
    shown,
  )


def check_keys(page: Any, report: Report) -> None:
  """Reaches every field by the tab key, and steps a number by an arrow."""
  page.evaluate("document.activeElement.blur()")
  wanted = page.locator(".rule select, .rule input").count()
  focused = """(() => {
    const fields = [...document.querySelectorAll('.rule select, .rule input')];
    const at = fields.indexOf(document.activeElement), box = document.activeElement.getBoundingClientRect();
    const top = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
    return [at, getComputedStyle(document.activeElement).outlineStyle, document.activeElement.contains(top)];
  })()"""
  reached, hidden = [], []
  # Buttons, and flags that scroll, come before the fields.
  for _ in range(wanted + 5):
    if wanted - 1 in reached:
      break
    page.keyboard.press("Tab")
    at, outline, on_top = page.evaluate(focused)
    if at >= 0:
      reached.append(at)
      hidden += [at] if outline == "none" or not on_top else []
  report.check("tab reaches every field in order", reached == list(range(wanted)), len(reached))
  report.check("a focused field is visible", not hidden, hidden or "yes")
  field = page.locator(".score").first.locator("input").first
  before = float(field.input_value())
  field.press("ArrowUp")
  after, high = float(field.input_value()), page.evaluate(_HISTOGRAMS)[0]["high"]
  report.check("an arrow steps a threshold", before < after <= before + high / 10, after)
  page.locator("#reset").click()


def check_pictures(page: Any, report: Report) -> None:
  """Checks that each clip has a picture or a reason, and that the shown ones are images."""
  page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
  state = page.evaluate("""[...document.querySelectorAll('.thumb')].map((thumb) => {
    const image = thumb.querySelector('img'), box = thumb.getBoundingClientRect();
    return [image ? image.naturalHeight === 96 : thumb.querySelector('.missing').textContent !== '',
      thumb.scrollWidth <= Math.ceil(box.width)];
  })""")
  report.check(
    "every clip has a picture or a reason", bool(state) and all(s[0] for s in state), len(state)
  )
  report.check("no text is wider than its clip", all(s[1] for s in state), len(state))


def main() -> None:
  """Opens the page, runs the checks and writes the results."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--curated", type=Path, required=True, help="--output of beam_jobs.curate")
  parser.add_argument("--screenshots", type=Path, required=True, help="folder")
  parser.add_argument("--python", default=sys.executable, help="the interpreter that runs the job")
  parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
  parser.add_argument("--chromium", default=CHROMIUM)
  args = parser.parse_args()
  from playwright.sync_api import sync_playwright

  report, said, asked = Report(), [], []
  address = (args.curated / "page.html").resolve().as_uri()
  with sync_playwright() as driver:
    browser = driver.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
    version = browser.version
    for width in _WIDTHS:
      page = browser.new_page(viewport={"width": width, "height": 1000})
      page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
      page.on("pageerror", lambda error: said.append(f"error: {error}"))
      page.on("request", lambda request: asked.append(request.url[:80]))
      page.goto(address)
      scrolled = page.evaluate("document.documentElement.scrollWidth")
      report.check(f"{width} pixels: no sideways scrolling", scrolled <= width, scrolled)
      check_keys(page, report)
      check_pictures(page, report)
      if width == _WIDTHS[0]:
        check_trials(page, args.curated, args.python, report)
      page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
      page.screenshot(path=args.screenshots / f"curation_{width}.png", full_page=True)
    browser.close()
  report.check("the console has no messages", not said, said[:3] or "nothing")
  others = [url for url in asked if url != address and not url.startswith("data:")]
  report.check("no requests except the page", not others, others[:3] or f"{len(asked)} requests")
  report.finish(args.output, version)


if __name__ == "__main__":
  main()
