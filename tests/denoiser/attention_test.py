"""Attention layers compared with dense numpy attention with an explicit mask."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxpr_as_fun

from tests.compiled import apply
from tests.random_params import random_params
from walt_t5x.denoiser import attention
from walt_t5x.denoiser.attention import (
  CrossAttention,
  RelativePositionBias,
  WindowAttention,
  relative_position_index,
)
from walt_t5x.denoiser.windows import to_cells
from walt_t5x.engine.flops import count_flops_of

GRID, WIDTH, HEADS = (3, 4, 4), 8, 2


def _grid(seed=0, rows=2):
  return jnp.asarray(np.random.default_rng(seed).normal(size=(rows, *GRID, WIDTH)), jnp.float32)


def _dense(params, x, text=None, allowed=None, bias=None):
  """float64 attention over all tokens of one example with a [queries, keys] mask; text keys are appended."""
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  tokens = np.asarray(x, np.float64).reshape(-1, WIDTH)
  keys_in = tokens if text is None else np.concatenate([tokens, np.asarray(text, np.float64)])

  def project(name, a):
    return np.einsum("nd,dhk->nhk", a, p[name]["kernel"]) + p[name]["bias"]

  def norm(name, a):
    if name not in p:
      return a
    a = a - a.mean(-1, keepdims=True)
    return a / np.sqrt((a**2).mean(-1, keepdims=True) + 1e-6) * p[name]["scale"]

  q, k, v = (
    norm("query_norm", project("query", tokens)),
    norm("key_norm", project("key", keys_in)),
    project("value", keys_in),
  )
  scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1])
  if bias is not None:
    scores = scores + bias
  scores = np.where(allowed, scores, -np.inf)
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  weights /= weights.sum(-1, keepdims=True)
  out = np.einsum("hqk,khd->qhd", weights, v)
  return np.einsum("qhd,hdw->qw", out, p["out"]["kernel"]) + p["out"]["bias"]


def _coordinates():
  return [(t, h, w) for t in range(3) for h in range(4) for w in range(4)]


def _window_mask_and_bias(window, table):
  """For each pair of tokens: whether they share a window, and the row of the table for their displacement."""
  places = _coordinates()
  wt, wh, ww = window
  allowed = np.zeros((48, 48), bool)
  bias = np.zeros((HEADS, 48, 48))
  for i, a in enumerate(places):
    for j, b in enumerate(places):
      if all(x // s == y // s for x, y, s in zip(a, b, window)):
        allowed[i, j] = True
        dt, dh, dw = (x - y for x, y in zip(a, b))
        row = ((dt + wt - 1) * (2 * wh - 1) + dh + wh - 1) * (2 * ww - 1) + dw + ww - 1
        bias[:, i, j] = table[row]
  return allowed, bias


def test_window_attention_equals_dense_attention_with_a_block_mask():
  x = _grid()
  for window in ((1, 4, 4), (3, 2, 2), (1, 2, 4)):
    layer = WindowAttention(window=window, num_heads=HEADS)
    variables = {"params": random_params(layer.init, x)}
    table = np.asarray(variables["params"]["relative_position_bias"]["table"])
    allowed, bias = _window_mask_and_bias(window, table)
    got = apply(layer, variables, x)
    for row in range(2):
      expected = _dense(variables["params"], x[row], allowed=allowed, bias=bias)
      np.testing.assert_allclose(got[row].reshape(48, WIDTH), expected, atol=1e-5)


def test_no_gradient_crosses_a_window_border():
  x = _grid(rows=1)
  window = (3, 2, 2)
  layer = WindowAttention(window=window, num_heads=HEADS)
  variables = {"params": random_params(layer.init, x)}
  gradient = jax.jit(jax.grad(lambda a: layer.apply(variables, a)[0, 1, 2, 1].sum()))(x)[0]
  touched = np.abs(np.asarray(gradient)).sum(-1) > 0
  same_window = np.zeros(GRID, bool)
  same_window[:, 2:4, 0:2] = True
  np.testing.assert_array_equal(touched, same_window)


def test_an_image_passes_its_values_through_if_the_window_spans_time():
  x = _grid()
  is_image = jnp.array([True, False])
  layer = WindowAttention(window=(3, 2, 2), num_heads=HEADS)
  variables = {"params": random_params(layer.init, x)}
  got = apply(layer, variables, x, is_image)
  p = variables["params"]
  value = jnp.einsum("thwd,dnk->thwnk", x[0], p["value"]["kernel"]) + p["value"]["bias"]
  passed = jnp.einsum("thwnk,nkd->thwd", value, p["out"]["kernel"]) + p["out"]["bias"]
  np.testing.assert_allclose(got[0], passed, atol=1e-5)
  np.testing.assert_allclose(got[1], apply(layer, variables, x)[1], atol=1e-6)
  spatial = WindowAttention(window=(1, 4, 4), num_heads=HEADS)
  variables = {"params": random_params(spatial.init, x)}
  np.testing.assert_allclose(
    apply(spatial, variables, x, is_image), apply(spatial, variables, x), atol=1e-6
  )


def test_cross_attention_sees_its_frame_and_the_text_without_padding():
  x = _grid()
  text = jnp.asarray(np.random.default_rng(3).normal(size=(2, 1, 5, WIDTH)), jnp.float32)
  mask = jnp.array([[[1, 1, 1, 0, 0]], [[1, 0, 0, 0, 0]]], bool)
  layer = CrossAttention(window=(1, 4, 4), num_heads=HEADS)
  variables = {"params": random_params(layer.init, x, text, mask)}
  got = apply(layer, variables, x, text, mask)
  for row, tokens in enumerate((3, 1)):
    for frame in range(3):
      expected = _dense(
        variables["params"],
        x[row, frame],
        text=text[row, 0, :tokens],
        allowed=np.ones((16, 16 + tokens), bool),
      )
      np.testing.assert_allclose(got[row, frame].reshape(16, WIDTH), expected, atol=1e-5)


@pytest.mark.parametrize("window", [(1, 2, 4), (3, 2, 2)])
def test_cross_attention_in_a_window_sees_that_window_and_the_text(window):
  x = _grid(rows=1)
  text = jnp.asarray(np.random.default_rng(3).normal(size=(1, 1, 5, WIDTH)), jnp.float32)
  layer = CrossAttention(window=window, num_heads=HEADS)
  mask = jnp.array([[[1, 1, 0, 0, 0]]], bool)
  variables = {"params": random_params(layer.init, x, text, mask)}
  inside, _ = _window_mask_and_bias(window, np.zeros((999, HEADS)))
  allowed = np.concatenate([inside, np.ones((48, 2), bool)], axis=1)
  expected = _dense(variables["params"], x[0], text=text[0, 0, :2], allowed=allowed)
  got = apply(layer, variables, x, text, mask)
  np.testing.assert_allclose(got[0].reshape(48, WIDTH), expected, atol=1e-5)


def test_each_frame_of_a_stack_reads_its_own_text():
  x, window = _grid(rows=1), (1, 2, 4)
  text = jnp.asarray(np.random.default_rng(3).normal(size=(1, 3, 5, WIDTH)), jnp.float32)
  mask = jnp.ones((1, 3, 5), bool)
  layer = CrossAttention(window=window, num_heads=HEADS)
  variables = {"params": random_params(layer.init, x, text, mask)}
  got = apply(layer, variables, x, text, mask)
  for frame in range(3):
    alone = apply(layer, variables, x, text[:, frame : frame + 1], mask[:, :1])
    np.testing.assert_allclose(got[0, frame], alone[0, frame], atol=1e-6)
  spanning = CrossAttention(window=(3, 2, 2), num_heads=HEADS)
  with pytest.raises(ValueError, match='cross_attention = "spatial"'):
    jax.eval_shape(spanning.init, jax.random.key(0), x, text, mask)


def test_images_cost_two_projections_and_all_modes_agree():
  x, is_image = _grid(rows=4), jnp.array([True, False, False, True])
  layer = WindowAttention(window=(3, 2, 2), num_heads=HEADS)
  variables = {"params": random_params(layer.init, x)}
  select = apply(layer, variables, x, is_image)
  skip = WindowAttention(window=(3, 2, 2), num_heads=HEADS, image_rows="skip")
  np.testing.assert_allclose(apply(skip, variables, x, is_image), select, atol=1e-6)
  images = apply(layer, variables, x, all_images=True)
  np.testing.assert_allclose(images[::3], select[::3], atol=1e-6)

  def flops(**kwargs):
    return count_flops_of(lambda a: layer.apply(variables, a, **kwargs), x)

  # Two projections of [tokens, D] by [D, D].
  assert flops(all_images=True) == 2 * (2 * 4 * 48 * WIDTH * WIDTH)
  assert flops() > 2 * flops(all_images=True)
  # With "skip", the branch of an image contains only the value projection.
  branches = [
    equation.params["branches"]
    for equation in _equations(
      jax.make_jaxpr(lambda a: skip.apply(variables, a, is_image))(x).jaxpr
    )
    if equation.primitive.name == "cond"
  ]
  costs = sorted(count_flops_of(jaxpr_as_fun(b), *b.in_avals) for b in branches[0])
  assert costs[0] == 2 * 48 * WIDTH * WIDTH < costs[1]


def _equations(jaxpr):
  for equation in jaxpr.eqns:
    yield equation
    for value in equation.params.values():
      if hasattr(value, "jaxpr"):
        yield from _equations(value.jaxpr)


def test_gradients_of_skip_equal_those_of_select():
  x, is_image = _grid(rows=3), jnp.array([True, False, True])
  layer = WindowAttention(window=(3, 2, 2), num_heads=HEADS)
  variables = {"params": random_params(layer.init, x)}

  def gradient(mode):
    module = WindowAttention(window=(3, 2, 2), num_heads=HEADS, image_rows=mode)
    return jax.jit(jax.grad(lambda v: jnp.sum(jnp.square(module.apply(v, x, is_image)))))(variables)

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    gradient("skip"),
    gradient("select"),
  )


def test_relative_position_index_of_a_line():
  np.testing.assert_array_equal(
    relative_position_index((1, 1, 4)),
    [[3, 2, 1, 0], [4, 3, 2, 1], [5, 4, 3, 2], [6, 5, 4, 3]],
  )


def test_the_table_of_biases_has_one_row_per_displacement():
  window = (2, 3, 5)
  variables = jax.eval_shape(
    RelativePositionBias(window=window, num_heads=7).init, jax.random.key(0)
  )
  assert variables["params"]["table"].shape == (3 * 5 * 9, 7)
  assert variables["params_axes"]["table_axes"].names == ("unmodeled", "heads")
  places = list(np.ndindex(*window))
  index = relative_position_index(window)
  rows = {}
  for (i, a), (j, b) in itertools.product(enumerate(places), repeat=2):
    rows.setdefault(tuple(np.subtract(a, b)), set()).add(int(index[i, j]))
  assert all(len(found) == 1 for found in rows.values())
  assert sorted(row for found in rows.values() for row in found) == list(range(3 * 5 * 9))


def _pairs(window):
  """Two examples on a grid of four frames, a layer with this window, and its variables."""
  x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 4, 2, 2, WIDTH)), jnp.float32)
  layer = WindowAttention(window=window, num_heads=HEADS)
  return x, layer, {"params": random_params(layer.init, x)}


def test_images_pass_through_a_window_of_two_frames_but_not_of_one():
  x, spanning, variables = _pairs((2, 1, 2))
  is_image = jnp.array([True, False])
  p = variables["params"]
  value = jnp.einsum("bthwd,dnk->bthwnk", x, p["value"]["kernel"]) + p["value"]["bias"]
  passed = jnp.einsum("bthwnk,nkd->bthwd", value, p["out"]["kernel"]) + p["out"]["bias"]
  attended = apply(spanning, variables, x)
  assert np.abs(attended - passed).max() > 0.1
  expected = jnp.stack([passed[0], attended[1]])
  for mode in ("select", "skip"):
    layer = spanning.clone(image_rows=mode)
    np.testing.assert_allclose(apply(layer, variables, x, is_image), expected, atol=1e-5)
  all_images = apply(spanning, variables, x, all_images=True)
  np.testing.assert_allclose(all_images, passed, atol=1e-5)
  x, spatial, variables = _pairs((1, 2, 2))
  attended = apply(spatial, variables, x)
  for mode in ("select", "skip"):
    layer = spatial.clone(image_rows=mode)
    np.testing.assert_allclose(apply(layer, variables, x, is_image), attended, atol=1e-6)
  np.testing.assert_allclose(apply(spatial, variables, x, all_images=True), attended, atol=1e-6)
  with pytest.raises(ValueError, match="image_rows='drop': expected 'select' or 'skip'"):
    apply(spatial.clone(image_rows="drop"), variables, x)


def test_only_skip_with_einsum_loops_over_examples():
  x, layer, variables = _pairs((2, 1, 2))
  is_image = jnp.array([True, False])
  for mode, implementation, loops in (
    ("select", "einsum", False),
    ("skip", "einsum", True),
    ("skip", "pallas", False),
  ):
    tried = layer.clone(image_rows=mode, implementation=implementation)
    jaxpr = jax.make_jaxpr(lambda a: tried.apply(variables, a, is_image))(x)  # noqa: B023 - called here
    found = {equation.primitive.name for equation in jaxpr.jaxpr.eqns}
    assert bool(found & {"scan", "while", "cond"}) == loops, (mode, implementation)


@pytest.mark.parametrize(
  "fields", [{}, {"relative_bias": False}, {"qk_norm": False, "relative_bias": False}]
)
def test_norm_and_bias_can_be_disabled(fields):
  x, window = _grid(rows=1), (3, 2, 2)
  layer = WindowAttention(window=window, num_heads=HEADS, **fields)
  variables = {"params": random_params(layer.init, x)}
  parameters = {"query", "key", "value", "out"}
  if fields.get("qk_norm", True):
    parameters |= {"query_norm", "key_norm"}
  table = np.zeros((999, HEADS))
  if fields.get("relative_bias", True):
    parameters |= {"relative_position_bias"}
    table = np.asarray(variables["params"]["relative_position_bias"]["table"])
  assert set(variables["params"]) == parameters
  allowed, bias = _window_mask_and_bias(window, table)
  expected = _dense(variables["params"], x[0], allowed=allowed, bias=bias)
  got = apply(layer, variables, x)
  np.testing.assert_allclose(got[0].reshape(48, WIDTH), expected, atol=1e-4)


def test_tokens_by_cells_give_the_same_result_as_tokens_in_grid_order():
  x, window, cell = _grid(rows=1), (3, 2, 4), (2, 2)
  by_cells = to_cells(x, cell)
  text = jnp.asarray(np.random.default_rng(3).normal(size=(1, 1, 5, WIDTH)), jnp.float32)
  mask = jnp.array([[[1, 1, 0, 0, 0]]], bool)
  for layer, more in (
    (WindowAttention(window=window, num_heads=HEADS), ()),
    (CrossAttention(window=window, num_heads=HEADS), (text, mask)),
  ):
    variables = {"params": random_params(layer.init, x, *more)}
    got = apply(layer.clone(cell=cell), variables, by_cells, *more)
    expected = to_cells(apply(layer, variables, x, *more), cell)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_each_window_in_time_may_have_its_own_text():
  x, _, _ = _pairs((2, 1, 2))
  text = jnp.asarray(np.random.default_rng(3).normal(size=(2, 2, 3, WIDTH)), jnp.float32)
  mask = jnp.ones((2, 2, 3), bool)
  layer = CrossAttention(window=(2, 1, 2), num_heads=HEADS)
  variables = {"params": random_params(layer.init, x, text, mask)}
  got = apply(layer, variables, x, text, mask)
  for i in range(2):
    alone = apply(layer, variables, x, text[:, i : i + 1], mask[:, :1])
    np.testing.assert_allclose(got[:, 2 * i : 2 * i + 2], alone[:, 2 * i : 2 * i + 2], atol=1e-6)
  for count in (3, 4):
    with pytest.raises(ValueError, match=f"got {count} texts per example"):
      apply(layer, variables, x, jnp.zeros((2, count, 3, WIDTH)), jnp.ones((2, count, 3), bool))


@pytest.mark.parametrize(
  "cell, cells, window", [(None, (2, 2), (3, 1, 1)), ((1, 2), (4, 2), (3, 2, 1))]
)
def test_choose_receives_the_sizes_of_the_layer(monkeypatch, cell, cells, window):
  asked = []

  def chosen(implementation, **sizes):
    asked.append({"implementation": implementation, **sizes})
    return "einsum", 1

  monkeypatch.setattr(attention, "choose", chosen)
  x = _grid(rows=1)
  layer = WindowAttention(window=(3, 2, 2), num_heads=HEADS, cell=cell)
  jax.eval_shape(layer.init, jax.random.key(0), x if cell is None else to_cells(x, cell))
  (sizes,) = asked
  assert sizes == {
    "implementation": "auto",
    "num_heads": HEADS,
    "head_size": WIDTH // HEADS,
    "cells": cells,
    "cell_tokens": 4 if cell is None else 2,
    "window": window,
    "dtype": jnp.float32,
  }


@pytest.mark.parametrize("kind", [WindowAttention, CrossAttention])
def test_heads_that_share_lanes_give_the_same_result(kind):
  """The kernel processes heads of size 64 in pairs."""
  x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 1, 2, 2, 256)), jnp.float32)
  text = jnp.asarray(np.random.default_rng(2).normal(size=(1, 1, 3, 256)), jnp.float32)
  more = (text, jnp.ones((1, 1, 3), bool)) if kind is CrossAttention else ()
  layer = kind(window=(1, 2, 2), num_heads=4)
  variables = {"params": random_params(layer.init, x, *more)}
  fused = apply(layer.clone(implementation="pallas"), variables, x, *more)
  np.testing.assert_allclose(fused, apply(layer, variables, x, *more), atol=1e-5)


def test_projections_have_the_activation_dtype():
  x, text = _grid(rows=1), jnp.zeros((1, 1, 5, WIDTH))
  common = {"window": (1, 2, 4), "num_heads": HEADS, "dtype": jnp.bfloat16}
  for layer, more, count in (
    (WindowAttention(**common), (), 4),
    (CrossAttention(**common), (text, jnp.ones((1, 1, 5), bool)), 6),
  ):
    variables = jax.eval_shape(layer.init, jax.random.key(0), x, *more)
    params = {"params": variables["params"]}
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    program = jax.make_jaxpr(layer.apply)(params, x, *more)
    assert program.out_avals[0].dtype == jnp.bfloat16
    products = [
      [v.aval for v in equation.invars]
      for equation in _equations(program.jaxpr)
      if equation.primitive.name == "dot_general"
    ]
    by_kernel = [(a.dtype, b.dtype) for a, b in products if b.size == WIDTH * WIDTH]
    assert by_kernel == [(jnp.bfloat16, jnp.bfloat16)] * count
