"""Non-overlapping windows of the token grid (Section 4.2).

A spatial window is 1 x h_p x w_p (all tokens of one latent frame), a spatiotemporal window (1 + t) x h' x w'. Any size
that divides the grid is legal.
"""

import jax.numpy as jnp
from jaxtyping import Array, Shaped

Window = tuple[int, int, int]


def _divisors(number: int) -> list[int]:
  return [n for n in range(1, number + 1) if number % n == 0]


def check_window(grid: Window, window: Window) -> None:
  """Raises ValueError, with the sizes that would fit, unless `window` divides `grid` along each axis."""
  for axis, length, size in zip(("time", "height", "width"), grid, window, strict=True):
    if size < 1 or length % size:
      raise ValueError(
        f"window {window} does not divide the token grid {grid} along {axis}: got {size} for {length} tokens; "
        f"expected one of {_divisors(length)}. Set WaltDenoiser.spatial_window / spatiotemporal_window."
      )


def num_windows(grid: Window, window: Window) -> int:
  """How many windows tile the grid."""
  check_window(grid, window)
  return (grid[0] // window[0]) * (grid[1] // window[1]) * (grid[2] // window[2])


def partition(
  tokens: Shaped[Array, "B t h w *rest"], window: Window
) -> Shaped[Array, "B n m *rest"]:
  """Cuts the grid: [B, t, h, w, ...] -> [B, windows, tokens of a window, ...].

  Windows run over height, then time, then width, so that a grid whose height is split over devices gives windows that
  are split likewise; tokens of a window run over time, height, width.
  """
  batch, t, h, w, *rest = tokens.shape
  check_window((t, h, w), window)
  wt, wh, ww = window
  split = tokens.reshape(batch, t // wt, wt, h // wh, wh, w // ww, ww, *rest)
  rest_axes = range(7, 7 + len(rest))
  split = jnp.transpose(split, (0, 3, 1, 5, 2, 4, 6, *rest_axes))
  return split.reshape(batch, num_windows((t, h, w), window), wt * wh * ww, *rest)


def merge(
  windows: Shaped[Array, "B n m *rest"], grid: Window, window: Window
) -> Shaped[Array, "B t h w *rest"]:
  """The inverse of `partition`."""
  check_window(grid, window)
  batch, _, _, *rest = windows.shape
  (t, h, w), (wt, wh, ww) = grid, window
  split = windows.reshape(batch, h // wh, t // wt, w // ww, wt, wh, ww, *rest)
  rest_axes = range(7, 7 + len(rest))
  split = jnp.transpose(split, (0, 2, 4, 1, 5, 3, 6, *rest_axes))
  return split.reshape(batch, t, h, w, *rest)
