"""Reads what a report shows: the folder of a training run, and scores of `python -m walt_t5x.evaluate`."""

import collections
import dataclasses
import functools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from walt_t5x.engine import goodput
from walt_t5x.files import storage
from walt_t5x.files.paths import AnyPath

METRICS = "metrics.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunFolder:
  """A run on disk.

  Attributes:
    name: its name on the page.
    path: its folder.
    curves: metric -> [(step, value)], steps ascending. Evaluation metrics have their collection as a prefix.
    checkpoints: saved step -> the reason why it cannot be read, or None; steps ascending.
    provenance: provenance of the training data; {} if none was recorded.
    config: gin text of its newest start; "" if none was recorded.
    unreadable_lines: number of lines of metrics.jsonl that are not JSON, such as one truncated by a full disk.
    time: where the time of its starts went; None if they recorded nothing.
  """

  name: str
  path: AnyPath
  curves: Mapping[str, Sequence[tuple[int, float]]]
  checkpoints: Mapping[int, str | None]
  provenance: Mapping[str, Any]
  config: str
  unreadable_lines: int = 0
  time: goodput.Account | None = None

  @property
  def last_step(self) -> int:
    """The newest step of any curve."""
    return max((points[-1][0] for points in self.curves.values()), default=0)


def read_curves(file: AnyPath) -> tuple[dict[str, list[tuple[int, float]]], int]:
  """Curves of a metrics.jsonl, and the number of its unreadable lines.

  A run that resumed from a checkpoint wrote some steps twice; the later line counts. Values that are not finite
  numbers are skipped, because they cannot be drawn.
  """
  found = collections.defaultdict[str, dict[int, float]](dict)
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
          found[name][step] = float(value)
  return {name: sorted(points.items()) for name, points in found.items()}, unreadable


def read_run(path: AnyPath, name: str | None = None) -> RunFolder:
  """Reads the model_dir of a run; `name` is its name on the page, by default the folder's.

  Raises:
    FileNotFoundError: the folder has no metrics.jsonl.
  """
  from walt_t5x.engine.checkpoints import all_steps, checkpoint_folder, why_incomplete

  file = path / METRICS
  if not file.is_file():
    raise FileNotFoundError(
      f"{file} does not exist: expected the MODEL_DIR of a run of `python -m walt_t5x.train`. Runs on an object store "
      "have TensorBoard events only; copy such a folder to this machine and give its path."
    )
  curves, unreadable = read_curves(file)
  starts = goodput.read(path)
  provenance, config = path / "provenance.json", path / "config.gin"
  return RunFolder(
    name=name or path.name,
    path=path,
    curves=curves,
    checkpoints={step: why_incomplete(checkpoint_folder(path, step)) for step in all_steps(path)},
    provenance=storage.read_json(provenance) if provenance.is_file() else {},
    config=config.read_text("utf-8") if config.is_file() else "",
    unreadable_lines=unreadable,
    time=goodput.account(starts) if starts else None,
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreRow:
  """One score and what makes it comparable.

  Attributes:
    protocol: its name, `@` and the start of its hash.
    name: such as FVD.
    value: with the standard deviation over folds.
    counts: number of samples and references.
    samples: the folder that was scored.
    network: name and fingerprint of the feature network, and whether its weights are the public ones.
  """

  protocol: str
  name: str
  value: str
  counts: str
  samples: str
  network: str = ""


def _network(entry: Mapping[str, Any]) -> str:
  if not entry.get("network"):
    return ""
  public: dict[bool | None, str] = {True: "public weights", False: "NOT the public weights"}
  known = entry.get("network_description") or public.get(
    entry.get("public_weights"), "weights not recorded"
  )
  return f"{entry['network']} {str(entry.get('network_fingerprint', ''))[:12]} ({known})"


def _protocol(result: Mapping[str, Any]) -> str:
  # Files from earlier versions may have no hash.
  return f"{result['protocol']}@{result.get('protocol_hash', 'no hash recorded')}"


def _feature_scores(result: Mapping[str, Any]) -> Iterator[ScoreRow]:
  for name, entry in result["scores"].items():
    spread = f" ± {entry['std']:.4g}" if entry.get("values", 1) > 1 else ""
    yield ScoreRow(
      protocol=_protocol(result),
      name=name,
      value=f"{entry['score']:.4g}{spread}",
      counts=f"{entry['samples']:,} samples, {entry['references']:,} references",
      network=_network(entry),
      samples=str(result.get("samples", "")),
    )


def _prompt_scores(result: Mapping[str, Any], folder: str) -> Iterator[ScoreRow]:
  row = functools.partial(ScoreRow, protocol=_protocol(result), samples=folder)
  apart = result.get("scores_apart", {})
  parts = [*result["scores"].items(), *((f"{stage}, apart", v) for stage, v in apart.items())]
  for stage, values in parts:
    short = {name.rpartition("/")[2]: value for name, value in values.items()}
    for name, share in short.items():
      element, found, _ = name.rpartition("_accuracy")
      if found and short[f"{element}_total"]:
        right, total = short[f"{element}_right"], short[f"{element}_total"]
        yield row(
          name=f"{stage}: {element}",
          value=f"{share:.0%} ({right:.0f} of {total:.0f})",
          counts=f"{short.get('clips', total):.0f} samples",
        )
    if "similarity" in short:
      yield row(
        name=f"{stage}: similarity",
        value=f"{short['similarity']:.4f}",
        counts=f"{short['clips']:.0f} samples",
        network=f"CLIP {result['network_fingerprint'][:12]}",
      )


def read_scores(file: AnyPath) -> list[ScoreRow]:
  """The rows of one scores file; raises ValueError for a file that `evaluate` did not write."""
  try:
    result = storage.read_json(file)
    if all("score" in entry for entry in result["scores"].values()):
      return list(_feature_scores(result))
    return list(_prompt_scores(result, str(file.parent)))
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise ValueError(
      f"{file} has no scores: {error!r}; expected a file that `python -m walt_t5x.evaluate` wrote."
    ) from error
