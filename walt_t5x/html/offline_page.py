"""A self-contained HTML page that opens from disk, offline, with a light or dark theme by the reader's system setting.

Media are `data:` URIs (`embedded_media`) and a content security policy blocks every request, so the page can be mailed
or archived.
"""

import contextlib
import html
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

# Browsers decode a limited number of videos at a time: those out of view are paused.
PLAY_IN_VIEW = """
const observer = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) target.play().catch(() => {}); else target.pause();
  }
}, { rootMargin: "200px" });
document.querySelectorAll("video").forEach((video) => observer.observe(video));
"""


@contextlib.contextmanager
def offline_page(path: str | os.PathLike[str], *, title: str, style: str) -> Iterator[TextIO]:
  """A stream for the page's body; the file is written when the block ends without an error.

  Args:
    path: ends in .html.
    title: title of the window.
    style: CSS rules in addition to the shared ones. Colors: --page, --card, --ink, --soft (secondary text), --line.

  Raises:
    ValueError: the path has another suffix.
  """
  path = Path(path)
  if path.suffix.lower() not in (".html", ".htm"):
    raise ValueError(f"--output: got {path}, expected an .html file")
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    with temporary.open("w", encoding="utf-8") as page:
      page.write(_HEAD.format(title=html.escape(title), style=_STYLE + style))
      yield page
      page.write("</body></html>\n")
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)


_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; media-src data:; \
style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style></head><body>
"""

_STYLE = """
:root { color-scheme: light dark; --page: #f6f6f4; --card: #fff; --ink: #1c1c1a; --soft: #6b6b66; --line: #deded8; }
@media (prefers-color-scheme: dark) {
  :root { --page: #151514; --card: #1f1f1d; --ink: #ecece6; --soft: #9a9a92; --line: #34342f; } }
* { box-sizing: border-box; }
body { margin: 0; padding: 16px 24px 48px; background: var(--page); color: var(--ink);
  font: 14px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 20px; margin: 4px 0 12px; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 26px 0 8px; }
h3 { font-size: 14px; margin: 0 0 6px; }
table { border-collapse: collapse; background: var(--card); border: 1px solid var(--line); }
th, td { padding: 2px 10px; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
figure { margin: 0; } figcaption, .note { color: var(--soft); font-size: 12px; }
figcaption b { color: var(--ink); }
article { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 12px; max-width: 100%; }
article[hidden] { display: none; }
.row { display: flex; flex-wrap: wrap; gap: 14px; align-items: flex-start; }
video, img { display: block; max-width: 100%; background: #000; border-radius: 5px; image-rendering: pixelated; }
"""
