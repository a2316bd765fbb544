"""Window self-attention and spatial cross-attention (Section 4.2, 4.3, Fig. 2).

Scores are computed in the activations' dtype, the softmax in float32. Queries and keys pass through a LayerNorm over
the head dimension (query-key norm) unless `qk_norm` is False (Table 3e). `window_attention` computes the attention;
this module holds the projections around it.

Both layers take the tokens by cells, [B, H, W, t, m, D], if `cell` is set, else as the grid [B, t, h, w, D].
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.partitioning import param_with_axes
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from walt_t5x.denoiser.layers import Linear, ScaleNorm, embedding_init
from walt_t5x.denoiser.window_attention import choose, window_attention
from walt_t5x.denoiser.windows import Cell, Window, from_cells, in_cells, to_cells


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
  """Bias added to the attention scores of every window: float32 [heads, m, m], in the order of the index.

  One table per layer. Source: Swin (2103.14030), Section 3.2.
  """

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


class _Projections(nn.Module):
  """What both attention layers share: fields, projections to heads, and the choice of the implementation.

  Attributes:
    window: (wt, wh, ww) in tokens.
    num_heads: K; must divide the width.
    qk_norm: apply a LayerNorm to queries and keys.
    implementation: "auto", "einsum" or "pallas"; see `window_attention`.
    cell: (height, width) of a cell, in tokens; None for tokens in grid order.
    adapter_rank: > 0 adds low-rank adapters to the projections.
    dtype: of the activations.
  """

  window: Window
  num_heads: int
  qk_norm: bool = True
  implementation: str = "auto"
  cell: Cell | None = None
  adapter_rank: int = 0
  dtype: DTypeLike = jnp.float32

  def _in_cells(self, x: Array) -> tuple[Array, Callable[[Array], Array], Cell]:
    """(tokens by cells, a function that restores the order of x, the cell)."""
    if self.cell is not None:
      return x, lambda cells: cells, self.cell
    cell = self.window[1:]
    return to_cells(x, cell), lambda cells: from_cells(cells, cell), cell

  def _choose(self, cells: Array, window: Window) -> tuple[str, tuple[int, int], int]:
    """(implementation, (G, g d): head axes of a projection's result, g)."""
    head_size = cells.shape[-1] // self.num_heads
    implementation, group = choose(
      self.implementation,
      num_heads=self.num_heads,
      head_size=head_size,
      cells=(cells.shape[1], cells.shape[2]),
      cell_tokens=cells.shape[4],
      window=window,
      dtype=self.dtype,
    )
    return implementation, (self.num_heads // group, group * head_size), group

  def _projection(self, name: str, width: int, heads: tuple[int, int]) -> Callable[[Array], Array]:
    features = (self.num_heads, width // self.num_heads)
    linear = Linear(
      features,
      axes=("embed", "heads", "kv"),
      adapter_rank=self.adapter_rank,
      dtype=self.dtype,
      name=name,
    )
    return linear.function((width,), heads)

  def _scales(self, head_size: int) -> dict[str, Array]:
    if not self.qk_norm:
      return {}
    names = ("query", "key")
    return {f"{name}_scale": ScaleNorm(name=f"{name}_norm").parameter(head_size) for name in names}

  def _out(self, attended: Array, width: int) -> Array:
    features = (self.num_heads, width // self.num_heads)
    linear = Linear(
      (width,),
      axes=("heads", "kv", "embed"),
      adapter_rank=self.adapter_rank,
      dtype=self.dtype,
      name="out",
    )
    return linear.function(features)(attended)


class WindowAttention(_Projections):
  """Self-attention within the windows of the grid, with a relative position bias.

  Examples that are stacks of images do not attend in a window that spans time: their values pass through to the output
  projection (the paper's identity mask), so that an image never sees its neighbor in the stack. The cost of such
  examples:

    all examples are images (`all_images`): the value and output projections, nothing else;
    mixed batch, kernel: the four projections; the kernel copies the example's values;
    mixed batch, einsum, image_rows = "select": all examples attend in one batch and the result of images is replaced;
    mixed batch, einsum, image_rows = "skip": one example after another; an image runs its two projections only. Use
      it where all examples are on one device: a loop over a sharded batch would gather the batch.

  Attributes:
    relative_bias: add the learned relative position bias.
    image_rows: how a mixed batch computes its images, "select" or "skip".
  """

  relative_bias: bool = True
  image_rows: str = "select"

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B *cells D"],
    is_image: Bool[Array, " B"] | None = None,
    *,
    all_images: bool = False,
  ) -> Float[Array, "B *cells D"]:
    cells, back, cell = self._in_cells(x)
    width, window = x.shape[-1], in_cells(self.window, cell)
    implementation, heads, group = self._choose(cells, window)
    query, key, value = (self._projection(name, width, heads) for name in ("query", "key", "value"))
    given = self._scales(width // self.num_heads)
    if self.relative_bias:
      bias = RelativePositionBias(self.window, self.num_heads, cell, name="relative_position_bias")
      given["bias"] = bias()

    def attend_in_windows(rows: Array, is_image: Array | None = None) -> Array:
      return window_attention(
        query(rows),
        key(rows),
        value(rows),
        implementation=implementation,
        window=window,
        group=group,
        is_image=is_image,
        **given,
      )

    if self.image_rows not in ("select", "skip"):
      raise ValueError(f"WaltDenoiser.image_rows={self.image_rows!r}: expected 'select' or 'skip'")
    if all_images and window[0] > 1:
      attended = value(cells)
    elif is_image is None or window[0] == 1:
      attended = attend_in_windows(cells)
    elif self.image_rows == "select" or implementation == "pallas":
      attended = attend_in_windows(cells, is_image)
    else:
      attended = jax.lax.map(
        lambda row: jax.lax.cond(row[0], value, attend_in_windows, row[1][None])[0],
        (is_image, cells),
      )
    return back(self._out(attended, width))


class CrossAttention(_Projections):
  """Cross-attention in windows: keys and values are the query tokens of the window, then the text (Fig. 2).

  With a spatial window (the paper's choice for joint training on images and videos) the text may differ per frame: one
  text per example (a video: axis t_text of length 1) or one per frame (a stack of images: length t). A window that
  spans all of time (the paper's choice for videos alone) takes one text per example.
  """

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B *cells D"],
    text: Float[Array, "B t_text L D"],
    text_mask: Bool[Array, "B t_text L"],
  ) -> Float[Array, "B *cells D"]:
    cells, back, cell = self._in_cells(x)
    width, window = x.shape[-1], in_cells(self.window, cell)
    if text.shape[1] not in (1, cells.shape[3] // window[0]):
      raise ValueError(
        f"cross-attention in windows {tuple(self.window)} got {text.shape[1]} texts per example, expected 1. Images "
        'with one text each need WaltDenoiser.cross_attention = "spatial".'
      )
    implementation, heads, group = self._choose(cells, window)
    query, key, value = (self._projection(name, width, heads) for name in ("query", "key", "value"))
    attended = window_attention(
      query(cells),
      key(cells),
      value(cells),
      implementation=implementation,
      window=window,
      group=group,
      text_key=key(text),
      text_value=value(text),
      text_mask=text_mask,
      **self._scales(width // self.num_heads),
    )
    return back(self._out(attended, width))
