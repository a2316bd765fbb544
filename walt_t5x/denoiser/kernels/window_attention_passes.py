"""Both passes of the fused window attention: what one step of the kernel's grid computes in the core's memory.

A head's query-key norm, scores and softmax are computed by both; the backward pass recomputes them instead of reading
them from memory.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from walt_t5x.denoiser.kernels.window_attention_shape import Shape

_EPSILON = 1e-6


def dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
  """float32 product over axis contract[0] of a and contract[1] of b."""
  exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  return jax.lax.dot_general(
    a, b, (((contract[0],), (contract[1],)), ((), ())), precision=exact,
    preferred_element_type=jnp.float32,
  )  # fmt: skip


@dataclasses.dataclass
class HeadInput:
  """Queries or keys of one head, [M, d]: as projected (`raw`), and normalized and scaled for products (`product`)."""

  raw: jax.Array
  scale: jax.Array | None
  factor: float

  def __post_init__(self):
    dtype, x = self.raw.dtype, self.raw.astype(jnp.float32)
    if self.scale is None:
      self.product = (x * self.factor).astype(dtype)
      return
    centered = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(centered * centered, axis=-1, keepdims=True)
    self.inverse = jax.lax.rsqrt(variance + _EPSILON)
    self.normal = centered * self.inverse
    self.product = (self.normal * (self.scale * self.factor)).astype(dtype)

  def gradients(self, of_product: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """Gradients of `raw` and of the scale [1, d], from the float32 gradient of `product`."""
    if self.scale is None:
      return of_product * self.factor, None
    of_scale = jnp.sum(of_product * self.normal, axis=0, keepdims=True) * self.factor
    of_normal = of_product * (self.scale * self.factor)
    mean = jnp.mean(of_normal, axis=-1, keepdims=True)
    along = jnp.mean(of_normal * self.normal, axis=-1, keepdims=True)
    return self.inverse * (of_normal - mean - self.normal * along), of_scale


def total(parts: list[jax.Array]) -> jax.Array:
  return functools.reduce(jnp.add, parts)


def softmax(parts: list[jax.Array]) -> tuple[list[jax.Array], jax.Array]:
  """(exp(scores - max), 1 / sum) of scores whose keys are split over several arrays."""
  highest = functools.reduce(jnp.maximum, [jnp.max(s, axis=-1, keepdims=True) for s in parts])
  weights = [jnp.exp(s - highest) for s in parts]
  return weights, 1 / total([jnp.sum(w, axis=-1, keepdims=True) for w in weights])


class Head:
  """One head of one window: reads its blocks, computes scores and softmax."""

  def __init__(self, shape: Shape, given: Mapping[str, Any], group: int, head: int):
    self.lanes = slice(head * shape.head_size, (head + 1) * shape.head_size)
    self.flat = (shape.tokens, shape.head_size)
    self.group, self.text = group, bool(shape.texts)

    def scale(name):
      return given[name][...] if name in given else None

    self.query = HeadInput(self.read(given["query"]), scale("query_scale"), shape.head_size**-0.5)
    self.keys = [HeadInput(self.read(given["key"]), scale("key_scale"), 1.0)]
    self.values = [self.read(given["value"])]
    if self.text:
      self.keys.append(HeadInput(self.read_text(given["text_key"]), scale("key_scale"), 1.0))
      self.values.append(self.read_text(given["text_value"]))
    scores = [dot(self.query.product, k.product, (1, 1)) for k in self.keys]
    if shape.bias:
      scores[0] = scores[0] + given["bias"][group, head]
    if self.text:
      scores[1] = scores[1] + given["text_bias"][0, 0]
    self.weights, self.inverse = softmax(scores)

  def read(self, ref: Any) -> jax.Array:
    """[M, d] of this head."""
    return ref[0, self.group, :, :, :, :, self.lanes].reshape(self.flat)

  def read_text(self, ref: Any) -> jax.Array:
    """[L, d] of this head."""
    return ref[0, 0, self.group, :, self.lanes]

  def write(self, ref: Any, rows: jax.Array) -> None:
    block = ref.shape[2:6]
    ref[0, self.group, :, :, :, :, self.lanes] = rows.reshape(*block, -1).astype(ref.dtype)

  def add_text(self, ref: Any, rows: jax.Array) -> None:
    ref[0, 0, self.group, :, self.lanes] += rows


def forward(shape: Shape, groups: int, images: Any, given: Any, written: Any) -> None:
  """One step of the grid of the forward pass.

  Args:
    shape: static sizes of the call.
    groups: number of groups of heads in the step's blocks.
    images: prefetched [B]; nonzero for examples that return their values.
    given, written: input and output blocks by name.
  """
  image = images[pl.program_id(1)] != 0
  out = written["out"]

  @pl.when(image)
  def _pass_through():
    out[...] = given["value"][...]

  @pl.when(jnp.logical_not(image))
  def _attend():
    for group, number in itertools.product(range(groups), range(shape.group)):
      head = Head(shape, given, group, number)
      products = [
        dot(w.astype(v.dtype), v, (1, 0)) for w, v in zip(head.weights, head.values, strict=True)
      ]
      head.write(out, sum(products) * head.inverse)


def backward(shape: Shape, groups: int, images: Any, given: Any, written: Any) -> None:
  """One step of the grid of the backward pass.

  Each window writes the gradients of its queries, keys and values. The gradients of the bias and the scales are sums
  over all examples and windows of a head, those of the text's keys and values sums over the windows that attend to the
  text. These sums stay in the core's memory from the first step that adds to them, which clears them, to the last.

  Arguments are those of `forward`: "out" of `given` is the cotangent of the result, and `written` has the gradients.
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
    for group, number in itertools.product(range(groups), range(shape.group)):
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
