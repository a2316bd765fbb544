"""Operates the gallery and the demo in headless Chromium like a user, and takes screenshots.

  pip install playwright            # the driver; the browser is the system's
  python -m walt_t5x.demo ... --port=7860 &
  python -m benchmarks.browser --gallery=samples/gallery.html --demo=http://127.0.0.1:7860 --screenshots=docs

--gallery takes any page with cards, also those of `report`, `inspect_data` and `compare_samples`.

With --picture, a demo with frame conditioning (gin/tiny/generate_frames.gin) also animates an image. Prints each check
with the observed value, writes browser.json next to this file, and fails if a check fails.
"""

import argparse
import base64
import json
import re
import time
from pathlib import Path
from urllib.parse import urlparse

CHROMIUM = "/usr/bin/chromium"


class Report:
  """Results of checks, in order."""

  def __init__(self):
    self.rows: list[dict] = []

  def check(self, name: str, holds: bool, seen: object) -> None:
    """Adds and prints one check."""
    shown = (str(seen).splitlines() or [""])[-1][:160]
    self.rows.append({"check": name, "holds": bool(holds), "seen": shown})
    print(f"{'ok  ' if holds else 'FAIL'} {name}: {shown}", flush=True)

  def wait(self, name: str, read, fits, *, seconds: float = 60) -> object:
    """Reads until the value fits."""
    deadline, value = time.monotonic() + seconds, read()
    while not fits(value) and time.monotonic() < deadline:
      time.sleep(0.05)
      value = read()
    self.check(name, fits(value), value)
    return value

  def finish(self, file: Path, version: str) -> None:
    """Writes the checks and the browser's version; exits with the checks that failed."""
    result = {"chromium": version, "checks": self.rows}
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    failed = [row["check"] for row in self.rows if not row["holds"]]
    print(f"Chromium {version}: {len(self.rows) - len(failed)} of {len(self.rows)} checks hold")
    if failed:
      raise SystemExit(f"{file.stem}: {failed}")


def drive_gallery(page, file: Path, report: Report, screenshot: Path) -> None:
  """Plays, filters, enlarges by mouse and keys, copies, saves, pauses, steps by one frame; at two widths."""
  page.goto(file.resolve().as_uri())
  # Clips play while they are in view; other pages have figures above the cards.
  page.locator("article").first.scroll_into_view_if_needed()
  cards = page.locator("article").count()
  times = "[...document.querySelectorAll('video')].map(v => v.currentTime)"
  # Playwright's wait_for_function evaluates text in the page, which its security policy forbids.
  deadline = time.monotonic() + 60
  while not page.evaluate(times)[0] and time.monotonic() < deadline:
    time.sleep(0.1)
  first = page.evaluate(times)
  report.wait(
    "gallery: a video plays",
    lambda: page.evaluate(times)[0],
    lambda now: now != first[0],
  )
  stages = page.locator("article").first.locator("video").count()
  report.check("gallery: stages are next to each other", stages >= 2, f"{stages} players in a card")
  apart = """(() => {
    const times = [...document.querySelector('article').querySelectorAll('video')].map(v => v.currentTime);
    return Math.max(...times) - Math.min(...times);
  })()"""

  def check_step(name: str) -> None:
    # The clips restart one after another, within some milliseconds: the median excludes these moments.
    differences = []
    for _ in range(21):
      page.wait_for_timeout(70)
      differences.append(page.evaluate(apart))
    median = sorted(differences)[10]
    report.check(name, median < 1 / 16, f"{median:.3f} s, the median of 21")

  check_step("gallery: the clips of a card are in step")
  page.evaluate("document.querySelector('article video').pause()")
  page.wait_for_timeout(500)
  check_step("gallery: they are in step again after the browser paused one")
  count = page.locator("#count")
  page.keyboard.press("/")
  page.keyboard.type("red")
  expected = sum(
    "red" in (c.get_attribute("data-text") or "") for c in page.locator("article").all()
  )
  report.wait(
    "gallery: the filter by prompt",
    count.inner_text,
    lambda text: text == f"{expected} of {cards}" and 0 < expected < cards,
  )
  page.keyboard.press("Escape")
  report.wait(
    "gallery: Escape shows all",
    count.inner_text,
    lambda text: text.startswith(f"{cards} of"),
  )
  page.keyboard.press("ArrowRight")
  page.keyboard.press("ArrowRight")
  current = "[...document.querySelectorAll('article')].indexOf(document.activeElement)"
  report.wait("gallery: arrows choose a card", lambda: page.evaluate(current), lambda at: at == 1)
  outline = "getComputedStyle(document.querySelector('article:focus .card')).outlineStyle"
  report.check(
    "gallery: the focus is visible", page.evaluate(outline) == "solid", page.evaluate(outline)
  )
  check_enlarging(page, report)
  page.locator("article").nth(1).focus()
  page.keyboard.press(" ")
  paused = "[...document.querySelectorAll('video')].every(v => v.paused)"
  report.wait("gallery: space pauses", lambda: page.evaluate(paused), lambda all_paused: all_paused)
  chosen = "document.querySelector('article:focus video')"
  page.evaluate(f"{chosen}.currentTime = 0.25")
  page.wait_for_timeout(300)
  page.keyboard.press(".")
  report.wait(
    "gallery: a period steps one frame",
    lambda: page.evaluate(f"{chosen}.currentTime - 0.25"),
    lambda moved: abs(moved - 1 / 8) < 1e-3,
  )
  page.keyboard.press(" ")
  check_buttons(page, report)
  for width in (700, 1400):
    page.set_viewport_size({"width": width, "height": 800})
    used = """(() => {
      const main = document.querySelector('main').getBoundingClientRect();
      const cards = [...document.querySelectorAll('article')].map(c => c.getBoundingClientRect().right);
      return [(Math.max(...cards) - main.left) / main.width, document.documentElement.scrollWidth];
    })()"""
    share, scrolled = page.evaluate(used)
    report.check(
      f"gallery: cards fill {width} pixels", share > 0.95 and scrolled <= width, f"{share:.0%}"
    )
  page.set_viewport_size({"width": 1280, "height": 800})
  page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
  page.mouse.move(0, 0)
  # The label of a button that was pressed returns.
  page.wait_for_timeout(2000)
  page.screenshot(path=screenshot)


