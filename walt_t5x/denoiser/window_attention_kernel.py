"""Fused window attention for TPU, forward and backward, as a Pallas kernel.

  o = softmax(LN_q(q) LN_k([k; k_text])^T / sqrt(d) + b) [v; v_text]

for each window and head. Tokens come in cells (walt_t5x/denoiser/windows.py), so a window is a block of the array: the
grid of the kernel walks over windows, its block indices cut them out of HBM, and nothing is transposed there. Scores,
softmax and query-key norm live in float32 in the core's memory and are computed again in the backward pass: what is
kept between the two is q, k and v as projected.

Heads lie before the cells, a group of them along the lanes: [B, G, H, W, T, m, g d], heads = G g. Groups of more than
one head fill the 128 lanes where d divides them (two heads of 64).

Checked in interpret mode against float64 numpy, and compiled by the TPU compiler; it has not run on hardware.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

Arrays = dict[str, jax.Array]

LANES = 128
MASKED = -1e30
_EPSILON = 1e-6
# Of the core's memory, what the blocks of one step may take: half of the smallest core (v5p: 64 MiB) with room for what
# the compiler adds.
_BLOCK_BYTES = 24 * 2**20
_VMEM_LIMIT = 56 * 2**20


@dataclasses.dataclass(frozen=True)
class Shape:
  """Static sizes of one call.

  Attributes:
    batch, groups, cells (H, W), frames T, cell_tokens m, lanes (g d): the axes of q.
    window: (frames, cells along the height, along the width).
    group: g, heads a group.
    texts, text_length: F and L of the text's keys; 0 without.
    norm, bias: whether there are query-key scales and a bias.
    dtype: of q.
  """

  batch: int
  groups: int
  cells: tuple[int, int]
  frames: int
  cell_tokens: int
  lanes: int
  window: tuple[int, int, int]
  group: int
  texts: int
  text_length: int
  norm: bool
  bias: bool
  dtype: str
  interpret: bool

  @property
  def head_size(self) -> int:
    return self.lanes // self.group

  @property
  def tokens(self) -> int:
    """Of a window."""
    return math.prod(self.window) * self.cell_tokens

  @property
  def windows(self) -> tuple[int, int, int]:
    """Along time, height, width of a row."""
    wt, nh, nw = self.window
    return self.frames // wt, self.cells[0] // nh, self.cells[1] // nw

  def groups_a_step(self, *, backward: bool) -> int:
    """Groups of heads in one step of the grid: as many as the core's memory holds, and at least two steps."""
    blocks = block_bytes(
      self.tokens,
      self.head_size,
      self.group,
      text_length=self.text_length,
      bias=self.bias,
      backward=backward,
      dtype=self.dtype,
    )
    fits = [
      n
      for n in range(1, min(self.groups, 8) + 1)
      if self.groups % n == 0 and n * blocks <= _BLOCK_BYTES
    ]
    # The two cores of a v4 or v5p chip share the outermost axis.
    shared = [n for n in fits if (self.groups // n) % 2 == 0]
    return max(shared or fits or [1])

  @property
  def _scores(self) -> int:
    """(query, key) pairs of all heads."""
    windows = self.batch * self.groups * self.group * math.prod(self.windows)
    return windows * self.tokens * (self.tokens + self.text_length)

  def model_flops(self, *, backward: bool) -> int:
    """Operations of the products without the scores that the backward pass computes again; see walt_t5x/flops.py."""
    return (4 if backward else 2) * 2 * self._scores * self.head_size

  def cost(self, *, backward: bool) -> pl.CostEstimate:
    """Operations and bytes of HBM, lanes padded as they lie there; every row counted as a video."""
    windows = self.batch * self.groups * math.prod(self.windows)
    size = np.dtype(self.dtype).itemsize
    row = windows * self.tokens * _padded(self.lanes) * size
    text = self.batch * self.groups * self.texts * self.text_length * _padded(self.lanes) * size
    bias = self.groups * self.group * self.tokens * _padded(self.tokens) * 4 if self.bias else 0
    return pl.CostEstimate(
      flops=(5 if backward else 2) * 2 * self._scores * self.head_size,
      transcendentals=self._scores,
      bytes_accessed=(7 if backward else 4) * row
      + (4 if backward else 2) * text
      + (2 if backward else 1) * bias,
    )


def _padded(lanes: int) -> int:
  return -(-lanes // LANES) * LANES


def heads_in_lanes(num_heads: int, head_size: int) -> int:
  """g: how many heads share the 128 lanes, so that none are empty."""
  group = LANES // head_size if LANES % head_size == 0 else 1
  return math.gcd(group, num_heads)


def block_bytes(
  tokens: int,
  head_size: int,
  group: int,
  *,
  text_length: int,
  bias: bool,
  backward: bool,
  dtype: Any,
) -> int:
  """Bytes of the core's memory for the blocks of one group of heads, two buffers of each."""
  size, lanes = np.dtype(dtype).itemsize, _padded(group * head_size)
  blocks = (7 if backward else 4) * tokens * lanes * size
  blocks += (4 if backward else 2) * text_length * lanes * size
  if bias:
    blocks += (2 if backward else 1) * group * tokens * _padded(tokens) * 4
  return 2 * blocks


def unsupported(tokens: int, cell_tokens: int, head_size: int, dtype: Any) -> str:
  """Why the TPU compiler would refuse windows of this many tokens in cells of so many, or an empty string."""
  name, tile = np.dtype(dtype).name, 32 // np.dtype(dtype).itemsize
  if cell_tokens % tile:
    return f"cells of {cell_tokens} tokens: expected a multiple of {tile} in {name}"
  blocks = block_bytes(
    tokens, head_size, heads_in_lanes(LANES, head_size), text_length=0, bias=True, backward=True,
    dtype=dtype,
  )  # fmt: skip
  # The backward pass holds about five arrays of scores beside its blocks.
  needed = blocks + 5 * tokens * _padded(tokens) * 4
  if needed > _VMEM_LIMIT:
    return (
      f"windows of {tokens} tokens: scores and bias of a head need {needed / 2**20:.0f} MiB of a core's memory, "
      f"expected at most {_VMEM_LIMIT / 2**20:.0f}"
    )
  return ""


def fused_window_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  window: tuple[int, int, int],
  group: int = 1,
  query_scale: jax.Array | None = None,
  key_scale: jax.Array | None = None,
  bias: jax.Array | None = None,
  text_key: jax.Array | None = None,
  text_value: jax.Array | None = None,
  text_mask: jax.Array | None = None,
  is_image: jax.Array | None = None,
  interpret: bool = False,
) -> jax.Array:
  """Attention within windows of cells.

  Args:
    query, key, value: [B, G, H, W, T, m, g d], as projected.
    window: (frames, cells along the height, cells along the width); divides (T, H, W).
    group: g.
    query_scale, key_scale: float32 [d] of the query-key norm, both or none.
    bias: float32 [G g, M, M] with tokens of a window in the order (height, width) of cells, frames, within a cell.
    text_key, text_value: [B, F, G, L, g d], F one a row or one for each window along time.
    text_mask: bool [B, F, L], True on tokens.
    is_image: bool [B]; such rows give their values and cost no attention. None: all rows attend.
    interpret: run the kernel's body as plain operations, where there is no TPU.

  Returns:
    [B, G, H, W, T, m, g d]; differentiable with respect to everything but the masks.
  """
  batch, groups, rows, columns, frames, cell_tokens, lanes = query.shape
  shape = Shape(
    batch=batch,
    groups=groups,
    cells=(rows, columns),
    frames=frames,
    cell_tokens=cell_tokens,
    lanes=lanes,
    window=tuple(window),
    group=group,
    texts=0 if text_key is None else text_key.shape[1],
    text_length=0 if text_key is None else text_key.shape[3],
    norm=query_scale is not None,
    bias=bias is not None,
    dtype=np.dtype(query.dtype).name,
    interpret=interpret,
  )
  if shape.texts not in (0, 1, shape.windows[0]):
    raise ValueError(f"{shape.texts} texts a row: expected 1, or {shape.windows[0]} (one a window)")
  arrays: Arrays = {"query": query, "key": key, "value": value}
  if query_scale is not None:
    arrays |= {"query_scale": query_scale[None], "key_scale": key_scale[None]}
  if bias is not None:
    arrays["bias"] = bias.reshape(groups, group, *bias.shape[1:])
  masks: Arrays = {}
  if text_key is not None:
    arrays |= {"text_key": text_key, "text_value": text_value}
    masks["text_bias"] = jnp.where(text_mask, 0.0, MASKED).astype(jnp.float32)[:, :, None]
  images = jnp.zeros(batch, jnp.int32) if is_image is None else is_image.astype(jnp.int32)
  return _attention(shape, arrays, masks, images)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(shape: Shape, arrays: Arrays, masks: Arrays, images: jax.Array) -> jax.Array:
  return _call(shape, arrays | masks, images, backward=False)["out"]


def _forward(shape: Shape, arrays: Arrays, masks: Arrays, images: jax.Array) -> tuple:
  return _attention(shape, arrays, masks, images), (arrays, masks, images)


def _backward(shape: Shape, residuals: tuple, cotangent: jax.Array) -> tuple:
  arrays, masks, images = residuals
  inputs = arrays | masks | {"out": cotangent.astype(arrays["query"].dtype)}
  gradients = _call(shape, inputs, images, backward=True)
  found = {}
  for name, array in arrays.items():
    gradient = gradients[name]
    if name.endswith("_scale"):
      gradient = jnp.sum(gradient, axis=0)
    found[name] = gradient.astype(array.dtype)
  none = np.zeros(images.shape, jax.dtypes.float0)
  return found, jax.tree.map(jnp.zeros_like, masks), none


_attention.defvjp(_forward, _backward)


def _specs(shape: Shape, groups: int) -> dict[str, tuple[tuple[int, ...], Callable]]:
  """(block, its index) of each array; a step of the grid is (head groups, row, time, height, width).

  Rows of images need no queries and keys: their index stays on the first block, which is then not fetched again.
  """
  wt, nh, nw = shape.window
  tokens = (1, groups, nh, nw, wt, shape.cell_tokens, shape.lanes)

  def of_window(h, b, t, i, j, images):
    del images
    return b, h, i, j, t, 0, 0

  def of_video(h, b, t, i, j, images):
    video = 1 - images[b]
    return b * video, h, i * video, j * video, t * video, 0, 0

  text = (1, 1, groups, shape.text_length, shape.lanes)

  def of_text(h, b, t, i, j, images):
    del i, j, images
    return b, t if shape.texts > 1 else 0, h, 0, 0

  def of_heads(h, *step):
    del step
    return h, 0, 0, 0

  return {
    "query": (tokens, of_video),
    "key": (tokens, of_video),
    "value": (tokens, of_window),
    "out": (tokens, of_window),
    "query_scale": ((1, shape.head_size), lambda *step: (0, 0)),
    "key_scale": ((1, shape.head_size), lambda *step: (0, 0)),
    "bias": ((groups, shape.group, shape.tokens, shape.tokens), of_heads),
    "text_key": (text, of_text),
    "text_value": (text, of_text),
    "text_bias": ((1, 1, 1, shape.text_length), lambda *step: (*of_text(*step)[:2], 0, 0)),
  }


def _call(shape: Shape, inputs: Arrays, images: jax.Array, *, backward: bool) -> Arrays:
  groups = shape.groups_a_step(backward=backward)
  specs = _specs(shape, groups)
  steps = shape.groups // groups
  grid = (steps, shape.batch, *shape.windows)
  outputs: dict[str, tuple[jax.ShapeDtypeStruct, pl.BlockSpec]] = {}
  if backward:
    for name in inputs:
      if name in ("out", "text_bias"):
        continue
      block, index = specs[name]
      like, dtype = inputs[name].shape, inputs[name].dtype
      if name in ("query", "key"):
        index = specs["value"][1]
      elif name.endswith("_scale"):
        # One sum for each part of the heads, which may run on another core.
        like, block = (steps, 1, shape.head_size), (None, 1, shape.head_size)
        index = lambda h, *step: (h, 0, 0)  # noqa: E731
      elif name.startswith("text"):
        dtype = jnp.float32
      outputs[name] = (jax.ShapeDtypeStruct(like, dtype), pl.BlockSpec(block, index))
  else:
    like = inputs["query"]
    outputs["out"] = (jax.ShapeDtypeStruct(like.shape, like.dtype), pl.BlockSpec(*specs["out"]))
  body = _backward_body if backward else _forward_body
  names, results = tuple(inputs), tuple(outputs)

  def kernel(images_ref, *refs):
    given = dict(zip(names, refs, strict=False))
    written = dict(zip(results, refs[len(names) :], strict=True))
    body(shape, groups, images_ref, given, written)

  call = pl.pallas_call(
    kernel,
    out_shape=[array for array, _ in outputs.values()],
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=1,
      grid=grid,
      in_specs=[pl.BlockSpec(*specs[name]) for name in names],
      out_specs=[spec for _, spec in outputs.values()],
    ),
    compiler_params=pltpu.CompilerParams(
      # Sums over rows and windows stay on one core.
      dimension_semantics=("parallel",) + ("arbitrary" if backward else "parallel",) * 4,
      vmem_limit_bytes=_VMEM_LIMIT,
    ),
    cost_estimate=shape.cost(backward=backward),
    metadata={"model_flops": str(shape.model_flops(backward=backward))},
    interpret=shape.interpret,
    name=f"window_attention_{'backward' if backward else 'forward'}",
  )
  return dict(zip(results, call(images, *(inputs[name] for name in names)), strict=True))


def _dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
  """float32 product over axis contract[0] of a and contract[1] of b."""
  exact = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  return jax.lax.dot_general(
    a, b, (((contract[0],), (contract[1],)), ((), ())), precision=exact,
    preferred_element_type=jnp.float32,
  )  # fmt: skip


@dataclasses.dataclass
class _Rows:
  """Queries or keys of one head: float32 as projected, normalised, and what the matrix unit is given."""

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
    """Of the rows as projected and of the scale [1, d], from the float32 gradient of `product`."""
    if self.scale is None:
      return of_product * self.factor, None
    of_scale = jnp.sum(of_product * self.normal, axis=0, keepdims=True) * self.factor
    of_normal = of_product * (self.scale * self.factor)
    mean = jnp.mean(of_normal, axis=-1, keepdims=True)
    along = jnp.mean(of_normal * self.normal, axis=-1, keepdims=True)
    return self.inverse * (of_normal - mean - self.normal * along), of_scale


def _softmax(parts: list[jax.Array]) -> tuple[list[jax.Array], jax.Array]:
  """exp of the scores less their greatest, and one over the sum; keys lie in several arrays."""
  highest = functools.reduce(jnp.maximum, [jnp.max(s, axis=-1, keepdims=True) for s in parts])
  weights = [jnp.exp(s - highest) for s in parts]
  return weights, 1 / sum(jnp.sum(w, axis=-1, keepdims=True) for w in weights)


class _Head:
  """One head of one window: blocks in, scores and softmax out."""

  def __init__(self, shape: Shape, given: Mapping[str, Any], group: int, head: int):
    self.lanes = slice(head * shape.head_size, (head + 1) * shape.head_size)
    self.flat = (shape.tokens, shape.head_size)
    self.group, self.text = group, bool(shape.texts)

    def scale(name):
      return given[name][...] if shape.norm else None

    self.query = _Rows(self.read(given["query"]), scale("query_scale"), shape.head_size**-0.5)
    self.keys = [_Rows(self.read(given["key"]), scale("key_scale"), 1.0)]
    self.values = [self.read(given["value"])]
    if self.text:
      self.keys.append(_Rows(self.read_text(given["text_key"]), scale("key_scale"), 1.0))
      self.values.append(self.read_text(given["text_value"]))
    scores = [_dot(self.query.product, k.product, (1, 1)) for k in self.keys]
    if shape.bias:
      scores[0] = scores[0] + given["bias"][group, head]
    if self.text:
      scores[1] = scores[1] + given["text_bias"][0, 0]
    self.weights, self.inverse = _softmax(scores)

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


def _each_head(shape: Shape, groups: int):
  return ((n, head) for n in range(groups) for head in range(shape.group))


def _forward_body(shape: Shape, groups: int, images: Any, given: Any, written: Any) -> None:
  image = images[pl.program_id(1)] != 0
  out = written["out"]

  @pl.when(image)
  def _pass_through():
    out[...] = given["value"][...]

  @pl.when(jnp.logical_not(image))
  def _attend():
    for group, number in _each_head(shape, groups):
      head = _Head(shape, given, group, number)
      products = [
        _dot(w.astype(v.dtype), v, (1, 0)) for w, v in zip(head.weights, head.values, strict=True)
      ]
      head.write(out, sum(products) * head.inverse)


def _backward_body(shape: Shape, groups: int, images: Any, given: Any, written: Any) -> None:
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
    for group, number in _each_head(shape, groups):
      _head_gradients(_Head(shape, given, group, number), given, written, number)


def _head_gradients(head: _Head, given: Any, written: Any, number: int) -> None:
  dtype = head.values[0].dtype
  of_out = head.read(given["out"])
  weights = [w * head.inverse for w in head.weights]
  of_weights = [_dot(of_out, v, (1, 1)) for v in head.values]
  along = sum(
    jnp.sum(w * d, axis=-1, keepdims=True) for w, d in zip(weights, of_weights, strict=True)
  )
  of_scores = [w * (d - along) for w, d in zip(weights, of_weights, strict=True)]
  if "bias" in written:
    written["bias"][head.group, number] += of_scores[0]
  low = [s.astype(dtype) for s in of_scores]
  of_values = [_dot(w.astype(dtype), of_out, (0, 0)) for w in weights]
  of_keys = [_dot(s, head.query.product, (0, 0)) for s in low]
  of_query = sum(_dot(s, k.product, (1, 0)) for s, k in zip(low, head.keys, strict=True))
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
    written["key_scale"][...] += sum(scale for _, scale in keys)
