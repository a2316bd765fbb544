"""Spherical k-means of unit vectors in float16, the same on every CPU: see `embeddings`."""

import itertools
import math
from collections.abc import Iterator

import numpy as np

from beam_jobs.curation import embeddings, leaders

# Vectors of a cluster that are compared with one another; a larger one is divided.
LARGEST = 2048
# Vectors that centroids are made of, and the most of these.
SAMPLE, _MOST_CENTROIDS = 65_536, 4096
_ROUNDS = 8
_ROWS = 4096


def fit(vectors: np.ndarray, count: int, *, least_distance: float) -> np.ndarray:
  """Centroids [K, D] float16 of a sample of `count` vectors, for which K is about the square root.

  They begin as the first vectors of the sample that are not closer to each other than `least_distance`, so that no two
  copies begin a cluster each.
  """
  k = min(math.ceil(count**0.5), _MOST_CENTROIDS)
  first = vectors[: 8 * k]
  copies = leaders.copies(
    (one.astype(np.float64) for one in first),
    embeddings.cosine_distances,
    most=least_distance,
    limit=k,
  )
  centroids = np.delete(first, [number for number, *_ in copies], axis=0)[:k]
  for _ in range(_ROUNDS):
    own = nearest(vectors, centroids)
    order = np.argsort(own, kind="stable")
    bounds = np.searchsorted(own[order], np.arange(len(centroids) + 1))
    for number, (start, end) in enumerate(itertools.pairwise(bounds)):
      # Sums of float16 are exact in float64, as are those of the squares of the rounded mean.
      mean = vectors[order[start:end]].sum(0, dtype=np.float64) / max(1, end - start)
      mean = mean.astype(np.float16).astype(np.float64)
      if norm := np.sqrt(mean @ mean):
        centroids[number] = mean / norm
  return centroids


def nearest(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
  """Number of the centroid, float16 [K, D], closest to each vector, float16 [n, D]; of equals, the first."""
  columns = centroids.astype(np.float64).T
  blocks = (vectors[at : at + _ROWS] for at in range(0, len(vectors), _ROWS))
  found = [(block.astype(np.float64) @ columns).argmax(1) for block in blocks]
  return np.concatenate([np.zeros(0, np.int64), *found])


def divided(vectors: np.ndarray, *, least_distance: float) -> Iterator[np.ndarray]:
  """Numbers of the vectors of each piece of a cluster that is larger than `LARGEST`, in order.

  A piece stays larger if clusters do not divide it, because nearly all of its vectors are copies.
  """
  waiting = [np.arange(len(vectors))]
  while waiting:
    numbers = waiting.pop()
    pieces = [numbers]
    if len(numbers) > LARGEST:
      sample = vectors[numbers[:: math.ceil(len(numbers) / SAMPLE)]]
      own = nearest(vectors[numbers], fit(sample, len(numbers), least_distance=least_distance))
      pieces = [numbers[own == one] for one in np.unique(own)]
    for piece in pieces:
      if LARGEST < len(piece) < 0.9 * len(numbers):
        waiting.append(piece)
      else:
        yield piece