def check_enlarging(page, report: Report) -> None:
  """Enlarges the second card by keys and by the mouse, and closes it in every way."""
  card = page.locator("article").nth(1)
  clip = card.locator("video").first
  small = clip.bounding_box()["height"]

  def check(what: str, act, large: int) -> None:
    act()
    at = "[...document.querySelectorAll('article')].findIndex(c => c.matches('.large'))"
    report.wait(f"gallery: {what}", lambda: page.evaluate(at), lambda found: found == large)

  check("Enter enlarges it", lambda: page.keyboard.press("Enter"), 1)
  height = clip.bounding_box()["height"]
  report.check(
    "gallery: its clips are larger", height > 1.3 * small, f"{small:.0f} to {height:.0f}"
  )
  check("the right arrow enlarges the next", lambda: page.keyboard.press("ArrowRight"), 2)
  check("Escape closes it", lambda: page.keyboard.press("Escape"), -1)
  check("a click on a clip enlarges its card", clip.click, 1)
  check("another click closes it", clip.click, -1)
  clip.click()
  check("a click outside closes it", lambda: page.mouse.click(5, 400), -1)
  button = card.locator("[data-action=enlarge]")
  check("the button enlarges it", button.click, 1)
  check("the button closes it", button.click, -1)


def check_buttons(page, report: Report) -> None:
  """Copies the prompt of a card and saves its first clip; a page on data has no buttons for these."""
  if not page.locator("[data-action=copy]").count():
    return
  page.context.grant_permissions(["clipboard-read", "clipboard-write"])
  card = page.locator("article").nth(1)
  copy = card.locator("[data-action=copy]")
  copy.click()
  copied = page.evaluate("navigator.clipboard.readText()")
  report.check(
    "gallery: the prompt is copied", copied == copy.get_attribute("data-text") != "", copied
  )
  file = card.locator(".file").first
  with page.expect_download() as download:
    file.click()
  encoded = card.locator("video").first.get_attribute("src").partition(",")[2]
  saved = Path(download.value.path()).read_bytes()
  report.check(
    "gallery: a clip is saved under its name",
    saved == base64.b64decode(encoded)
    and download.value.suggested_filename == file.get_attribute("data-name"),
    f"{download.value.suggested_filename}, {len(saved)} bytes",
  )


