"""Relative position buckets compared with integer arithmetic and with torch."""

import jax
import numpy as np
import pytest
import torch

from walt_t5x.text.model import RelativePositionBias, relative_position_bucket


def exact_bucket(offset: int, num_buckets: int, max_distance: int) -> int:
  """The formula without logarithms: floor(S log(n/E) / log(m/E)) >= k  <=>  (n/E)^S >= (m/E)^k."""
  per_sign = num_buckets // 2
  exact = per_sign // 2
  steps = per_sign - exact
  n = abs(offset)
  bucket = n
  if n >= exact:
    bucket = exact
    while bucket < per_sign - 1:
      k = bucket + 1 - exact
      if n**steps * exact**k < max_distance**k * exact**steps:
        break
      bucket += 1
  return bucket + (per_sign if offset > 0 else 0)


@pytest.mark.parametrize("num_buckets, max_distance", [(32, 128), (32, 64), (8, 20), (16, 128)])
def test_buckets_equal_integer_arithmetic(num_buckets, max_distance):
  offsets = np.arange(-600, 601)
  got = relative_position_bucket(offsets, num_buckets=num_buckets, max_distance=max_distance)
  expected = [exact_bucket(int(o), num_buckets, max_distance) for o in offsets]
  np.testing.assert_array_equal(got, expected)


def test_buckets_equal_torch():
  offsets = np.arange(-1000, 1001)
  from transformers.models.t5.modeling_t5 import T5Attention  # In one worker: it takes two seconds.

  expected = T5Attention._relative_position_bucket(
    torch.from_numpy(offsets), bidirectional=True, num_buckets=32, max_distance=128
  )
  np.testing.assert_array_equal(relative_position_bucket(offsets), expected.numpy())


def test_bucket_examples():
  offsets = np.array([0, -1, 1, -7, 7, -8, 8, 11, 12, -127, 128, 4000])
  expected = [0, 1, 17, 7, 23, 8, 24, 24, 25, 15, 31, 31]
  np.testing.assert_array_equal(relative_position_bucket(offsets), expected)


def test_bias_uses_the_bucket_of_key_minus_query():
  module = RelativePositionBias(num_heads=3)
  table = np.arange(96, dtype=np.float32).reshape(3, 32)
  bias = module.apply({"params": {"rel_embedding": jax.numpy.asarray(table)}}, 20)
  assert bias.shape == (1, 3, 20, 20)
  for head, query, key in [(0, 0, 0), (1, 5, 6), (2, 19, 0), (2, 0, 19), (0, 7, 3)]:
    assert bias[0, head, query, key] == table[head, exact_bucket(key - query, 32, 128)]
