"""The results of a benchmark: a page to read, and the figures behind it."""

import json
from pathlib import Path
from typing import Any


def write(folder: str | Path, name: str, page: str, figures: Any) -> None:
  """Prints a page, and writes it and its figures as <name>.md and <name>.json."""
  print(page)
  Path(folder, f"{name}.md").write_text(page, encoding="utf-8")
  text = json.dumps(figures, indent=1) + "\n"
  Path(folder, f"{name}.json").write_text(text, encoding="utf-8")
