"""Fused window attention for TPU, forward and backward, as a Pallas kernel.

  o = softmax(LN_q(q) LN_k([k; k_text])^T / sqrt(d) + b) [v; v_text]

for each window and head. Tokens are ordered by cells (walt_t5x/denoiser/windows.py), so a window is a block of the
array: the grid of the kernel iterates over windows, its block indices select them in HBM, and nothing is transposed
there. Scores, softmax and query-key norm are computed in float32 in the core's memory and recomputed in the backward
pass: the only residuals are q, k and v as projected.

The head axis comes before the cells, with g heads along the lanes: [B, G, H, W, T, m, g d], heads = G g. Groups of
several heads fill the 128 lanes if d divides 128 (two heads of 64).

Checked in interpret mode against float64 numpy, and compiled by the TPU compiler; it has not run on hardware.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from walt_t5x.denoiser.kernels import window_attention_passes
from walt_t5x.denoiser.kernels.window_attention_shape import VMEM_LIMIT, Shape

Arrays = dict[str, jax.Array]

MASKED = -1e30


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
  interpret: Any = False,
) -> jax.Array:
  """Attention within windows of cells.

  Args:
    query, key, value: [B, G, H, W, T, m, g d], as projected, with g = `group`.
    window: (frames, cells along the height, cells along the width); must divide (T, H, W).
    query_scale, key_scale: float32 [d] of the query-key norm, both or neither.
    bias: float32 [G g, M, M]; tokens of a window run over cells (height, width), then frames, then within a cell.
    text_key, text_value: [B, F, G, L, g d]; F is 1 or the number of windows along time, else raises ValueError.
    text_mask: bool [B, F, L], True on tokens.
    is_image: bool [B]; these examples return their values and compute no attention. None: all examples attend.
    interpret: run the kernel's body as plain operations, for platforms other than TPU; a `pltpu.InterpretParams` runs
      it on a slow model of the core and its memory.

  Returns:
    [B, G, H, W, T, m, g d]; differentiable with respect to all arguments except the masks.
  """
  batch, groups, rows, columns, frames, cell_tokens, lanes = query.shape
  shape = Shape(
    batch=batch,
    groups=groups,
    cells=(rows, columns),
    frames=frames,
    cell_tokens=cell_tokens,
    lanes=lanes,
    window=window,
    group=group,
    texts=0 if text_key is None else text_key.shape[1],
    text_length=0 if text_key is None else text_key.shape[3],
    bias=bias is not None,
    dtype=np.dtype(query.dtype).name,
    interpret=interpret,
  )
  if shape.texts not in (0, 1, shape.windows[0]):
    raise ValueError(f"got {shape.texts} texts per example, expected 1 or {shape.windows[0]}")
  arrays: Arrays = {"query": query, "key": key, "value": value}
  if query_scale is not None and key_scale is not None:
    arrays |= {"query_scale": query_scale[None], "key_scale": key_scale[None]}
  if bias is not None:
    arrays["bias"] = bias.reshape(groups, group, *bias.shape[1:])
  masks: Arrays = {}
  if text_key is not None:
    assert text_value is not None and text_mask is not None, "text requires text_mask"
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
  """(block shape, index map) of each array; the grid is (head groups, example, time, height, width).

  Images need no queries and keys: their index stays at the first block, which is then not fetched again.
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
        # One sum per step over head groups, because each may run on another core.
        like, block = (steps, 1, shape.head_size), (None, 1, shape.head_size)
        index = lambda h, *step: (h, 0, 0)  # noqa: E731
      elif name.startswith("text"):
        dtype = jnp.float32
      outputs[name] = (jax.ShapeDtypeStruct(like, dtype), pl.BlockSpec(block, index))
  else:
    like = inputs["query"]
    outputs["out"] = (jax.ShapeDtypeStruct(like.shape, like.dtype), pl.BlockSpec(*specs["out"]))
  body = window_attention_passes.backward if backward else window_attention_passes.forward
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
      # Sums over examples and windows stay on one core.
      dimension_semantics=("parallel",) + ("arbitrary" if backward else "parallel",) * 4,
      vmem_limit_bytes=VMEM_LIMIT,
    ),
    cost_estimate=shape.cost(backward=backward),
    metadata={"model_flops": str(shape.model_flops(backward=backward))},
    interpret=shape.interpret,
    name=f"window_attention_{'backward' if backward else 'forward'}",
  )
  return dict(zip(results, call(images, *(inputs[name] for name in names)), strict=True))
