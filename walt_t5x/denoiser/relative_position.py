"""Relative position bias of a window, one table per layer (Swin, 2103.14030, Section 3.2; W.A.L.T Section 4.2)."""

import functools

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.partitioning import param_with_axes
from jaxtyping import Array, Float

from walt_t5x.denoiser.layers import embedding_init
from walt_t5x.denoiser.windows import Cell, Window


@functools.cache
def relative_position_index(window: Window, cell: Cell | None = None) -> np.ndarray:
  """Row of the table for each (query, key) pair: int32 [m, m], m = wt wh ww.

  The table has (2 wt - 1)(2 wh - 1)(2 ww - 1) rows, one per displacement query - key.

  Args:
    window: (wt, wh, ww) in tokens.
    cell: (height, width) in tokens, for tokens in the order of `windows.partition`; None for (t, h, w) order.
  """
  wt, wh, ww = window
  places = np.stack(np.meshgrid(np.arange(wt), np.arange(wh), np.arange(ww), indexing="ij"), -1)
  if cell is not None:
    places = places.reshape(wt, wh // cell[0], cell[0], ww // cell[1], cell[1], 3)
    places = places.transpose(1, 3, 0, 2, 4, 5)
  places = places.reshape(-1, 3)
  offset = places[:, None] - places[None, :] + np.array([wt - 1, wh - 1, ww - 1])
  rows = (offset[..., 0] * (2 * wh - 1) + offset[..., 1]) * (2 * ww - 1) + offset[..., 2]
  return rows.astype(np.int32)


class RelativePositionBias(nn.Module):
  """Bias added to the attention scores of every window: float32 [heads, m, m], in the order of the index."""

  window: Window
  num_heads: int
  cell: Cell | None = None

  @nn.compact
  def __call__(self) -> Float[Array, "K m m"]:
    wt, wh, ww = self.window
    table = param_with_axes(
      "table",
      embedding_init,
      ((2 * wt - 1) * (2 * wh - 1) * (2 * ww - 1), self.num_heads),
      jnp.float32,
      axes=("unmodeled", "heads"),
    )
    return jnp.moveaxis(table[relative_position_index(tuple(self.window), self.cell)], -1, 0)
