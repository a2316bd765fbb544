"""Window self-attention and spatial cross-attention (Section 4.2, 4.3, Fig. 2).

Scores are multiplied in the activations' dtype, softmax runs in float32. Queries and keys pass a LayerNorm over the
head dimension (query-key norm) unless `qk_norm` is off (Table 3e).
"""

import math

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
  projection (the paper's identity mask), so that an image never sees its neighbour in the stack.

  Attributes:
    window: (wt, wh, ww) in tokens.
    num_heads: K; divides the width.
    qk_norm: LayerNorm on queries and keys.
    relative_bias: add the learned relative position bias.
  """

  window: Window
  num_heads: int
  qk_norm: bool = True
  relative_bias: bool = True
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "B t h w D"], is_image: Bool[Array, "B"] | None = None
  ) -> Float[Array, "B t h w D"]:
    batch, *grid, width = x.shape
    heads = (self.num_heads, width // self.num_heads)

    def project(name: str) -> Array:
      return Linear(heads, axes=("embed", "heads", "kv"), dtype=self.dtype, name=name)(x)

    query, key, value = project("query"), project("key"), project("value")
    if self.qk_norm:
      query, key = ScaleNorm(name="query_norm")(query), ScaleNorm(name="key_norm")(key)
    bias = None
    if self.relative_bias:
      bias = RelativePositionBias(self.window, self.num_heads, name="relative_position_bias")()
    attended = attend(*(partition(a, self.window) for a in (query, key, value)), bias=bias)
    attended = merge(attended, tuple(grid), self.window)
    if is_image is not None and self.window[0] > 1:
      attended = jnp.where(is_image.reshape(batch, 1, 1, 1, 1, 1), value, attended)
    return Linear(
      (width,), axes=("heads", "kv", "embed"), num_input_axes=2, dtype=self.dtype, name="out"
    )(attended)


class CrossAttention(nn.Module):
  """Spatial cross-attention: keys and values are the query tokens of the same frame, then the text (Fig. 2).

  One text a row (a video: axis t_text of length 1) or one a frame (a stack of images: length t).
  """

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
    frames = x.reshape(batch, t, h * w, width)
    projections = {
      name: Linear(heads, axes=("embed", "heads", "kv"), dtype=self.dtype, name=name)
      for name in ("query", "key", "value")
    }
    norms = {"query": lambda a: a, "key": lambda a: a}
    if self.qk_norm:
      norms = {name: ScaleNorm(name=f"{name}_norm") for name in norms}

    def with_text(tokens: Array, of_text: Array) -> Array:
      # The text is projected once a row, before it is repeated over the frames of a video.
      of_text = jnp.broadcast_to(of_text, (batch, t, *of_text.shape[2:]))
      return jnp.concatenate([tokens, of_text], axis=2)

    query = norms["query"](projections["query"](frames))
    key = norms["key"](with_text(projections["key"](frames), projections["key"](text)))
    value = with_text(projections["value"](frames), projections["value"](text))
    visible = jnp.concatenate(
      [
        jnp.ones((batch, t, h * w), bool),
        jnp.broadcast_to(text_mask, (batch, t, text_mask.shape[-1])),
      ],
      axis=-1,
    )
    attended = attend(query, key, value, mask=visible[:, :, None, None, :])
    out = Linear(
      (width,), axes=("heads", "kv", "embed"), num_input_axes=2, dtype=self.dtype, name="out"
    )(attended)
    return out.reshape(x.shape)
