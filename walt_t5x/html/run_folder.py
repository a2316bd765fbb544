"""Reads what a training run left in its folder: curves, checkpoints, provenance, configuration."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
  """One saved step; `problem` says why it cannot be read, None if it can."""

  step: int
  problem: str | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFolder:
  """A run on disk.

  Attributes:
    name: what the page calls it.
    path: its folder.
    curves: metric -> [(step, value)], steps ascending. Evaluation metrics carry their collection as a prefix.
    checkpoints: ascending.
    provenance: of the rows it was trained on; {} where none was recorded.
    config: gin text of its newest start; "" where none was recorded.
    unreadable_lines: lines of metrics.jsonl that are no JSON, such as one cut by a full disk.
  """

  name: str
  path: Path
  curves: Mapping[str, Sequence[tuple[int, float]]]
  checkpoints: Sequence[Checkpoint]
  provenance: Mapping[str, Any]
  config: str
  unreadable_lines: int = 0

  @property
  def last_step(self) -> int:
    """The newest step of any curve."""
    return max((points[-1][0] for points in self.curves.values()), default=0)


def read_curves(file: Path) -> tuple[dict[str, list[tuple[int, float]]], int]:
  """Curves of a metrics.jsonl, and how many of its lines are unreadable.

  A run that went on from a checkpoint wrote some steps twice; the later line counts. Values that are no finite number
  are left out, they have no place on an axis.
  """
  found: dict[str, dict[int, float]] = {}
  unreadable = 0
  with file.open(encoding="utf-8") as lines:
    for line in lines:
      try:
        values = json.loads(line)
        step = int(values.pop("step"))
      except (ValueError, KeyError, AttributeError, TypeError):
        unreadable += 1
        continue
      for name, value in values.items():
        if isinstance(value, int | float) and math.isfinite(value):
          found.setdefault(name, {})[step] = float(value)
  return {name: sorted(points.items()) for name, points in found.items()}, unreadable


def read_run(path: Path, name: str | None = None) -> RunFolder:
  """Reads a run's folder.

  Args:
    path: model_dir of the run.
    name: what to call it; the folder's name when None.

  Raises:
    FileNotFoundError: the folder has no metrics.jsonl.
  """
  from walt_t5x.engine.checkpoints import all_steps, checkpoint_folder, why_torn

  file = path / METRICS
  if not file.is_file():
    raise FileNotFoundError(
      f"{file} does not exist: expected the MODEL_DIR of a run of `python -m walt_t5x.train`. Runs on an object store "
      "have TensorBoard events only; copy such a folder here and name it."
    )
  curves, unreadable = read_curves(file)
  saved = [
    Checkpoint(step=step, problem=why_torn(checkpoint_folder(path, step)))
    for step in all_steps(path)
  ]
  provenance, config = path / "provenance.json", path / "config.gin"
  return RunFolder(
    name=name or path.name,
    path=path,
    curves=curves,
    checkpoints=saved,
    provenance=json.loads(provenance.read_text("utf-8")) if provenance.is_file() else {},
    config=config.read_text("utf-8") if config.is_file() else "",
    unreadable_lines=unreadable,
  )
