"""The interpreted fused kernel compared with float64 numpy: values and all gradients, also under a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import partitioning as flax_partitioning
from jax.sharding import Mesh

from tests.denoiser.window_attention_reference import window_attention as reference
from walt_t5x.denoiser.attention import CrossAttention, WindowAttention, relative_position_index
from walt_t5x.denoiser.kernels import window_attention_shape as shapes
from walt_t5x.denoiser.window_attention import choose, window_attention
from walt_t5x.denoiser.windows import from_cells, in_cells, to_cells
from walt_t5x.engine.flops import count_flops_of
from walt_t5x.sharding import partitioning

# grid, window, cell, heads, head size, optional inputs.
CASES = {
  "spatial with a text each": ((2, 16, 16), (1, 16, 16), (8, 8), 2, 64, {"table", "text"}),
  "spatiotemporal, image rows": ((5, 8, 16), (5, 8, 8), (8, 8), 2, 64, {"table", "images"}),
  "spatiotemporal with a text a row": ((5, 8, 8), (5, 8, 8), (8, 8), 1, 72, {"text"}),
  "9:16 spatial": ((1, 16, 28), (1, 16, 28), (8, 14), 1, 108, {"table", "text"}),
  "9:16 spatiotemporal, image rows": ((5, 8, 14), (5, 8, 14), (8, 14), 1, 128, {"table", "images"}),
}


def make(grid, window, cell, heads, head_size, asked, *, rows=2, seed=0):
  """Random arrays of a case, in grid order, float32, of numpy: JAX would compile programs for their shapes.

  `asked` may contain "table", "images" (every other example, from the first), and "text" (one per position of a window
  in time) or "one text" (per example).
  """
  rng = np.random.default_rng(seed)
  wt, wh, ww = window

  def noise(*shape, scale=1.0):
    return np.asarray(scale * rng.normal(size=shape), np.float32)

  q, k, v, of_out = (noise(rows, *grid, heads, head_size) for _ in range(4))
  arrays = {"query": q, "key": k, "value": v}
  arrays["query_scale"] = 1 + noise(head_size, scale=0.2)
  arrays["key_scale"] = 1 + noise(head_size, scale=0.2)
  masks = {}
  if "table" in asked:
    arrays["table"] = noise((2 * wt - 1) * (2 * wh - 1) * (2 * ww - 1), heads)
  if asked & {"text", "one text"}:
    texts = grid[0] // wt if "text" in asked else 1
    arrays["text_key"] = noise(rows, texts, 12, heads, head_size)
    arrays["text_value"] = noise(rows, texts, 12, heads, head_size)
    lengths = 3 + np.arange(rows * texts).reshape(rows, texts, 1) % 9
    masks["text_mask"] = np.arange(12) < lengths
  if "images" in asked:
    masks["is_image"] = np.arange(rows) % 2 == 0
  return arrays, masks, of_out


def run(arrays, masks, of_out, *, window, cell, dtype, implementation="pallas"):
  """{name: value or gradient}, in grid order."""
  heads, head_size = of_out.shape[-2:]
  masks = jax.tree.map(jnp.asarray, masks)
  group = shapes.heads_in_lanes(heads, head_size) if implementation == "pallas" else 1

  def grouped(x):
    return x.reshape(*x.shape[:-2], heads // group, group * head_size)

  def forward(arrays):
    given = {name: a for name, a in arrays.items() if name.endswith("_scale")}
    for name in ("query", "key", "value"):
      given[name] = grouped(to_cells(arrays[name].astype(dtype), cell))
    for name in ("text_key", "text_value"):
      if name in arrays:
        given[name] = grouped(arrays[name].astype(dtype))
    if "table" in arrays:
      given["bias"] = jnp.moveaxis(arrays["table"][relative_position_index(window, cell)], -1, 0)
    out = window_attention(
      **given, **masks, window=in_cells(window, cell), implementation=implementation, group=group
    )
    return from_cells(out, cell).reshape(of_out.shape)

  def both(arrays, of_out):
    out, pull = jax.vjp(forward, arrays)
    return {"out": out} | pull(of_out.astype(dtype))[0]

  return jax.jit(both)(arrays, of_out)


def expected(arrays, masks, of_out, *, window, dtype):
  """The same with numpy, for inputs rounded to `dtype`."""
  rounded = {
    name: a if name.endswith(("_scale", "table")) else a.astype(jnp.dtype(dtype)).astype(np.float32)
    for name, a in arrays.items()
  }
  text = None
  if "text_key" in arrays:
    text = (rounded["text_key"], rounded["text_value"], masks["text_mask"])
  return reference(
    *(rounded[name] for name in ("query", "key", "value")),
    of_out.astype(jnp.dtype(dtype)).astype(np.float32),
    window=window,
    scales=(rounded["query_scale"], rounded["key_scale"]),
    table=rounded.get("table"),
    text=text,
    is_image=masks.get("is_image"),
  )


def error(got, want):
  """Norm of the difference divided by the norm of `want`; infinity for NaN, which `max` would ignore."""
  found = np.linalg.norm(np.asarray(got, np.float64) - want) / np.linalg.norm(want)
  return found if np.isfinite(found) else np.inf


BOUNDS = {"float32": 1e-5, "bfloat16": 2e-2}
# benchmarks/window_attention.py runs both at more sizes.
TRIED = [*((name, "float32") for name in CASES), *((n, "bfloat16") for n in list(CASES)[:2])]


@pytest.mark.parametrize("name, dtype", TRIED)
def test_kernel_equals_numpy_in_values_and_gradients(name, dtype):
  grid, window, cell, heads, head_size, asked = CASES[name]
  given = make(grid, window, cell, heads, head_size, asked)
  got = run(*given, window=window, cell=cell, dtype=dtype)
  want = expected(*given, window=window, dtype=dtype)
  assert got.keys() == want.keys()
  errors = {key: error(got[key], want[key]) for key in want}
  assert max(errors.values()) < BOUNDS[dtype], errors


def test_reference_gradients_equal_finite_differences():
  window = (2, 1, 2)
  arrays, masks, of_out = make(
    (2, 2, 4), window, (1, 2), 2, 6, {"table", "text", "images"}, rows=3, seed=3
  )
  rng = np.random.default_rng(4)
  direction = {name: rng.normal(size=a.shape) for name, a in arrays.items()}

  def total(step):
    moved = {n: np.asarray(a, np.float64) + step * direction[n] for n, a in arrays.items()}
    out = reference(
      moved["query"], moved["key"], moved["value"], of_out, window=window,
      scales=(moved["query_scale"], moved["key_scale"]), table=moved["table"],
      text=(moved["text_key"], moved["text_value"], masks["text_mask"]),
      is_image=masks["is_image"],
    )  # fmt: skip
    return (out["out"] * np.asarray(of_out, np.float64)).sum(), out

  slope = (total(1e-5)[0] - total(-1e-5)[0]) / 2e-5
  gradients = total(0.0)[1]
  along = sum((gradients[n] * direction[n]).sum() for n in arrays)
  assert slope == pytest.approx(along, rel=1e-7)


def test_einsum_equals_numpy_too():
  grid, window, cell, heads, head_size, asked = CASES["spatiotemporal, image rows"]
  given = make(grid, window, cell, heads, head_size, asked)
  got = run(*given, window=window, cell=cell, dtype="float32", implementation="einsum")
  want = expected(*given, window=window, dtype="float32")
  assert max(error(got[key], want[key]) for key in want) < 1e-5


@pytest.mark.parametrize("model_axis", partitioning.MODEL_AXES)
def test_both_implementations_have_equal_gradients_under_a_mesh(model_axis):
  """8 devices, the batch over 2 and heads (or the height of the grid) over 4: gradients are equal."""
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 16, 8, 16)), jnp.float32)
  mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "model"))
  if model_axis == "tensor":
    layer = WindowAttention(window=(3, 4, 4), num_heads=4, implementation="pallas")
    inputs = (x, jnp.array([True, False]))
  else:
    layer = CrossAttention(window=(1, 4, 8), num_heads=4, implementation="pallas")
    text = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 5, 16)), jnp.float32)
    inputs = (x, text, jnp.asarray(np.arange(5) < np.array([[[2], [3], [5]]] * 2)))
  plain = layer.clone(implementation="einsum")
  shapes = jax.eval_shape(lambda: plain.init(jax.random.key(0), *inputs))["params"]
  params = jax.tree.map(
    lambda p: np.random.default_rng(p.size).normal(size=p.shape).astype(p.dtype), shapes
  )

  def gradients(layer):
    def both(params, x):
      return jax.grad(
        lambda p, x: jnp.square(layer.apply({"params": p}, x, *inputs[1:])).sum(), (0, 1)
      )(params, x)

    with mesh, flax_partitioning.axis_rules(partitioning.rules(model_axis=model_axis)):
      return jax.device_get(jax.jit(both)(params, x))

  got, want = gradients(layer), gradients(plain)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max())


def test_both_implementations_count_the_flops_of_the_model():
  arrays, masks, of_out = make((5, 8, 8), (5, 8, 8), (8, 8), 1, 128, {"table"}, rows=1)
  counts = []
  for name in ("einsum", "pallas"):

    def both(arrays, of_out, name=name):
      return run(
        arrays,
        masks,
        of_out,
        window=(5, 8, 8),
        cell=(8, 8),
        dtype="float32",
        implementation=name,
      )

    counts.append(count_flops_of(both, arrays, of_out))
  # Two products forward, four backward; the scores that the kernel's backward pass recomputes do not count.
  assert counts == [6 * 2 * 320 * 320 * 128] * 2


def test_choice_of_the_implementation_and_unsupported_shapes():
  sizes = {
    "num_heads": 16,
    "head_size": 64,
    "cells": (2, 2),
    "window": (5, 1, 1),
    "dtype": "bfloat16",
  }
  assert choose("auto", cell_tokens=64, **sizes) == ("einsum", 1)
  assert choose("pallas", cell_tokens=64, **sizes) == ("pallas", 2)
  assert shapes.unsupported(560, 112, 88, "bfloat16") == ""
  assert "multiple of 16" in shapes.unsupported(320, 40, 64, "bfloat16")
  assert "of a core's memory" in shapes.unsupported(1280, 256, 64, "bfloat16")
  with pytest.raises(ValueError, match="attention_implementation='flash': expected one of"):
    choose("flash", cell_tokens=64, **sizes)
