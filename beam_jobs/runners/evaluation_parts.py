"""Worker side of `beam_jobs.evaluate`: parts of an evaluation, merged into folds."""

import argparse
import contextlib
import functools
import threading
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from apache_beam.metrics.metric import Metrics

from walt_t5x.evaluation import feature_scores
from walt_t5x.files import storage
from walt_t5x.files.paths import AnyPath

_LOADING = threading.Lock()


@functools.cache
def _loaded(flags: tuple[tuple[str, Any], ...]) -> Any:
  return feature_scores.load_evaluation(argparse.Namespace(**dict(flags)))


def loaded(args: argparse.Namespace) -> Any:
  """The evaluation of these flags, loaded once per process."""
  with _LOADING:
    return _loaded(tuple(sorted(vars(args).items())))


def make_part(number: int, args: argparse.Namespace) -> tuple[tuple[bool, int], Any]:
  """((whether references, fold), statistics) of a part: computed, or read if it was saved."""
  evaluation = loaded(args)
  plan = evaluation.plans[number]
  Metrics.counter("evaluate", "clips").inc(len(plan.clips))
  return (plan.references, plan.fold), evaluation.part(plan)


def merge_parts(parts: Iterable[Any]) -> Any:
  """Statistics of all clips of the parts, in any order and grouping."""
  from walt_t5x.evaluation.parts import PartStatistics

  return functools.reduce(PartStatistics.merge, parts, PartStatistics())


@contextlib.contextmanager
def folds_folder(parent: AnyPath) -> Iterator[AnyPath]:
  """Yields a new folder that launcher and workers share, and deletes it and its files when the block ends."""
  folder = parent / f".folds-{uuid.uuid4().hex}"
  storage.make_folder(folder)
  try:
    yield folder
  finally:
    for name in storage.names(folder):
      storage.delete(folder / name)
    if isinstance(folder, Path):
      folder.rmdir()


def fold_file(folder: AnyPath, references: bool, fold: int) -> AnyPath:
  """File in which a worker passes the statistics of a fold to the launcher."""
  return folder / f"{'references' if references else 'samples'}-{fold}.npz"


def keep_fold(keyed: tuple[tuple[bool, int], Any], folder: AnyPath) -> None:
  """Writes the statistics of a fold."""
  from walt_t5x.evaluation.parts import save_part

  (references, fold), statistics = keyed
  save_part(fold_file(folder, references, fold), statistics, contents="fold")
