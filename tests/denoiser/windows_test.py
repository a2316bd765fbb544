"""Cells and windows compared with a loop."""

import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from walt_t5x.denoiser.windows import (
  check_window,
  common_cell,
  from_cells,
  in_cells,
  merge,
  num_windows,
  partition,
  to_cells,
)


@pytest.mark.parametrize(
  "grid, windows",
  [
    ((5, 8, 8), ((1, 8, 8), (5, 4, 4))),
    ((3, 4, 6), ((1, 4, 6), (3, 2, 6))),
    ((2, 4, 6), ((2, 1, 3), (1, 4, 2))),
  ],
)
def test_partition_then_merge_is_the_identity(grid, windows):
  x = jnp.arange(2 * np.prod(grid) * 3).reshape(2, *grid, 3)
  cell = common_cell(*windows)
  cells = to_cells(x, cell)
  np.testing.assert_array_equal(from_cells(cells, cell), x)
  in_grid = (grid[0], *cells.shape[1:3])
  for window in windows:
    small = in_cells(window, cell)
    np.testing.assert_array_equal(merge(partition(cells, small), in_grid, small), cells)


def test_partition_equals_a_loop():
  (wt, wh, ww), (ch, cw) = (2, 2, 6), (1, 3)
  x = np.random.default_rng(0).normal(size=(2, 4, 4, 12, 3)).astype(np.float32)
  expected = []
  for h in range(0, 4, wh):
    for t in range(0, 4, wt):
      for w in range(0, 12, ww):
        of_window = []
        for row in range(h, h + wh, ch):
          for column in range(w, w + ww, cw):
            for frame in range(t, t + wt):
              of_window.append(x[:, frame, row : row + ch, column : column + cw].reshape(2, -1, 3))
        expected.append(np.concatenate(of_window, 1))
  window = in_cells((wt, wh, ww), (ch, cw))
  assert window == (2, 2, 2)
  got = partition(to_cells(jnp.asarray(x), (ch, cw)), window)
  np.testing.assert_array_equal(got, np.stack(expected, 1))
  assert num_windows((4, 4, 12), (wt, wh, ww)) == len(expected)


@pytest.mark.parametrize("rest", [(), (3, 2)])
def test_reordering_keeps_trailing_axes_with_their_token(rest):
  grid, cell, window = (2, 4, 6), (2, 3), (2, 1, 2)
  numbers = np.arange(2 * np.prod(grid)).reshape(2, *grid)
  # The k-th value of token n is n + 1000 k.
  offsets = 1000 * np.arange(np.prod(rest, dtype=int)).reshape(rest)
  x = numbers.reshape(*numbers.shape, *(1 for _ in rest)) + offsets
  plain, carried = (to_cells(jnp.asarray(a), cell) for a in (numbers, x))
  assert plain.shape == (2, 2, 2, 2, 6)
  by_hand = np.asarray(plain).reshape(*plain.shape, *(1 for _ in rest)) + offsets
  np.testing.assert_array_equal(carried, by_hand)
  np.testing.assert_array_equal(from_cells(carried, cell), x)
  plain, cut = partition(plain, window), partition(carried, window)
  assert plain.shape == (2, 2, 24)
  by_hand = np.asarray(plain).reshape(*plain.shape, *(1 for _ in rest)) + offsets
  np.testing.assert_array_equal(cut, by_hand)
  np.testing.assert_array_equal(merge(cut, (2, 2, 2), window), carried)


def test_windows_that_do_not_tile_the_grid_raise():
  grid, window = (2, 4, 4), (2, 2, 2)
  assert num_windows(grid, window) == 4 and num_windows((6, 4, 10), (3, 4, 2)) == 10
  good = jnp.zeros((1, 4, 24, 1))
  assert merge(good, grid, window).shape == (1, 4, 4, 2, 3, 1)
  for windows in (good[:, :3], good[:, :, :23], good[:, :, :20], jnp.zeros((1, 5, 24, 1))):
    with pytest.raises(ValueError, match="merge got"):
      merge(windows, grid, window)
  for size in (0, -1, 3, 8):
    for axis, name in enumerate(("time", "height", "width")):
      other = tuple(size if a == axis else 1 for a in range(3))
      with pytest.raises(ValueError, match=f"along {name}: got {size} for 4 tokens"):
        num_windows((4, 4, 4), other)
  with pytest.raises(ValueError, match="along height: got 3"):
    to_cells(jnp.zeros((1, 1, 4, 4)), (3, 2))


@pytest.mark.parametrize("window", [(1, 4), (1, 4, 4, 1)])
def test_a_window_with_another_number_of_axes_raises(window, monkeypatch):
  # As in a program, where annotations are not checked.
  monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
  with pytest.raises(ValueError, match="argument"):
    check_window((4, 4, 4), window)


def test_common_cell_divides_all_windows():
  assert common_cell((1, 16, 28), (5, 8, 14)) == (8, 14)
  assert common_cell((1, 6, 4), (3, 4, 8)) == (2, 4)


def test_the_error_for_a_window_lists_the_sizes_that_fit():
  with pytest.raises(
    ValueError, match=r"width: got 5 for 16 tokens; expected one of \[1, 2, 4, 8, 16\]"
  ):
    check_window((5, 16, 16), (5, 8, 5))
