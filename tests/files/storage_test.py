"""Concurrent calls on small files: results are in order, and the first failure is raised."""

import threading
import time

import pytest

from walt_t5x.files import storage


def test_results_come_in_the_order_of_the_items():
  assert list(storage.for_each(lambda n: (time.sleep((9 - n) / 100), n)[1], range(10))) == [
    *range(10)
  ]


def test_calls_run_concurrently():
  # No call returns before all have started: sequential calls break the barrier.
  together = threading.Barrier(16, timeout=20)
  assert sorted(storage.for_each(lambda _: together.wait(), range(16))) == [*range(16)]


def test_the_first_failure_by_order_is_raised():
  def fail(n):
    time.sleep((9 - n) / 100)
    if n in (3, 7):
      raise ValueError(f"item {n}")
    return n

  results = storage.for_each(fail, range(10))
  assert [next(results) for _ in range(3)] == [0, 1, 2]
  with pytest.raises(ValueError, match="item 3"):
    next(results)
