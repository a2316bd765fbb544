"""The complete denoiser: published sizes, and which inputs may influence which outputs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import compiled, tiny_denoiser
from tests.denoiser.layer_stacking import stack_pairs, unstack_pairs
from tests.random_params import random_params
from walt_t5x.denoiser.transformer import Conditioning, WaltDenoiser

L = {"num_layers": 24, "width": 1024, "num_heads": 16, "mlp_dim": 4096}
XL = {"num_layers": 28, "width": 1152, "num_heads": 16, "mlp_dim": 4608}
TEXT = {"text_dim": 2048, "frame_prediction": True}
SR = TEXT | {
  "pooled_text": False,
  "low_resolution_scale": 2,
  "patch_size": 2,
  "spatial_window": (1, 16, 28),
  "spatiotemporal_window": (5, 8, 14),
}
PUBLISHED = {
  "L": ((5, 16, 16), {"num_classes": 101, **L}, 313_238_408, 0),
  "L r=4": ((5, 16, 16), {"num_classes": 101, "adaln_rank": 4, **L}, 313_582_000, 50_000),
  "L r=16": ((5, 16, 16), {"num_classes": 101, "adaln_rank": 16, **L}, 315_647_000, 50_000),
  "L r=64": ((5, 16, 16), {"num_classes": 101, "adaln_rank": 64, **L}, 323_904_000, 50_000),
  "L r=256": ((5, 16, 16), {"num_classes": 101, "adaln_rank": 256, **L}, 356_935_000, 50_000),
  "L separate": ((5, 16, 16), {"num_classes": 101, "adaln": "separate", **L}, 457_739_000, 50_000),
  "XL": ((5, 16, 16), {"num_classes": 101, **XL}, 460_019_080, 0),
  "K600 L": ((5, 16, 16), {"frame_prediction": True, **L}, 313_143_176, 0),
  "ImageNet L": (
    (1, 32, 32),
    {"num_classes": 1000, "adaln": "separate", "spatiotemporal_window": (1, 32, 32), **L},
    459_815_000,
    50_000,
  ),
  "T2V L": ((5, 16, 16), TEXT | L, 419_153_800, 0),
  "3B": (
    (5, 16, 16),
    TEXT | {"num_layers": 52, "width": 1728, "num_heads": 16, "mlp_dim": 9216},
    2_940_118_024,
    0,
  ),
  "SR1": (
    (5, 32, 56),
    SR | {"num_layers": 40, "width": 1408, "num_heads": 16, "mlp_dim": 5632},
    1_296_343_616,
    0,
  ),
  "SR2": ((5, 64, 112), SR | L | {"patch_size": 4}, 418_609_696, 0),
  "SR2, patch 2": ((5, 64, 112), SR | L, 419_482_048, 0),
}

TINY = tiny_denoiser.FIELDS
GRID = (3, 4, 4)


def _conditioning(module, rows, grid, seed=0):
  rng = np.random.default_rng(seed)
  t, h, w = grid
  c = module.latent_channels
  fields = {}
  if module.num_classes:
    fields["labels"] = jnp.asarray(rng.integers(0, module.num_classes, (rows, t)))
  if module.text_dim:
    fields["text"] = jnp.asarray(rng.normal(size=(rows, t, 5, module.text_dim)), jnp.float32)
    fields["text_mask"] = jnp.asarray(np.arange(5) < rng.integers(1, 6, (rows, t, 1)))
  if module.low_resolution_scale:
    s = module.low_resolution_scale
    fields["low_resolution"] = jnp.asarray(
      rng.normal(size=(rows, t, h // s, w // s, c)), jnp.float32
    )
    fields["low_resolution_steps"] = jnp.full((rows,), 150.0)
  return Conditioning(**fields)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_count_is_the_published_one(name):
  grid, fields, expected, tolerance = PUBLISHED[name]
  module = WaltDenoiser(**fields)
  t, h, w = grid

  def init():
    return module.init(
      jax.random.key(0),
      jnp.zeros((1, t, h, w, 8)),
      jnp.ones((1,)),
      None,
      _conditioning(module, 1, grid),
    )

  params = jax.eval_shape(init)["params"]
  assert abs(sum(x.size for x in jax.tree.leaves(params)) - expected) <= tolerance


def _model(**changes):
  """A tiny model with random parameters, its inputs and its conditioning, four examples."""
  module = WaltDenoiser(**(TINY | changes))
  rng = np.random.default_rng(5)
  z = jnp.asarray(rng.normal(size=(4, *GRID, 4)), jnp.float32)
  steps = jnp.array([10, 300, 700, 1000])
  conditioning = _conditioning(module, 4, GRID)
  params = random_params(module.init, z, steps, None, conditioning, seed=3)
  return module, {"params": params}, z, steps, conditioning


def _rows(tree, index):
  return jax.tree.map(lambda x: x[index], tree)


def test_a_mixed_batch_of_images_and_videos_equals_separate_batches():
  module, variables, z, steps, conditioning = _model(text_dim=6, num_classes=3)
  is_image = jnp.array([True, False, False, True])
  apply = jax.jit(module.apply)
  together = apply(variables, z, steps, z, dataclasses.replace(conditioning, is_image=is_image))
  videos, images = np.array([1, 2]), np.array([0, 3])
  alone = apply(variables, z[videos], steps[videos], z[videos], _rows(conditioning, videos))
  np.testing.assert_allclose(together[videos], alone, atol=2e-5)
  stack = dataclasses.replace(_rows(conditioning, images), is_image=jnp.array([True, True]))
  np.testing.assert_allclose(
    together[images], apply(variables, z[images], steps[images], z[images], stack), atol=2e-5
  )


def test_an_image_does_not_depend_on_its_neighbors_in_the_stack_or_on_its_slot():
  module, variables, z, steps, conditioning = _model(text_dim=6)
  conditioning = dataclasses.replace(conditioning, is_image=jnp.ones(4, bool))
  apply = jax.jit(module.apply)
  before = apply(variables, z, steps, None, conditioning)
  changed = dataclasses.replace(
    conditioning,
    text=conditioning.text.at[:, 2].add(1.0),
    text_mask=conditioning.text_mask.at[:, 2].set(True),
  )
  after = apply(variables, z.at[:, 2].add(1.0), steps, None, changed)
  np.testing.assert_allclose(after[:, :2], before[:, :2], atol=1e-6)
  assert np.abs(after[:, 2] - before[:, 2]).max() > 1e-3
  rolled = jax.tree.map(lambda x: jnp.roll(x, 1, axis=1) if x.ndim > 1 else x, conditioning)
  np.testing.assert_allclose(
    apply(variables, jnp.roll(z, 1, axis=1), steps, None, rolled),
    jnp.roll(before, 1, axis=1),
    atol=2e-5,
  )


def test_a_video_mixes_its_frames():
  module, variables, z, steps, _ = _model()
  before = compiled.apply(module, variables, z, steps)
  after = compiled.apply(module, variables, z.at[:, 2].add(1.0), steps)
  assert np.abs(after[:, 0] - before[:, 0]).max() > 1e-4


def test_text_padding_has_no_effect():
  module, variables, z, steps, conditioning = _model(text_dim=6)
  noisy = jnp.where(conditioning.text_mask[..., None], conditioning.text, 99.0)
  np.testing.assert_array_equal(
    compiled.apply(module, variables, z, steps, None, conditioning),
    compiled.apply(
      module, variables, z, steps, None, dataclasses.replace(conditioning, text=noisy)
    ),
  )


def test_every_condition_is_read():
  module, variables, z, steps, conditioning = _model(
    text_dim=6, num_classes=3, frame_prediction=True, low_resolution_scale=2
  )
  conditioning = dataclasses.replace(conditioning, frames=z, frame_mask=jnp.zeros((4, 3)))
  apply = jax.jit(module.apply)
  base = apply(variables, z, steps, z, conditioning)
  changes = {
    "labels": (conditioning.labels + 1) % 3,
    "text": conditioning.text + 1,
    "frame_mask": jnp.ones((4, 3)),
    "low_resolution": conditioning.low_resolution + 1,
    "low_resolution_steps": conditioning.low_resolution_steps + 100,
  }
  for name, value in changes.items():
    moved = apply(variables, z, steps, z, dataclasses.replace(conditioning, **{name: value}))
    assert np.abs(moved - base).max() > 1e-4, name
  assert np.abs(apply(variables, z, steps + 1, z, conditioning) - base).max() > 1e-5
  assert np.abs(apply(variables, z, steps, z + 1, conditioning) - base).max() > 1e-4
  # Frames outside the mask have no effect.
  hidden = dataclasses.replace(conditioning, frames=conditioning.frames + 5)
  np.testing.assert_array_equal(apply(variables, z, steps, z, hidden), base)


def test_adaln_lora_of_full_rank_can_equal_a_separate_adaln():
  from walt_t5x.denoiser.adaln import LoRAAdaLN, SharedAdaLN

  condition = jnp.asarray(np.random.default_rng(0).normal(size=(2, 1, 8)), jnp.float32)
  kernel = jax.random.normal(jax.random.key(0), (8, 48))
  shared = jax.random.normal(jax.random.key(1), (8, 48))
  bias = jax.random.normal(jax.random.key(2), (48,))
  wanted = SharedAdaLN().apply(
    {"params": {"projection": {"kernel": kernel, "bias": bias}}}, condition
  )
  first = SharedAdaLN().apply(
    {"params": {"projection": {"kernel": shared, "bias": bias}}}, condition
  )
  lora = LoRAAdaLN(rank=8).apply(
    {"params": {"down": {"kernel": jnp.eye(8)}, "up": {"kernel": kernel - shared}}}, condition
  )
  np.testing.assert_allclose(first + lora, wanted, atol=1e-5)


def test_scanned_layers_equal_unrolled_ones():
  module, variables, z, steps, conditioning = _model(text_dim=6, num_layers=4)
  params = stack_pairs(variables["params"])
  scanned = dataclasses.replace(module, scan_layers=True, remat="full")

  def total(p, m):
    return jnp.sum(jnp.square(m.apply({"params": p}, z, steps, None, conditioning)))

  value_and_grad = jax.jit(jax.value_and_grad(total), static_argnums=1)
  value, gradient = value_and_grad(params, scanned)
  expected, of_unrolled = value_and_grad(variables["params"], module)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  jax.tree.map(
    lambda got, wanted: np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3),
    unstack_pairs(gradient),
    dict(of_unrolled),
  )
  with pytest.raises(ValueError, match="already scanned"):
    stack_pairs(params)


def test_bfloat16_stays_near_float32():
  module, variables, z, steps, conditioning = _model(text_dim=6)
  exact = compiled.apply(module, variables, z, steps, None, conditioning)
  rounded = dataclasses.replace(module, dtype=jnp.bfloat16)
  half = compiled.apply(rounded, variables, z, steps, None, conditioning)
  assert half.dtype == jnp.float32
  assert np.abs(half - exact).max() < 0.05 * np.abs(exact).max()


def test_every_parameter_has_logical_axes():
  module = WaltDenoiser(
    **(
      TINY | {"text_dim": 6, "num_classes": 3, "low_resolution_scale": 2, "frame_prediction": True}
    )
  )
  variables = jax.eval_shape(
    lambda: module.init(
      jax.random.key(0),
      jnp.zeros((1, *GRID, 4)),
      jnp.ones((1,)),
      None,
      _conditioning(module, 1, GRID),
    )
  )
  axes = jax.tree.leaves(variables["params_axes"], is_leaf=lambda x: hasattr(x, "names"))
  params = jax.tree.leaves(variables["params"])
  assert len(axes) == len(params)
  for names, param in zip(axes, params):
    assert len(names.names) == len(set(names.names)) == param.ndim


def test_errors_name_the_invalid_size():
  z, steps = jnp.zeros((1, 3, 4, 4, 4)), jnp.ones((1,))
  for fields, message in (
    ({"num_layers": 3}, "num_layers=3"),
    ({"patch_size": 3}, "patch_size=3"),
    ({"spatial_window": (1, 3, 4)}, "does not divide the token grid"),
    ({"adaln": "film"}, "film"),
    ({"remat": "some"}, "some"),
    ({"num_classes": 3}, "labels"),
  ):
    with pytest.raises(ValueError, match=message):
      jax.eval_shape(WaltDenoiser(**(TINY | fields)).init, jax.random.key(0), z, steps)


def test_position_tables_start_distinct_and_smooth():
  from walt_t5x.denoiser.embeddings import sinusoid_grid

  grid = np.asarray(sinusoid_grid((4, 6), 32)).reshape(4, 6, 32)
  flat = grid.reshape(24, 32)
  distance = np.linalg.norm(flat[:, None] - flat[None], axis=-1) + 1e9 * np.eye(24)
  assert distance.min() > 0.5
  # The first half of the features depends on the grid row only, the second half on the column.
  np.testing.assert_allclose(grid[1, 2, 16:], grid[3, 2, 16:], atol=1e-6)
  np.testing.assert_allclose(grid[1, 2, :16], grid[1, 5, :16], atol=1e-6)
  assert np.linalg.norm(grid[0, 0] - grid[0, 1]) < np.linalg.norm(grid[0, 0] - grid[0, 5])
