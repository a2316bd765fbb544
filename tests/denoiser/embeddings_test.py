"""The transformer's input embeddings and modulation compared with loops and closed forms in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt_t5x.denoiser.adaln import LoRAAdaLN, Modulation, SharedAdaLN, modulate
from walt_t5x.denoiser.embeddings import (
  ClassEmbedding,
  ConditionMlp,
  LowResolutionUpsample,
  PatchEmbedding,
  PositionEmbedding,
  patchify,
  pool_text,
  sinusoid,
  sinusoid_grid,
  unpatchify,
)

RNG = np.random.default_rng(0)


def _draw(*shape):
  return RNG.normal(size=shape).astype(np.float32)


def _silu(x):
  return x / (1 + np.exp(-x))


def test_time_sinusoids_have_geometric_wavelengths():
  steps = np.array([[0, 1], [333, 1000]])
  expected = np.zeros((2, 2, 8))
  for place in np.ndindex(2, 2):
    for i in range(4):
      angle = float(steps[place]) * 10_000 ** (-i / 4)
      expected[(*place, i)], expected[(*place, 4 + i)] = math.cos(angle), math.sin(angle)
  for given in (jnp.asarray(steps), jnp.asarray(steps, jnp.bfloat16).astype(jnp.float32)):
    np.testing.assert_allclose(sinusoid(given, 8)[0], expected[0], atol=1e-6)
  np.testing.assert_allclose(sinusoid(jnp.asarray(steps), 8), expected, atol=1e-4)
  assert sinusoid(jnp.zeros(3)).shape == (3, 256)


def test_condition_mlp_is_two_projections_with_a_silu_between():
  x, first, second = _draw(2, 5), _draw(5, 4), _draw(4, 4)
  a, b = _draw(4), _draw(4)
  params = {"in": {"kernel": first, "bias": a}, "out": {"kernel": second, "bias": b}}
  got = ConditionMlp(width=4).apply({"params": params}, jnp.asarray(x))
  np.testing.assert_allclose(got, _silu(x @ first + a) @ second + b, rtol=1e-4, atol=1e-5)


def test_a_class_selects_its_row_and_no_class_the_last_row():
  table = jnp.asarray(_draw(4, 6))
  module = ClassEmbedding(num_classes=3, width=6)
  got = module.apply({"params": {"table": {"embedding": table}}}, jnp.array([[0, 2], [-1, 1]]))
  np.testing.assert_array_equal(got, [[table[0], table[2]], [table[3], table[1]]])
  shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
  assert shapes["params"]["table"]["embedding"].shape == (4, 6)


def test_pooled_text_is_the_mean_of_the_tokens_and_zero_without_any():
  text, mask = _draw(2, 3, 4, 5), RNG.random((2, 3, 4)) < 0.5
  mask[0, 1], mask[1, 2], mask[1, 0] = False, [True, False, False, False], True
  expected = np.zeros((2, 3, 5))
  for place in np.ndindex(2, 3):
    tokens = [text[place][i] for i in range(4) if mask[place][i]]
    if tokens:
      expected[place] = np.mean(tokens, axis=0)
  got = pool_text(jnp.asarray(text), jnp.asarray(mask))
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  ("sizes", "width"), [((4, 6), 32), ((5,), 7), ((1, 3), 10), ((2, 3, 4), 20), ((3, 2), 5)]
)
def test_grid_sinusoids_encode_each_axis_separately(sizes, width):
  half = width // (2 * len(sizes))
  expected = np.zeros((*sizes, width))
  for place in np.ndindex(*sizes):
    for axis, size in enumerate(sizes):
      longest, shortest = 2 * size, 4
      for i in range(half):
        # Wavelengths from the longest to the shortest, with equal ratios.
        share = i / (half - 1) if half > 1 else 0.0
        wave = longest * (shortest / longest) ** share
        angle = 2 * math.pi * place[axis] / wave
        at = 2 * half * axis + i
        expected[(*place, at)] = math.cos(angle)
        expected[(*place, at + half)] = math.sin(angle)
  got = jax.jit(sinusoid_grid, static_argnums=(0, 1))(sizes, width)
  np.testing.assert_allclose(got, expected.reshape(-1, width), atol=2e-5)


def test_a_token_gets_its_space_and_time_positions_and_an_image_those_of_the_first_frame():
  t, h, w, width = 3, 2, 4, 6
  x, space, time = _draw(2, t, h, w, width), _draw(h * w, width), _draw(t, width)
  module = PositionEmbedding()
  params = {"params": {"space": {"embedding": space}, "time": {"embedding": time}}}
  video, image = np.zeros_like(x), np.zeros_like(x)
  for b, f, i, j in np.ndindex(2, t, h, w):
    video[b, f, i, j] = x[b, f, i, j] + space[i * w + j] + time[f]
    image[b, f, i, j] = x[b, f, i, j] + space[i * w + j] + time[0]
  x, params = jnp.asarray(x), jax.tree.map(jnp.asarray, params)
  np.testing.assert_allclose(module.apply(params, x), video, rtol=1e-5, atol=1e-6)
  mixed = module.apply(params, x, jnp.array([True, False]))
  np.testing.assert_allclose(mixed, [image[0], video[1]], rtol=1e-5, atol=1e-6)
  images = module.apply(params, x, all_images=True)
  np.testing.assert_allclose(images, image, rtol=1e-5, atol=1e-6)
  started = module.init(jax.random.key(0), x)["params"]
  np.testing.assert_array_equal(started["space"]["embedding"], sinusoid_grid((h, w), width))
  np.testing.assert_array_equal(started["time"]["embedding"], sinusoid_grid((t,), width))


@pytest.mark.parametrize("p", [2, 3])
def test_patchify_is_row_major_and_unpatchify_its_inverse(p):
  latents = _draw(2, 3, 4 * p, 3 * p, 5)
  expected = np.zeros((2, 3, 4, 3, p * p * 5), np.float32)
  for b, t, i, j in np.ndindex(2, 3, 4, 3):
    patch = latents[b, t, i * p : (i + 1) * p, j * p : (j + 1) * p]
    expected[b, t, i, j] = np.concatenate([patch[r, c] for r in range(p) for c in range(p)])
  got = patchify(jnp.asarray(latents), p)
  np.testing.assert_array_equal(got, expected)
  np.testing.assert_array_equal(unpatchify(got, p), latents)
  kernel, bias = _draw(p * p * 5, 7), _draw(7)
  embedded = PatchEmbedding(patch_size=p, width=7).apply(
    {"params": {"projection": {"kernel": kernel, "bias": bias}}}, jnp.asarray(latents)
  )
  np.testing.assert_allclose(embedded, expected @ kernel + bias, rtol=1e-4, atol=1e-4)
  for frame in ((p + 1, p), (p, p + 1)):
    with pytest.raises(ValueError, match=f"patch_size={p} does not divide"):
      patchify(jnp.zeros((1, 1, *frame, 1)), p)


def test_a_modulation_is_split_in_six_in_the_order_of_the_paper():
  flat = _draw(2, 3, 6 * 4)
  got = Modulation.split(jnp.asarray(flat))
  names = ("scale_1", "scale_2", "shift_1", "shift_2", "gate_1", "gate_2")
  for number, name in enumerate(names):
    part = getattr(got, name)
    assert part.shape == (2, 1, 1, 3, 1, 4)
    np.testing.assert_array_equal(part[:, 0, 0, :, 0], flat[:, :, 4 * number : 4 * number + 4])


def test_modulation_scales_from_one_and_shifts():
  x, shift, scale = (np.float32(value) for value in ([3.0, -2.0], [0.5, 1.0], [0.0, 2.0]))
  np.testing.assert_allclose(modulate(*map(jnp.asarray, (x, shift, scale))), [3.5, -5.0])


def test_each_kind_of_adaln_is_its_formula_and_starts_at_zero():
  condition = jnp.asarray(_draw(2, 1, 4))
  kernel, bias = _draw(4, 24), _draw(24)
  got = SharedAdaLN().apply({"params": {"projection": {"kernel": kernel, "bias": bias}}}, condition)
  np.testing.assert_allclose(
    got, _silu(np.asarray(condition)) @ kernel + bias, rtol=1e-4, atol=1e-5
  )
  down, up = _draw(4, 3), _draw(3, 24)
  params = {"down": {"kernel": down}, "up": {"kernel": up}}
  got = LoRAAdaLN(rank=3).apply({"params": params}, condition)
  np.testing.assert_allclose(got, _silu(np.asarray(condition)) @ down @ up, rtol=1e-4, atol=1e-5)
  for module in (SharedAdaLN(), LoRAAdaLN(rank=3)):
    variables = module.init(jax.random.key(0), condition)
    assert not module.apply(variables, condition).any()
    shapes = jax.tree.map(np.shape, variables["params"])
    assert shapes == (
      {"projection": {"kernel": (4, 24), "bias": (24,)}}
      if isinstance(module, SharedAdaLN)
      else {"down": {"kernel": (4, 3)}, "up": {"kernel": (3, 24)}}
    )


@pytest.mark.parametrize(
  ("module", "shape"),
  [
    (ConditionMlp(width=4, dtype=jnp.bfloat16), (2, 5)),
    (PatchEmbedding(patch_size=2, width=4, dtype=jnp.bfloat16), (1, 1, 2, 2, 3)),
    (SharedAdaLN(dtype=jnp.bfloat16), (2, 1, 4)),
    (LoRAAdaLN(rank=3, dtype=jnp.bfloat16), (2, 1, 4)),
  ],
  ids=lambda value: type(value).__name__,
)
def test_products_have_the_activation_dtype_and_parameters_are_float32(module, shape):
  x = jnp.zeros(shape)
  variables = jax.eval_shape(module.init, jax.random.key(0), x)
  assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {jnp.dtype("float32")}
  program = jax.make_jaxpr(module.apply)({"params": variables["params"]}, x)
  products = [e for e in program.jaxpr.eqns if e.primitive.name == "dot_general"]
  assert products and program.out_avals[0].dtype == jnp.bfloat16
  assert {v.aval.dtype for e in products for v in e.invars} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("scale", [2, 3])
def test_low_resolution_is_convolved_and_moved_from_depth_to_space(scale):
  module, (b, t, h, w, c) = LowResolutionUpsample(scale=scale), (2, 2, 4, 5, 3)
  assert LowResolutionUpsample().scale == 2
  latents = _draw(b, t, h, w, c)
  shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.asarray(latents))
  axes = shapes["params_axes"]
  assert axes["kernel_axes"].names == ("conv_h", "conv_w", "conv_in", "conv_out")
  assert axes["bias_axes"].names == ("conv_out",)
  assert shapes["params"]["kernel"].shape == (3, 3, c, scale**2 * c)
  kernel, bias = _draw(3, 3, c, scale**2 * c), _draw(scale**2 * c)
  got = module.apply({"params": {"kernel": kernel, "bias": bias}}, jnp.asarray(latents))
  padded = np.pad(latents.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0)))
  expected = np.zeros((b, t, scale * h, scale * w, c))
  for i, j in np.ndindex(h, w):
    window = padded[:, :, i : i + 3, j : j + 3]
    depth = np.einsum("bthwc,hwcd->btd", window, kernel) + bias
    block = depth.reshape(b, t, scale, scale, c)
    expected[:, :, scale * i : scale * (i + 1), scale * j : scale * (j + 1)] = block
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
