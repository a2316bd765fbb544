"""Worker side of `beam_jobs.evaluate`: parts of an evaluation, merged into folds."""

import argparse
import functools
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.metrics.metric import Metrics

from walt_t5x.evaluation import feature_scores

_LOADING = threading.Lock()


@functools.cache
def _loaded(flags: tuple[tuple[str, Any], ...]) -> Any:
  return feature_scores.load_evaluation(argparse.Namespace(**dict(flags)))


def loaded(args: argparse.Namespace) -> Any:
  """The evaluation of these flags, loaded once per process."""
  with _LOADING:
    return _loaded(tuple(sorted(vars(args).items())))


class MakePart(beam.DoFn):
  """Maps the number of a part to ((whether references, fold), statistics)."""

  def __init__(self, args: argparse.Namespace):
    self._args = args
    self._clips = Metrics.counter("evaluate", "clips")

  def setup(self) -> None:
    """Loads the weights and the plan."""
    self._evaluation = loaded(self._args)

  def process(self, number: int) -> Iterator[tuple[tuple[bool, int], Any]]:
    """Computes the part, or reads the saved one."""
    plan = self._evaluation.plans[number]
    part = self._evaluation.part(plan)
    self._clips.inc(len(plan.clips))
    yield (plan.references, plan.fold), part


class MergeParts(beam.CombineFn):
  """Merges statistics of parts, in any order and grouping, into those of their fold."""

  def create_accumulator(self) -> Any:
    """Statistics of no clips."""
    from walt_t5x.evaluation.parts import PartStatistics

    return PartStatistics()

  def add_input(self, accumulator: Any, part: Any) -> Any:
    """Adds a part."""
    return accumulator.merge(part)

  def merge_accumulators(self, accumulators: Iterable[Any]) -> Any:
    """Merges the parts of several workers."""
    return functools.reduce(lambda a, b: a.merge(b), accumulators, self.create_accumulator())

  def extract_output(self, accumulator: Any) -> Any:
    """The statistics of the fold."""
    return accumulator


def fold_file(folder: Path, references: bool, fold: int) -> Path:
  """File in which a worker passes the statistics of a fold to the launcher."""
  return folder / f"{'references' if references else 'samples'}-{fold}.npz"


def keep_fold(keyed: tuple[tuple[bool, int], Any], folder: Path) -> None:
  """Writes the statistics of a fold."""
  from walt_t5x.evaluation.parts import save_part

  (references, fold), statistics = keyed
  save_part(fold_file(folder, references, fold), statistics, contents="fold")
