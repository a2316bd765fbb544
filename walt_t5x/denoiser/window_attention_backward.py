"""The backward pass of the fused window attention: one step of the kernel's grid.

Each window writes the gradients of its queries, keys and values. The gradients of the bias and the scales are sums
over all examples and windows of a head, those of the text's keys and values sums over the windows that attend to the
text. These sums stay in the core's memory from the first step that adds to them, which clears them, to the last.
"""

from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl

from walt_t5x.denoiser.window_attention_head import Head, dot, each_head, total
from walt_t5x.denoiser.window_attention_shape import Shape


def body(shape: Shape, groups: int, images: Any, given: Any, written: Any) -> None:
  """Args:

  shape: static sizes of the call.
  groups: number of groups of heads in the step's blocks.
  images: prefetched [B]; nonzero for examples that return their values.
  given: input blocks by argument name; "out" is the cotangent of the result.
  written: blocks of the gradients, by argument name.
  """
  image = images[pl.program_id(1)] != 0
  row, time, height, width = (pl.program_id(n) for n in range(1, 5))
  first_of_text = (height == 0) & (width == 0)
  if shape.texts == 1:
    first_of_text &= time == 0
  first = (row == 0) & (time == 0) & (height == 0) & (width == 0)
  for names, begins in (
    (("text_key", "text_value"), first_of_text),
    (("bias", "query_scale", "key_scale"), first),
  ):
    present = [written[name] for name in names if name in written]
    if present:

      @pl.when(begins)
      def _clear(present=present):
        for ref in present:
          ref[...] = jnp.zeros_like(ref)

  @pl.when(image)
  def _pass_through():
    written["value"][...] = given["out"][...]
    for name in ("query", "key"):
      written[name][...] = jnp.zeros_like(written[name])

  @pl.when(jnp.logical_not(image))
  def _attend():
    for group, number in each_head(shape, groups):
      _head_gradients(Head(shape, given, group, number), given, written, number)


def _head_gradients(head: Head, given: Any, written: Any, number: int) -> None:
  dtype = head.values[0].dtype
  of_out = head.read(given["out"])
  weights = [w * head.inverse for w in head.weights]
  of_weights = [dot(of_out, v, (1, 1)) for v in head.values]
  along = total(
    [jnp.sum(w * d, axis=-1, keepdims=True) for w, d in zip(weights, of_weights, strict=True)]
  )
  of_scores = [w * (d - along) for w, d in zip(weights, of_weights, strict=True)]
  if "bias" in written:
    written["bias"][head.group, number] += of_scores[0]
  low = [s.astype(dtype) for s in of_scores]
  of_values = [dot(w.astype(dtype), of_out, (0, 0)) for w in weights]
  of_keys = [dot(s, head.query.product, (0, 0)) for s in low]
  of_query = total([dot(s, k.product, (1, 0)) for s, k in zip(low, head.keys, strict=True)])
  query, query_scale = head.query.gradients(of_query)
  keys = [k.gradients(d) for k, d in zip(head.keys, of_keys, strict=True)]
  head.write(written["query"], query)
  head.write(written["key"], keys[0][0])
  head.write(written["value"], of_values[0])
  if head.text:
    head.add_text(written["text_key"], keys[1][0])
    head.add_text(written["text_value"], of_values[1])
  if query_scale is not None:
    written["query_scale"][...] += query_scale
    written["key_scale"][...] += total([scale for _, scale in keys if scale is not None])
