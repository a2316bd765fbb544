"""Keeps the first of similar vectors, in their order."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np


def copies(
  vectors: Iterable[np.ndarray],
  distances: Callable[[np.ndarray, np.ndarray], np.ndarray],
  *,
  most: float,
  limit: int,
) -> Iterator[tuple[int, float, int]]:
  """(number, distance, number of the closest leader) of the vectors that are not farther than `most` from a leader.

  All others are leaders, as far as the limit goes: a million vectors cost a million times `limit` at most.

  Args:
    vectors: [D], the best first.
    distances: those between each of the leaders so far, [n, D], and a vector; of equals, the first is the closest.
    most: the largest distance of a copy.
    limit: of leaders.
  """
  kept, numbers = np.empty(0), list[int]()
  for number, vector in enumerate(vectors):
    if not numbers:
      kept = np.empty((limit, len(vector)), vector.dtype)
    found = distances(kept[: len(numbers)], vector)
    closest = int(found.argmin()) if numbers else 0
    if numbers and found[closest] <= most:
      yield number, float(found[closest]), numbers[closest]
    elif len(numbers) < limit:
      kept[len(numbers)] = vector
      numbers.append(number)
