"""The documentation site builds without a warning, and every page and module is on it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_every_page_of_docs_is_in_the_navigation_once():
  text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
  listed = re.findall(r"^ *- (\S+\.md)$", text, re.MULTILINE)
  pages = {file.relative_to(ROOT / "docs").as_posix() for file in (ROOT / "docs").rglob("*.md")}
  assert len(listed) == len(set(listed))
  assert pages - set(listed) == set(), "add these pages to the navigation in mkdocs.yml"
  # The others are pages that scripts/docs_site.py adds from the root of the repository.
  others = set(listed) - pages - {"index.md"}
  assert {name for name in others if not (ROOT / name).is_file()} == set()


def test_the_site_builds_strictly_and_documents_every_module(tmp_path):
  pytest.importorskip("mkdocs")
  pytest.importorskip("material")
  pytest.importorskip("mkdocstrings_handlers.python")
  done = subprocess.run(
    [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={tmp_path / 'site'}"],
    cwd=ROOT,
    env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONDONTWRITEBYTECODE": "1"},
    capture_output=True,
    text=True,
    timeout=240,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-4000:]
  pages = {
    file.relative_to(tmp_path / "site").as_posix(): file.read_text(encoding="utf-8")
    for file in (tmp_path / "site").rglob("*.html")
  }
  assert "walt_t5x" in pages["index.html"]
  for file in (ROOT / "benchmarks").glob("*.md"):
    assert f"benchmarks/{file.stem}.html" in pages
  missing = []
  for package in ("walt_t5x", "data", "beam_jobs"):
    for file in sorted((ROOT / package).rglob("*.py")):
      folder = ".".join(file.parent.relative_to(ROOT).parts)
      if (
        file.stem != "__init__" and f'id="{folder}.{file.stem}"' not in pages[f"api/{folder}.html"]
      ):
        missing.append(file.relative_to(ROOT).as_posix())
  assert missing == []
  # A page works offline: what it loads is on the site.
  loaded = {
    url for text in pages.values() for url in re.findall(r'<(?:script|img)[^>]* src="([^"]+)', text)
  }
  assert {url for url in loaded if url.startswith(("http:", "https:", "//"))} == set()
