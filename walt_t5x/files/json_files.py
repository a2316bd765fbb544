"""Writes JSON files atomically."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_json(path: Path, tree: Mapping[str, Any]) -> None:
  """Writes `tree`; creates the folder."""
  write_text(path, json.dumps(tree, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
  """Writes `text`; creates the folder."""
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  temporary.write_text(text, encoding="utf-8")
  os.replace(temporary, path)
