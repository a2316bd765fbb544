"""Attention within windows of cells, with two implementations of the same function.

"einsum": plain operations, on every platform. "pallas": the fused TPU kernel (window_attention_kernel.py; interpreted
on other platforms). "auto" uses the kernel if the step is compiled for TPU and the kernel supports the shapes.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from walt_t5x.denoiser.kernels import window_attention_kernel, window_attention_shape
from walt_t5x.denoiser.layers import scale_norm
from walt_t5x.denoiser.windows import Window, merge, partition
from walt_t5x.sharding import constraints

IMPLEMENTATIONS = ("auto", "einsum", "pallas")
# Logical names of [B, H, W, T, m, heads, d].
HEADS = ("batch", "height", "width", "frames", None, "heads", None)
TEXT = ("batch", "frames", None, "heads", None)


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
    query, key, value: [..., tokens, K, d] with equal leading axes.
    bias: broadcastable to the scores [..., K, q, k].
    mask: broadcastable to the scores, True where a query may attend to a key. A query without any key gets a uniform
      average; in this model a query always attends to its own window.
  """
  scores = jnp.einsum("...qhd,...khd->...hqk", query / np.sqrt(query.shape[-1]), key)
  scores = scores.astype(jnp.float32)
  if bias is not None:
    scores = scores + bias
  if mask is not None:
    scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
  weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
  return jnp.einsum("...hqk,...khd->...qhd", weights, value)


def choose(
  implementation: str,
  *,
  num_heads: int,
  head_size: int,
  cells: tuple[int, int],
  cell_tokens: int,
  window: Window,
  dtype: Any,
) -> tuple[str, int]:
  """Returns ("einsum" or "pallas", the number g of heads that share the lanes of an array).

  Sizes are K and d, cells (H, W) per frame, m tokens per cell, and a window in cells. Raises ValueError for an unknown
  implementation, or for "pallas" if the kernel does not support the shapes.
  """
  if implementation not in IMPLEMENTATIONS:
    raise ValueError(
      f"WaltDenoiser.attention_implementation={implementation!r}: expected one of {IMPLEMENTATIONS}"
    )
  on_tpu = constraints.platform() == "tpu"
  if implementation == "einsum" or (implementation == "auto" and not on_tpu):
    return "einsum", 1
  reason = ""
  if on_tpu:
    tokens = math.prod(window) * cell_tokens
    reason = window_attention_shape.unsupported(tokens, cell_tokens, head_size, dtype)
  heights, heads = constraints.parts((cells[0], num_heads), ("height", "heads"))
  if cells[0] // heights % window[1]:
    reason = (
      f"windows of {window[1]} cells over a height of {cells[0]} split over {heights} devices"
    )
  if reason and implementation == "pallas":
    raise ValueError(
      f'WaltDenoiser.attention_implementation="pallas" does not support {reason}; set "auto" or "einsum"'
    )
  if reason:
    return "einsum", 1
  return "pallas", window_attention_shape.heads_in_lanes(num_heads // heads, head_size)


def window_attention(
  query: Float[Array, "B H W T m G gd"],
  key: Float[Array, "B H W T m G gd"],
  value: Float[Array, "B H W T m G gd"],
  *,
  implementation: str,
  window: Window,
  group: int = 1,
  query_scale: Float[Array, " d"] | None = None,
  key_scale: Float[Array, " d"] | None = None,
  bias: Float[Array, "K M M"] | None = None,
  text_key: Float[Array, "B F L G gd"] | None = None,
  text_value: Float[Array, "B F L G gd"] | None = None,
  text_mask: Bool[Array, "B F L"] | None = None,
  is_image: Bool[Array, " B"] | None = None,
) -> Float[Array, "B H W T m G gd"]:
  """softmax(LN(q) LN([k; k_text])^T / sqrt(d) + bias) [v; v_text] in each window, for each head.

  Args:
    query, key, value: projections [B, H, W, T, m, G, g d]; K = G g heads of size d, g of them share the last axis.
    implementation: "einsum" or "pallas", as returned by `choose`.
    window: in cells.
    group: g.
    query_scale, key_scale: [d], of the query-key norm; None without one.
    bias: [K, M, M], tokens in the order of `windows.partition`.
    text_key, text_value, text_mask: [B, F, L, ...], additional keys and values. All tokens of an example (F = 1), or
      of the windows at one position in time (F = T / window[0]), attend to them. The mask is True on tokens.
    is_image: [B]; for these examples the values are returned instead of the attention.

  Returns:
    [B, H, W, T, m, G, g d].
  """
  named: dict[str, tuple[Array | None, Sequence[str | None]]] = {
    "query": (query, HEADS),
    "key": (key, HEADS),
    "value": (value, HEADS),
    "query_scale": (query_scale, (None,)),
    "key_scale": (key_scale, (None,)),
    "bias": (bias, ("heads", None, None)),
    "text_key": (text_key, TEXT),
    "text_value": (text_value, TEXT),
    "text_mask": (text_mask, TEXT[:3]),
    "is_image": (is_image, ("batch",)),
  }
  arrays = {name: (a, axes) for name, (a, axes) in named.items() if a is not None}
  if implementation == "einsum":
    return _einsum({name: a for name, (a, _) in arrays.items()}, window)
  interpret = constraints.platform() != "tpu"

  def kernel(given: dict[str, Array]) -> Array:
    # The kernel expects heads before the cells. XLA gives the projections that layout; nothing is moved.
    for name, (_, axes) in arrays.items():
      if axes in (HEADS, TEXT):
        given[name] = jnp.moveaxis(given[name], -2, 1 if axes == HEADS else 2)
    out = window_attention_kernel.fused_window_attention(
      **given, window=window, group=group, interpret=interpret
    )
    return jnp.moveaxis(out, 1, -2)

  # Named, so that a remat policy can save it: with it and q, k, v the backward pass does not run the forward kernel.
  return checkpoint_name(constraints.on_each_device(kernel, arrays, HEADS), "window_attention")


def _einsum(given: Mapping[str, Array], window: Window) -> Array:
  batch, rows, columns, frames, *_ = given["query"].shape
  q, k, v = (partition(given[name], window) for name in ("query", "key", "value"))
  mask = None
  if "text_key" in given:
    of_grid = (batch, rows // window[1], frames // window[0], columns // window[2])

    def of_windows(name: str) -> Array:
      # [B, F, ...] -> [B, n, ...] in the order of the windows. The text is projected before this, once per example.
      rest = given[name].shape[2:]
      per_window = jnp.broadcast_to(given[name][:, None, :, None], (*of_grid, *rest))
      return per_window.reshape(batch, -1, *rest)

    k = jnp.concatenate([k, of_windows("text_key")], axis=2)
    v = jnp.concatenate([v, of_windows("text_value")], axis=2)
    visible = jnp.concatenate([jnp.ones(q.shape[:3], bool), of_windows("text_mask")], axis=-1)
    mask = visible[:, :, None, None, :]
  if "query_scale" in given:
    q, k = scale_norm(q, given["query_scale"]), scale_norm(k, given["key_scale"])
  out = merge(attend(q, k, v, bias=given.get("bias"), mask=mask), (frames, rows, columns), window)
  if "is_image" in given:
    out = jnp.where(given["is_image"].reshape(-1, *[1] * 6), given["value"], out)
  return out
