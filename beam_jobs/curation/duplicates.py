"""Duplicates among all segments of a corpus: the best of similar ones is kept, whatever part it is in.

Segments with the same sampled pixels are found by their digest. Others are compared if one of their perceptual hashes
has 16 equal bits in the same place ("band"): of two clips whose hashes differ in a few of 128 bits, some of 24 bands
are equal. In a band, segments are compared with better ones only, in the order of their quality, so that the result
depends on neither the runner nor the order of rows.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import TaggedOutput

from beam_jobs.filters.duplicates import HASH_BITS

EXACT, NEAR = "exact_duplicate", "near_duplicate"
_BAND_BITS = 16
# A hash with fewer set or unset bits is that of a nearly flat picture, which resembles all others.
_LEAST_BITS = 12
# Better segments of a band that others are compared with: a band of a million costs a million times this at most.
_LEADERS = 512


class Candidate(NamedTuple):
  """A segment that may be a duplicate.

  Attributes:
    quality: a larger one is kept.
    name: identifies the segment; of equal quality, the smallest is kept.
    digest: of the sampled pixels.
    hashes: three perceptual hashes, 48 bytes.
  """

  quality: float
  name: str
  digest: str
  hashes: bytes

  @property
  def rank(self) -> tuple[float, str]:
    """Sorts the best first."""
    return -self.quality, self.name


class Duplicates(beam.PTransform):
  """`Candidate`s to (name, (reason, name of a better segment that it duplicates)), one pair for each duplicate.

  Args:
    near_bits: mean number of bits, of the 128 of each hash, by which near duplicates differ at most; None for
      segments with the same pixels only.
  """

  def __init__(self, near_bits: float | None):
    super().__init__()
    self._near_bits = near_bits

  def expand(self, candidates):
    same = (
      candidates
      | "ByDigest" >> beam.Map(lambda one: (one.digest, tuple(one)))
      | "Same" >> beam.GroupByKey()
      | "Best" >> beam.FlatMap(_same).with_outputs(EXACT, main="distinct")
    )
    if self._near_bits is None:
      return same[EXACT]
    near = (
      same["distinct"]
      | "Bands" >> beam.FlatMap(bands)
      | "ByBand" >> beam.GroupByKey()
      | "Compare" >> beam.FlatMap(_compare, near_bits=self._near_bits)
      # Bands may name different ones.
      | "OneEach" >> beam.CombinePerKey(min)
    )
    return (same[EXACT], near) | beam.Flatten()


def _same(group: tuple[str, Iterable[tuple[Any, ...]]]) -> Iterator[Any]:
  """The best of segments with the same pixels, and the others as its duplicates; reads the group twice, holds one."""
  _, found = group
  best = min((Candidate(*one) for one in found), key=lambda one: one.rank)
  yield best
  for _, name, *_ in found:
    if name != best.name:
      yield TaggedOutput(EXACT, (name, (EXACT, best.name)))


def bands(one: Candidate) -> Iterator[tuple[int, tuple[Any, ...]]]:
  """(number and bits of a band, candidate) for each band of the hashes that tell pictures apart."""
  found = set()
  for hashed in np.frombuffer(one.hashes, np.uint16).reshape(3, -1):
    ones = int(np.bitwise_count(hashed).sum())
    if _LEAST_BITS <= ones <= HASH_BITS - _LEAST_BITS:
      found |= {place << _BAND_BITS | value for place, value in enumerate(hashed.tolist())}
  return ((key, tuple(one)) for key in sorted(found))


def _compare(
  group: tuple[int, Iterable[tuple[Any, ...]]], near_bits: float
) -> Iterator[tuple[str, tuple[str, str]]]:
  """The duplicates in a band."""
  leaders: list[str] = []
  hashes = np.empty((_LEADERS, 6), np.uint64)
  for one in sorted((Candidate(*values) for values in group[1]), key=lambda one: one.rank):
    mine = np.frombuffer(one.hashes, np.uint64)
    bits = np.bitwise_count(hashes[: len(leaders)] ^ mine).sum(1, dtype=np.int64)
    near = np.flatnonzero(bits <= 3 * near_bits)
    if len(near):
      yield one.name, (NEAR, leaders[near[0]])
    elif len(leaders) < _LEADERS:
      hashes[len(leaders)] = mine
      leaders.append(one.name)
