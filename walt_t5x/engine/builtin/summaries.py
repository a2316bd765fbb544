"""Writes metrics to the log, TensorBoard, and `metrics.jsonl`.

In an object store, they are copied there every minute and at the end (`files.mirror`).
"""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from walt_t5x.files import mirror, storage

JSON_LINES = "metrics.jsonl"
UPLOAD_SECONDS = 60.0


def without_empty(scalars: Mapping[str, Any]) -> dict[str, Any]:
  """The scalars without averages of `loss_<part>` over no examples: they are NaN, and the loss of all is not."""
  if not math.isfinite(scalars.get("loss", math.nan)):
    return dict(scalars)
  return {k: v for k, v in scalars.items() if not (k.startswith("loss_") and math.isnan(v))}


class JsonLinesWriter:
  """One JSON object per write, flushed immediately: `{"step": 100, "loss": 0.5, ...}`. A CLU metric writer for scalars.

  Numbers that JSON cannot represent are written as strings ("NaN", "Infinity").

  Args:
    path: the file; lines are appended, and an incomplete last line of a killed run is removed first.
    prefix: prepended to every name, with a slash.
    copied: the folder's mirror, whose files are copied after flushes and at the end.
  """

  def __init__(self, path: str, *, prefix: str = "", copied: mirror.Mirror | None = None):
    self._prefix, self._copied = prefix + "/" if prefix else "", copied
    if os.path.isfile(path):
      with open(path, "rb+") as file:
        text = file.read()
        file.truncate(text.rfind(b"\n") + 1)
    self._file = open(path, "a", encoding="utf-8")

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    line = {"step": int(step)} | {self._prefix + k: _json_number(v) for k, v in scalars.items()}
    self._file.write(json.dumps(line, allow_nan=False) + "\n")
    self._file.flush()

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    """Ignored: texts are not numbers, and TensorBoard has them."""

  def flush(self) -> None:
    self._file.flush()
    if self._copied:
      self._copied.try_upload(at_most_every=UPLOAD_SECONDS)

  def close(self) -> None:
    self._file.close()
    if self._copied:
      self._copied.upload()


def create_writer(summary_dir: str | None, collection: str) -> Any:
  """A CLU writer for scalars and texts on host 0, a no-op writer elsewhere.

  Args:
    summary_dir: the run's folder, or None for the log only.
    collection: 'train', or a subfolder of TensorBoard that is also a prefix in `metrics.jsonl`: 'training_eval/<task>'.
  """
  from clu import metric_writers

  lines = json_lines_writer(summary_dir, collection)
  if jax.process_index() != 0:
    return lines
  folder = None if summary_dir is None else mirror.shared(summary_dir).folder
  board = metric_writers.create_default_writer(folder, collection=collection, asynchronous=False)
  # In this order: the last one copies the files of both.
  return metric_writers.MultiWriter([board, lines])


def json_lines_writer(summary_dir: str | None, collection: str) -> Any:
  """The writer of `metrics.jsonl` for a collection as in `create_writer`; a no-op if there can be no such file."""
  if jax.process_index() != 0 or summary_dir is None:
    return JsonLinesWriter(os.devnull)
  prefix = "" if collection == "train" else collection
  copied = mirror.shared(summary_dir)
  path = os.path.join(copied.folder, JSON_LINES)
  if not os.path.exists(path):
    copied.fetch(JSON_LINES)
  return JsonLinesWriter(path, prefix=prefix, copied=copied)


def last_value(summary_dir: str | None, name: str) -> float | None:
  """The last value of a metric in a run's `metrics.jsonl`, None if it has none."""
  path = storage.join(summary_dir or "", JSON_LINES)
  if summary_dir is None or not storage.exists(path):
    return None
  with storage.open_text(path) as file:
    lines = [line for line in file if f'"{name}"' in line]
  for line in reversed(lines):
    # A full disk, or a kill, leaves an incomplete line.
    with contextlib.suppress(ValueError, KeyError):
      return json.loads(line)[name]
  return None


def _json_number(value: Any) -> float | int | str:
  number = float(np.asarray(value))
  if math.isfinite(number):
    return int(number) if number.is_integer() and abs(number) < 2**53 else number
  return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
