"""Window partition against a hand-written loop."""

import jax.numpy as jnp
import numpy as np
import pytest

from walt_t5x.denoiser.windows import check_window, merge, num_windows, partition


@pytest.mark.parametrize(
  "grid, window", [((5, 8, 8), (5, 4, 4)), ((3, 4, 6), (1, 4, 6)), ((2, 4, 6), (2, 1, 3))]
)
def test_partition_then_merge_is_the_identity(grid, window):
  x = jnp.arange(2 * np.prod(grid) * 3).reshape(2, *grid, 3)
  np.testing.assert_array_equal(merge(partition(x, window), grid, window), x)


def test_partition_equals_a_loop():
  grid, (wt, wh, ww) = (4, 4, 6), (2, 2, 3)
  x = np.random.default_rng(0).normal(size=(2, *grid, 3)).astype(np.float32)
  expected = []
  for h in range(0, 4, wh):
    for t in range(0, 4, wt):
      for w in range(0, 6, ww):
        expected.append(x[:, t : t + wt, h : h + wh, w : w + ww].reshape(2, -1, 3))
  got = partition(jnp.asarray(x), (wt, wh, ww))
  np.testing.assert_array_equal(got, np.stack(expected, 1))
  assert num_windows(grid, (wt, wh, ww)) == len(expected)


def test_a_window_that_does_not_fit_names_those_that_would():
  with pytest.raises(
    ValueError, match=r"width: got 5 for 16 tokens; expected one of \[1, 2, 4, 8, 16\]"
  ):
    check_window((5, 16, 16), (5, 8, 5))
