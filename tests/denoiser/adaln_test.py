"""Modulation compared with numpy: order of its parts, initialization to zero, SiLU before the projections."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from walt_t5x.denoiser.adaln import LoRAAdaLN, Modulation, SharedAdaLN, modulate

CONDITION = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
SILU = CONDITION / (1 + np.exp(-CONDITION))


def _randomized(params):
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), params)


def test_six_vectors_per_frame_in_the_order_of_the_paper():
  flat = np.arange(2 * 3 * 12, dtype=np.float32).reshape(2, 3, 12)
  parts = Modulation.split(jnp.asarray(flat))
  order = ("scale_1", "scale_2", "shift_1", "shift_2", "gate_1", "gate_2")
  assert tuple(f.name for f in dataclasses.fields(parts)) == order
  for i, name in enumerate(order):
    part = getattr(parts, name)
    assert part.shape == (2, 1, 1, 3, 1, 2)
    np.testing.assert_array_equal(part[:, 0, 0, :, 0], flat[:, :, 2 * i : 2 * i + 2])


def test_a_scale_is_an_offset_from_one():
  x, shift, scale = (jnp.array(v) for v in ([3.0, -2.0], [0.5, 1.0], [0.25, 0.0]))
  np.testing.assert_array_equal(modulate(x, shift, scale), [4.25, -1.0])


def test_shared_adaln_is_a_linear_map_of_silu_initialized_to_zero():
  layer = SharedAdaLN()
  params = layer.init(jax.random.key(0), jnp.asarray(CONDITION))["params"]
  np.testing.assert_array_equal(
    layer.apply({"params": params}, jnp.asarray(CONDITION)), np.zeros((2, 3, 24))
  )
  p = _randomized(params)["projection"]
  got = layer.apply({"params": {"projection": p}}, jnp.asarray(CONDITION))
  np.testing.assert_allclose(got, SILU @ p["kernel"] + p["bias"], rtol=1e-4, atol=1e-5)


def test_the_correction_of_a_layer_has_its_rank_and_no_bias_and_is_initialized_to_zero():
  layer = LoRAAdaLN(rank=2)
  params = layer.init(jax.random.key(0), jnp.asarray(CONDITION))["params"]
  np.testing.assert_array_equal(
    layer.apply({"params": params}, jnp.asarray(CONDITION)), np.zeros((2, 3, 24))
  )
  assert np.any(params["down"]["kernel"])
  shapes = jax.tree.map(np.shape, params)
  assert shapes == {"down": {"kernel": (4, 2)}, "up": {"kernel": (2, 24)}}
  p = _randomized(params)
  got = layer.apply({"params": p}, jnp.asarray(CONDITION))
  np.testing.assert_allclose(
    got, SILU @ p["down"]["kernel"] @ p["up"]["kernel"], rtol=1e-4, atol=1e-5
  )
