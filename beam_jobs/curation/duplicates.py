"""Duplicates among all segments of a corpus: the best of similar ones is kept, whatever part it is in.

Segments with the same sampled pixels are found by their digest. Others are compared if one of their perceptual hashes
has 16 equal bits in the same place ("band"): of two clips whose hashes differ in a few of 128 bits, some of 24 bands
are equal. Those that mean the same are found among clips whose embeddings are in the same cluster, as SemDeDup
(https://arxiv.org/abs/2303.09540) does. In a band or a cluster, segments are compared with better ones only, in the
order of their quality, so that the result depends on neither the runner nor the order of rows.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
from apache_beam.pvalue import AsSingleton, TaggedOutput

from beam_jobs.curation import clusters, embeddings, leaders
from beam_jobs.curation.ordering import random_order
from beam_jobs.filters.duplicates import HASH_BITS

EXACT, NEAR, SEMANTIC = "exact_duplicate", "near_duplicate", "semantic_duplicate"
_BAND_BITS = 16
# A hash with fewer set or unset bits is that of a nearly flat picture, which resembles all others.
_LEAST_BITS = 12
# Better segments of a band that others are compared with.
_LEADERS = 512
_Values = tuple[Any, ...]
# (name, (reason, distance, name of a better segment))
_Pair = tuple[str, tuple[str, float, str]]


class Candidate(NamedTuple):
  """A segment that may be a duplicate.

  Attributes:
    quality: a larger one is kept.
    name: identifies the segment; of equal quality, the smallest is kept.
    digest: of the sampled pixels.
    hashes: three perceptual hashes, 48 bytes.
    embedding: float16 of a unit vector; nothing if semantic duplicates are not looked for.
  """

  quality: float
  name: str
  digest: str
  hashes: bytes
  embedding: bytes = b""

  @property
  def rank(self) -> tuple[float, str]:
    """Sorts the best first."""
    return -self.quality, self.name


class Duplicates(beam.PTransform):
  """`Candidate`s to (name, (reason, distance, name of a better segment)), one pair for each duplicate.

  The distance is a mean number of bits of near duplicates, and 1 minus the cosine of semantic ones. The better segment
  may be a duplicate itself.

  Args:
    near_bits: mean number of bits, of the 128 of each hash, by which near duplicates differ at most; None for
      segments with the same pixels only.
    similarity: least cosine between the embeddings of semantic duplicates; None if they are not looked for.
  """

  def __init__(self, near_bits: float | None, similarity: float | None = None):
    super().__init__()
    self._near_bits, self._similarity = near_bits, similarity

  def expand(self, candidates):
    same = (
      candidates
      | "ByDigest" >> beam.Map(lambda one: (one.digest, tuple(one)))
      | "Same" >> beam.GroupByKey()
      | "Best" >> beam.FlatMap(_same).with_outputs(EXACT, main="distinct")
    )
    distinct, found = same["distinct"], []
    if self._near_bits is not None:
      found.append(
        distinct
        | "Bands" >> beam.FlatMap(bands)
        | "ByBand" >> beam.GroupByKey()
        | "Compare" >> beam.FlatMap(_compare, near_bits=self._near_bits)
      )
    if self._similarity is not None:
      found.append(distinct | "Semantic" >> _Semantic(self._similarity))
    if not found:
      return same[EXACT]
    # Bands may name different ones.
    similar = found | "Similar" >> beam.Flatten() | "OneEach" >> beam.CombinePerKey(min)
    return (same[EXACT], similar) | beam.Flatten()


class _Semantic(beam.PTransform):
  """Distinct candidates with embeddings to pairs of semantic duplicates."""

  def __init__(self, similarity: float):
    super().__init__()
    self._similarity = similarity

  def expand(self, distinct):
    count = distinct | "Count" >> beam.combiners.Count.Globally()
    centroids = (
      distinct
      | "Order" >> beam.Map(lambda one: (random_order(one.name), one.embedding))
      | "Sample" >> beam.combiners.Top.Smallest(clusters.SAMPLE)
      | "Fit" >> beam.Map(_centroids, AsSingleton(count), similarity=self._similarity)
    )
    return (
      distinct
      | "Batch" >> beam.BatchElements(min_batch_size=16, max_batch_size=1024)
      | "Assign" >> beam.FlatMap(_assigned, AsSingleton(centroids))
      | "ByCluster" >> beam.GroupByKey()
      | "Compare" >> beam.FlatMap(_compare_cluster, similarity=self._similarity)
    )


def _same(group: tuple[str, Iterable[_Values]]) -> Iterator[Any]:
  """The best of segments with the same pixels, and the others as its duplicates; reads the group twice, holds one."""
  _, found = group
  best = min((Candidate(*one) for one in found), key=lambda one: one.rank)
  yield best
  for _, name, *_ in found:
    if name != best.name:
      yield TaggedOutput(EXACT, (name, (EXACT, 0.0, best.name)))


def bands(one: Candidate) -> Iterator[tuple[int, _Values]]:
  """(number and bits of a band, candidate) for each band of the hashes that tell pictures apart."""
  found, values = set[int](), tuple(one._replace(digest="", embedding=b""))
  for hashed in np.frombuffer(one.hashes, np.uint16).reshape(3, -1):
    ones = int(np.bitwise_count(hashed).sum())
    if _LEAST_BITS <= ones <= HASH_BITS - _LEAST_BITS:
      found |= {place << _BAND_BITS | value for place, value in enumerate(hashed.tolist())}
  return ((key, values) for key in sorted(found))


def hash_distances(many: np.ndarray, one: np.ndarray) -> np.ndarray:
  """Mean number of bits by which each of three hashes, uint64 [n, 6], differs from those of another clip, [6]."""
  return np.bitwise_count(many ^ one).sum(1, dtype=np.int64) / 3


def _compare(group: tuple[int, Iterable[_Values]], near_bits: float) -> Iterator[_Pair]:
  """The duplicates in a band."""
  ranked = _ranked(group[1])
  hashes = (np.frombuffer(one.hashes, np.uint64) for one in ranked)
  found = leaders.copies(hashes, hash_distances, most=near_bits, limit=_LEADERS)
  for number, bits, better in found:
    yield ranked[number].name, (NEAR, round(bits, 6), ranked[better].name)


def _ranked(values: Iterable[_Values]) -> list[Candidate]:
  return sorted((Candidate(*one) for one in values), key=lambda one: one.rank)


def _centroids(sample: Sequence[tuple[int, bytes]], count: int, *, similarity: float) -> np.ndarray:
  vectors = embeddings.stacked([embedding for _, embedding in sample])
  return clusters.fit(vectors, count, least_distance=1 - similarity)


def _assigned(batch: Sequence[Candidate], centroids: np.ndarray) -> Iterator[tuple[int, _Values]]:
  """(number of its cluster, candidate)."""
  vectors = embeddings.stacked([one.embedding for one in batch])
  own = clusters.nearest(vectors, centroids)
  return zip(own.tolist(), (tuple(one._replace(digest="", hashes=b"")) for one in batch))


def _compare_cluster(group: tuple[int, Iterable[_Values]], similarity: float) -> Iterator[_Pair]:
  """The duplicates in a cluster."""
  ranked = _ranked(group[1])
  vectors = embeddings.stacked([one.embedding for one in ranked])
  for piece in clusters.divided(vectors, least_distance=1 - similarity):
    found = leaders.copies(
      (vectors[number].astype(np.float64) for number in piece),
      embeddings.cosine_distances,
      most=1 - similarity,
      limit=clusters.LARGEST,
    )
    for number, distance, better in found:
      name = ranked[piece[number]].name
      yield name, (SEMANTIC, round(distance, 6), ranked[piece[better]].name)
