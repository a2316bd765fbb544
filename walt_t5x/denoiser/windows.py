"""Non-overlapping windows of the token grid (Section 4.2), and the cells that both kinds of window are made of.

A spatial window is 1 x h_p x w_p (all tokens of one latent frame), a spatiotemporal window (1 + t) x h' x w'. Any size
that divides the grid is legal.

A cell is the patch of one frame that no window cuts: h'' x w'' tokens, the common divisors of both windows. The layers
hold the tokens by cells, [B, H, W, t, m, D] with H x W cells of m tokens a frame, so that a window of either kind is a
block of the array, (frames, cells along the height, cells along the width), and its tokens lie together. The order is
made once where tokens enter the layers and undone once where they leave.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Shaped

Window = tuple[int, int, int]
Cell = tuple[int, int]


def _divisors(number: int) -> list[int]:
  return [n for n in range(1, number + 1) if number % n == 0]


def check_window(grid: Sequence[int], window: Sequence[int]) -> None:
  """Raises ValueError, with the sizes that would fit, unless `window` divides `grid` along each axis."""
  for axis, length, size in zip(("time", "height", "width"), grid, window, strict=True):
    if size < 1 or length % size:
      raise ValueError(
        f"window {window} does not divide the token grid {grid} along {axis}: got {size} for {length} tokens; "
        f"expected one of {_divisors(length)}. Set WaltDenoiser.spatial_window / spatiotemporal_window."
      )


def common_cell(*windows: Window) -> Cell:
  """The largest patch of a frame of which all windows are made."""
  return math.gcd(*(window[1] for window in windows)), math.gcd(*(window[2] for window in windows))


def in_cells(window: Window, cell: Cell) -> Window:
  """A window in (frames, cells along the height, cells along the width)."""
  return window[0], window[1] // cell[0], window[2] // cell[1]


def to_cells(
  tokens: Shaped[Array, "B t h w *rest"], cell: Cell
) -> Shaped[Array, "B H W t m *rest"]:
  """[B, t, h, w, ...] -> [B, H, W, t, m, ...]; tokens of a cell run over height, then width."""
  batch, t, h, w, *rest = tokens.shape
  check_window((t, h, w), (1, *cell))
  split = tokens.reshape(batch, t, h // cell[0], cell[0], w // cell[1], cell[1], *rest)
  split = jnp.transpose(split, (0, 2, 4, 1, 3, 5, *range(6, 6 + len(rest))))
  return split.reshape(batch, h // cell[0], w // cell[1], t, cell[0] * cell[1], *rest)


def from_cells(
  cells: Shaped[Array, "B H W t m *rest"], cell: Cell
) -> Shaped[Array, "B t h w *rest"]:
  """The inverse of `to_cells`."""
  batch, rows, columns, t, _, *rest = cells.shape
  split = cells.reshape(batch, rows, columns, t, *cell, *rest)
  split = jnp.transpose(split, (0, 3, 1, 4, 2, 5, *range(6, 6 + len(rest))))
  return split.reshape(batch, t, rows * cell[0], columns * cell[1], *rest)


def num_windows(grid: Window, window: Window) -> int:
  """How many windows tile the grid; both in tokens, or both in cells."""
  check_window(grid, window)
  return (grid[0] // window[0]) * (grid[1] // window[1]) * (grid[2] // window[2])


def partition(
  cells: Shaped[Array, "B H W t m *rest"], window: Window
) -> Shaped[Array, "B n M *rest"]:
  """Cuts windows, in cells: [B, H, W, t, m, ...] -> [B, windows, tokens of a window, ...].

  Windows run over height, then time, then width, so that a grid whose height is split over devices gives windows that
  are split likewise; tokens of a window run over cells (height, width), frames, and within a cell.
  """
  batch, rows, columns, t, m, *rest = cells.shape
  count = num_windows((t, rows, columns), window)
  wt, nh, nw = window
  split = cells.reshape(batch, rows // nh, nh, columns // nw, nw, t // wt, wt, m, *rest)
  split = jnp.transpose(split, (0, 1, 5, 3, 2, 4, 6, 7, *range(8, 8 + len(rest))))
  return split.reshape(batch, count, nh * nw * wt * m, *rest)


def merge(
  windows: Shaped[Array, "B n M *rest"], grid: Window, window: Window
) -> Shaped[Array, "B H W t m *rest"]:
  """The inverse of `partition`; grid is (t, H, W) in cells."""
  count = num_windows(grid, window)
  batch, n, tokens, *rest = windows.shape
  (t, rows, columns), (wt, nh, nw) = grid, window
  if n != count or tokens % (wt * nh * nw):
    raise ValueError(
      f"merge got {n} windows of {tokens} tokens for a grid {grid} in windows {window}"
    )
  m = tokens // (wt * nh * nw)
  split = windows.reshape(batch, rows // nh, t // wt, columns // nw, nh, nw, wt, m, *rest)
  split = jnp.transpose(split, (0, 1, 4, 3, 5, 2, 6, 7, *range(8, 8 + len(rest))))
  return split.reshape(batch, rows, columns, t, m, *rest)
