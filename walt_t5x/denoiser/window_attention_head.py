"""One head of one window in the core's memory: query-key norm, scores and softmax of the input blocks.

Both passes of the kernel compute this; the backward pass recomputes it instead of reading it from memory.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from walt_t5x.denoiser.window_attention_shape import Shape

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
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(centred * centred, axis=-1, keepdims=True)
    self.inverse = jax.lax.rsqrt(variance + _EPSILON)
    self.normal = centred * self.inverse
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
  """Sum of the arrays."""
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
      return given[name][...] if shape.norm else None

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


def each_head(shape: Shape, groups: int) -> Iterator[tuple[int, int]]:
  """(group in the block, head in the group) for every head of a step that holds `groups` groups."""
  return ((n, head) for n in range(groups) for head in range(shape.group))
