"""Non-overlapping windows of the token grid (Section 4.2), and the cells that both kinds of window consist of.

A spatial window is 1 x h_p x w_p (all tokens of one latent frame), a spatiotemporal window (1 + t) x h' x w'. Any size
that divides the grid is allowed.

A cell is the largest patch of one frame that no window splits: h'' x w'' tokens, the greatest common divisors of the
sizes of both windows. The layers hold the tokens by cells, [B, H, W, t, m, D] with H x W cells of m tokens per frame.
A window of either kind is then a block of the array, (frames, cells along the height, cells along the width). Tokens
are reordered once before the first layer and once after the last.
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
  """(height, width) in tokens of the largest patch of a frame that divides all windows."""
  return math.gcd(*(window[1] for window in windows)), math.gcd(*(window[2] for window in windows))


def in_cells(window: Window, cell: Cell) -> Window:
  """Converts a window in tokens to (frames, cells along the height, cells along the width)."""
  return window[0], window[1] // cell[0], window[2] // cell[1]


def to_cells(
  tokens: Shaped[Array, "B t h w *rest"], cell: Cell
) -> Shaped[Array, "B H W t m *rest"]:
  """[B, t, h, w, ...] -> [B, H, W, t, m, ...]; tokens of a cell run over height, then width.

  Raises:
    ValueError: if the cell does not divide the grid.
  """
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
  """Number of windows that tile the grid; both sizes in tokens, or both in cells."""
  check_window(grid, window)
  return (grid[0] // window[0]) * (grid[1] // window[1]) * (grid[2] // window[2])


def partition(
  cells: Shaped[Array, "B H W t m *rest"], window: Window
) -> Shaped[Array, "B n M *rest"]:
  """Splits cells into windows (size in cells): [B, H, W, t, m, ...] -> [B, windows, tokens per window, ...].

  Windows run over height, then time, then width, so that a grid whose height is sharded over devices gives windows that
  are sharded in the same way. Tokens of a window run over cells (height, width), then frames, then within a cell.
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
  """The inverse of `partition`; grid is (t, H, W) in cells.

  Raises:
    ValueError: if the windows do not tile the grid.
  """
  count = num_windows(grid, window)
  batch, n, tokens, *rest = windows.shape
  (t, rows, columns), (wt, nh, nw) = grid, window
  if n != count or tokens % (wt * nh * nw):
    raise ValueError(
      f"merge got {n} windows of {tokens} tokens, which do not tile grid {grid} with windows {window}"
    )
  m = tokens // (wt * nh * nw)
  split = windows.reshape(batch, rows // nh, t // wt, columns // nw, nh, nw, wt, m, *rest)
  split = jnp.transpose(split, (0, 1, 4, 3, 5, 2, 6, 7, *range(8, 8 + len(rest))))
  return split.reshape(batch, rows, columns, t, m, *rest)
