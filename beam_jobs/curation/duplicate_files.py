"""The duplicates of a job, in a file next to each part: {name: [reason, distance, name of the clip that is kept]}."""

import functools
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import apache_beam as beam
import numpy as np

from beam_jobs.curation import parts
from beam_jobs.curation.duplicates import Duplicates
from beam_jobs.curation.ordering import random_order
from beam_jobs.curation.videos import CurationJob, Scored
from walt_t5x.files import damage, storage
from walt_t5x.media.rules import Rule


class WriteDuplicates(beam.PTransform):
  """Writes the duplicates among the clips of all parts.

  Args:
    job: what made the parts.
    rules: what clips must satisfy.
    quality: name of the score of which the largest is kept.
    near_bits, similarity: see `Duplicates`.
  """

  def __init__(
    self,
    job: CurationJob,
    rules: Sequence[Rule],
    *,
    quality: str,
    near_bits: float | None,
    similarity: float | None,
  ):
    super().__init__()
    self._job = job
    self._clips = functools.partial(
      parts.candidates,
      job=job,
      rules=rules,
      quality=quality,
      with_embeddings=similarity is not None,
    )
    self._duplicates = Duplicates(near_bits, similarity)

  def expand(self, root):
    indices = range(self._job.parts)
    found = (
      root
      | beam.Create(indices)
      | beam.Reshuffle()
      | "Clips" >> beam.FlatMap(self._clips)
      | self._duplicates
      | "OfPart" >> beam.Map(lambda pair: (parts.part_of(pair[0]), pair))
    )
    empty = root | "EveryPart" >> beam.Create([(index, None) for index in indices])
    return (
      (found, empty)
      | beam.Flatten()
      | "ByPart" >> beam.GroupByKey()
      | "Write" >> beam.MapTuple(functools.partial(_write, job=self._job))
    )


def require_embeddings(job: CurationJob) -> None:
  """Raises ValueError if the parts have no embeddings."""
  for _, part in parts.read_parts(job):
    for video in part["videos"]:
      for found in (Scored(*values) for values in video["segments"]):
        if found.embedding:
          return
        if found.digest:
          raise ValueError(
            f"--duplicates=semantic: the parts in {job.output} have no embeddings, expected those of a run with "
            "--embedding=MODULE:CLASS: run the job again with it, without --refilter"
          )


def _write(index: int, pairs: Iterable[Any], job: CurationJob) -> None:
  found = dict(sorted(filter(None, pairs)))
  storage.write(parts.duplicates_path(job, index), damage.sealed_json(found))


def read(job: CurationJob) -> Iterator[tuple[int, dict[str, list[Any]]]]:
  """(number of a part, its duplicates), in order."""
  for index in range(job.parts):
    yield index, storage.read_json(parts.duplicates_path(job, index))


def name_kept_clips(job: CurationJob) -> None:
  """Where the better clip of a duplicate is a duplicate itself, names the one at the end of this chain.

  Needs 16 bytes for each duplicate, the names at the ends of chains, and one of the files.
  """
  names, betters = array("Q"), array("Q")
  for _, found in read(job):
    names.extend(map(random_order, found))
    betters.extend(random_order(better) for *_, better in found.values())
  followed = _followed(np.array(names, np.uint64), np.array(betters, np.uint64))
  wanted = set(followed[followed != np.arange(len(followed))].tolist())
  ends, at = dict[int, str](), 0
  for _, found in read(job):
    ends |= {n: better for n, (*_, better) in enumerate(found.values(), at) if n in wanted}
    at += len(found)
  at = 0
  for index, found in read(job):
    named = [
      (name, [reason, distance, ends.get(int(followed[n]), better)])
      for n, (name, (reason, distance, better)) in enumerate(found.items(), at)
    ]
    at += len(found)
    if dict(named) != found:
      _write(index, named, job)


def _followed(names: np.ndarray, betters: np.ndarray) -> np.ndarray:
  """For each duplicate, the number of the last one of its chain; digests of names and of better ones, uint64 [n]."""
  order = np.argsort(names)
  places = np.minimum(np.searchsorted(names, betters, sorter=order), len(names) - 1)
  following = np.where(names[order[places]] == betters, order[places], np.arange(len(names)))
  while not np.array_equal(twice := following[following], following):
    following = twice
  return following