def drive_demo(
  page, url: str, report: Report, screenshot: Path, picture: Path | None = None
) -> None:
  """Submits prompts, and an image if given; checks progress, the result and an error."""
  elsewhere = []

  def asked(request) -> None:
    parsed = urlparse(request.url)
    if (
      parsed.scheme in ("http", "https", "ws", "wss") and parsed.hostname != urlparse(url).hostname
    ):
      elsewhere.append(request.url)

  page.on("request", asked)
  page.goto(url, wait_until="domcontentloaded")
  prompt = page.locator("#prompt textarea")
  prompt.wait_for(timeout=60_000)
  prompt.fill("")
  page.locator("#generate").click()
  report.wait(
    "demo: an empty prompt is named",
    lambda: page.locator("body").inner_text(),
    lambda text: "no prompt" in text,
  )
  page.keyboard.press("Escape")
  for close in page.locator(".toast-close").all():
    close.click()
  prompt.fill("a red square moves right")
  page.locator("#seed input").first.fill("7")
  page.locator("#generate").click()
  pattern = re.compile(r"(started|extension \d+ of \d+|base|processing)")
  seen = report.wait(
    "demo: progress is shown",
    lambda: (pattern.search(page.locator("body").inner_text()) or [""])[0],
    bool,
    seconds=120,
  )
  playing = "[...document.querySelectorAll('video')].map(v => [v.readyState, v.currentTime])"
  report.wait(
    f"demo: the result plays (progress read {seen!r})",
    lambda: page.evaluate(playing),
    lambda found: bool(found) and all(state >= 2 and now > 0 for state, now in found),
    seconds=900,
  )
  if picture:
    drive_picture(page, picture, report)
  report.check("demo: no requests to other servers", not elsewhere, elsewhere[:3] or "none")
  page.wait_for_timeout(500)
  page.screenshot(path=screenshot)


def drive_picture(page, picture: Path, report: Report) -> None:
  """Uploads an image and requests an extension."""
  sources = "[...document.querySelectorAll('video')].map(v => v.currentSrc)"
  before = page.evaluate(sources)
  page.locator("#picture input[type=file]").set_input_files(picture)
  page.locator("#picture img").first.wait_for(timeout=60_000)
  page.locator("#extensions input[type=number]").fill("1")
  page.keyboard.press("Tab")
  page.locator("#generate").click()
  report.wait(
    "demo: an image makes other clips",
    lambda: page.evaluate(sources),
    lambda now: len(now) == len(before) and not set(now) & set(before) and all(now),
    seconds=900,
  )
  # Nine frames and four of the extension, at 8 frames per second.
  report.wait(
    "demo: a clip with an extension is 13 frames long",
    lambda: page.evaluate("[...document.querySelectorAll('video')].map(v => 8 * v.duration)"),
    lambda found: all(frames and abs(frames - 13) < 0.1 for frames in found),
  )


def main() -> None:
  """Runs the requested checks."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--gallery", type=Path)
  parser.add_argument("--demo")
  parser.add_argument("--picture", type=Path, help="image that the demo animates")
  parser.add_argument("--screenshots", type=Path, required=True)
  parser.add_argument("--chromium", default=CHROMIUM)
  parser.add_argument("--output", type=Path, default=Path(__file__).parent)
  args = parser.parse_args()
  from playwright.sync_api import sync_playwright

  report = Report()
  with sync_playwright() as driver:
    browser = driver.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
    version = browser.version
    if args.gallery:
      page = browser.new_page(viewport={"width": 1280, "height": 800})
      drive_gallery(page, args.gallery, report, args.screenshots / "gallery_browser.png")
    if args.demo:
      page = browser.new_page(viewport={"width": 1280, "height": 800})
      drive_demo(page, args.demo, report, args.screenshots / "demo.png", args.picture)
    browser.close()
  report.finish(args.output / "browser.json", version)


if __name__ == "__main__":
  main()
