"""Window self-attention and spatial cross-attention (Section 4.2, 4.3, Fig. 2).

Scores are multiplied in the activations' dtype, softmax runs in float32. Queries and keys pass a LayerNorm over the
head dimension (query-key norm) unless `qk_norm` is off (Table 3e).
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from walt_t5x.denoiser.layers import Linear, ScaleNorm
from walt_t5x.denoiser.relative_position import RelativePositionBias
from walt_t5x.denoiser.windows import Window, merge, partition


def attend(
  query: Float[Array, "... q K d"],
  key: Float[Array, "... k K d"],
  value: Float[Array, "... k K d"],
  *,
  bias: Float[Array, "..."] | None = None,
  mask: Bool[Array, "..."] | None = None,
) -> Float[Array, "... q K d"]:
  """softmax(q k^T / sqrt(d) + bias) v.

  Args:
    query, key, value: heads next to last, leading axes alike.
    bias: broadcastable to the scores [..., K, q, k].
    mask: broadcastable to the scores, True where a key may be seen. A query without any key gets a uniform average;
      ours always see their own window.
  """
  scores = jnp.einsum("...qhd,...khd->...hqk", query / math.sqrt(query.shape[-1]), key)
  scores = scores.astype(jnp.float32)
  if bias is not None:
    scores = scores + bias
  if mask is not None:
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
  return jnp.einsum("...hqk,...khd->...qhd", weights, value)


class WindowAttention(nn.Module):
  """Self-attention within the windows of the grid, with a relative position bias.

  Rows that are stacks of images take no part in a window that spans time: their values pass through to the output
  projection (the paper's identity mask), so that an image never sees its neighbour in the stack. What such rows cost:

    the whole batch is images (`all_images`): the value and output projections, nothing else;
    mixed, image_rows = "select": all rows attend in one batch and the image rows' result is replaced;
    mixed, image_rows = "skip": row after row, and an image row runs its two projections only. For batches whose rows
      lie on one device: a loop over a sharded batch would gather it.

  Attributes:
    window: (wt, wh, ww) in tokens.
    num_heads: K; divides the width.
    qk_norm: LayerNorm on queries and keys.
    relative_bias: add the learned relative position bias.
    image_rows: "select" or "skip".
  """

  window: Window
  num_heads: int
  qk_norm: bool = True
  relative_bias: bool = True
  image_rows: str = "select"
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B t h w D"],
    is_image: Bool[Array, "B"] | None = None,
    *,
    all_images: bool = False,
  ) -> Float[Array, "B t h w D"]:
    batch, *grid, width = x.shape
    heads = (self.num_heads, width // self.num_heads)

    def projection(name: str) -> Callable[[Array], Array]:
      linear = Linear(heads, axes=("embed", "heads", "kv"), dtype=self.dtype, name=name)
      if not self.qk_norm or name == "value":
        return linear.function((width,))
      norm = ScaleNorm(name=f"{name}_norm").function(heads[-1])
      project = linear.function((width,))
      return lambda rows: norm(project(rows))

    query, key, value = (projection(name) for name in ("query", "key", "value"))
    bias = None
    if self.relative_bias:
      bias = RelativePositionBias(self.window, self.num_heads, name="relative_position_bias")()

    def attend_in_windows(rows: Array) -> Array:
      parts = (partition(f(rows), self.window) for f in (query, key, value))
      return merge(attend(*parts, bias=bias), tuple(grid), self.window)

    if all_images and self.window[0] > 1:
      attended = value(x)
    elif is_image is None or self.window[0] == 1:
      attended = attend_in_windows(x)
    elif self.image_rows == "select":
      attended = jnp.where(is_image.reshape(batch, 1, 1, 1, 1, 1), value(x), attend_in_windows(x))
    elif self.image_rows == "skip":
      attended = jax.lax.map(
        lambda row: jax.lax.cond(row[0], value, attend_in_windows, row[1][None])[0], (is_image, x)
      )
    else:
      raise ValueError(f"WaltDenoiser.image_rows={self.image_rows!r}: expected 'select' or 'skip'")
    return Linear(
      (width,), axes=("heads", "kv", "embed"), num_input_axes=2, dtype=self.dtype, name="out"
    )(attended)


class CrossAttention(nn.Module):
  """Cross-attention in windows: keys and values are the query tokens of the window, then the text (Fig. 2).

  With a spatial window (the paper's choice for images and videos together) the text may differ from frame to frame:
  one a row (a video: axis t_text of length 1) or one a frame (a stack of images: length t). A window that spans time
  (the paper's choice for videos alone) takes one text a row.

  Attributes:
    window: (wt, wh, ww) in tokens.
  """

  window: Window
  num_heads: int
  qk_norm: bool = True
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Float[Array, "B t h w D"],
    text: Float[Array, "B t_text L D"],
    text_mask: Bool[Array, "B t_text L"],
  ) -> Float[Array, "B t h w D"]:
    batch, t, h, w, width = x.shape
    heads = (self.num_heads, width // self.num_heads)
    windows = partition(x, self.window)
    frames = t // self.window[0]
    if text.shape[1] not in (1, frames):
      raise ValueError(
        f"cross-attention in windows {tuple(self.window)} got {text.shape[1]} texts a row: expected 1. Images with a "
        'text each need WaltDenoiser.cross_attention = "spatial".'
      )
    projections = {
      name: Linear(heads, axes=("embed", "heads", "kv"), dtype=self.dtype, name=name)
      for name in ("query", "key", "value")
    }
    norms = {"query": lambda a: a, "key": lambda a: a}
    if self.qk_norm:
      norms = {name: ScaleNorm(name=f"{name}_norm") for name in norms}

    def of_windows(per_text: Array) -> Array:
      # [B, t_text, ...] -> [B, n, ...] in the order of the windows. The text is projected once a row, before this.
      rest = per_text.shape[2:]
      of_grid = (batch, h // self.window[1], frames, w // self.window[2], *rest)
      return jnp.broadcast_to(per_text[:, None, :, None], of_grid).reshape(batch, -1, *rest)

    def with_text(tokens: Array, of_text: Array) -> Array:
      return jnp.concatenate([tokens, of_windows(of_text)], axis=2)

    query = norms["query"](projections["query"](windows))
    key = norms["key"](with_text(projections["key"](windows), projections["key"](text)))
    value = with_text(projections["value"](windows), projections["value"](text))
    visible = jnp.concatenate([jnp.ones(windows.shape[:3], bool), of_windows(text_mask)], axis=-1)
    attended = attend(query, key, value, mask=visible[:, :, None, None, :])
    out = Linear(
      (width,), axes=("heads", "kv", "embed"), num_input_axes=2, dtype=self.dtype, name="out"
    )(attended)
    return merge(out, (t, h, w), self.window)
