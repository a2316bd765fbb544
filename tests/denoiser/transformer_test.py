"""The complete denoiser: which inputs may influence which outputs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import compiled, tiny_denoiser
from tests.denoiser.layer_stacking import stack_pairs, unstack_pairs
from tests.random_params import random_params
from walt_t5x.denoiser.transformer import Conditioning, WaltDenoiser

TINY = tiny_denoiser.FIELDS
ALL = {"text_dim": 6, "num_classes": 3, "low_resolution_scale": 2, "frame_prediction": True}
GRID = (3, 4, 4)


def _conditioning(module, rows, grid, seed=0):
  rng = np.random.default_rng(seed)
  t, h, w = grid
  c = module.latent_channels
  fields = {}
  if module.num_classes:
    fields["labels"] = rng.integers(0, module.num_classes, (rows, t)).astype(np.int32)
  if module.text_dim:
    fields["text"] = rng.normal(size=(rows, t, 5, module.text_dim)).astype(np.float32)
    fields["text_mask"] = np.arange(5) < rng.integers(1, 6, (rows, t, 1))
  if module.low_resolution_scale:
    s = module.low_resolution_scale
    fields["low_resolution"] = rng.normal(size=(rows, t, h // s, w // s, c)).astype(np.float32)
    fields["low_resolution_steps"] = np.full((rows,), 150.0, np.float32)
  return Conditioning(**jax.tree.map(jnp.asarray, fields))


def _changed(conditioning, **fields):
  """`fields` are arrays of numpy: with those of JAX every change of an input would compile a program."""
  return dataclasses.replace(conditioning, **jax.tree.map(jnp.asarray, fields))


def _model(**changes):
  """A tiny model with random parameters, its inputs and its conditioning, four examples."""
  module = WaltDenoiser(**(TINY | changes))
  rng = np.random.default_rng(5)
  z = rng.normal(size=(4, *GRID, 4)).astype(np.float32)
  steps = np.array([10, 300, 700, 1000], np.int32)
  conditioning = _conditioning(module, 4, GRID)
  inputs = jax.tree.map(jnp.asarray, (z, steps, None, conditioning))
  params = random_params(module.init, *inputs, seed=3)
  return module, {"params": params}, z, steps, conditioning


@pytest.fixture(scope="module")
def complete():
  """A model with every condition, as `_model`; the first item is its compiled function f(z, steps, self_condition,
  conditioning)."""
  module, variables, z, steps, conditioning = _model(**ALL)
  conditioning = _changed(conditioning, frames=z, frame_mask=np.zeros((4, 3), np.float32))
  program = jax.jit(lambda z, steps, *more: module.apply(variables, z, steps, *more))
  apply = lambda *inputs: np.asarray(program(*inputs))  # noqa: E731
  return apply, module, variables, z, steps, conditioning


def test_a_mixed_batch_of_images_and_videos_equals_separate_batches(complete):
  apply, _, _, z, steps, conditioning = complete
  is_image = np.array([True, False, False, True])
  together = apply(z, steps, z, _changed(conditioning, is_image=is_image))
  videos = apply(z, steps, z, conditioning)
  images = apply(z, steps, z, _changed(conditioning, is_image=np.ones(4, bool)))
  np.testing.assert_allclose(together[1:3], videos[1:3], atol=2e-5)
  np.testing.assert_allclose(together[::3], images[::3], atol=2e-5)


def test_an_image_does_not_depend_on_its_neighbors_in_the_stack_or_on_its_slot(complete):
  apply, _, _, z, steps, conditioning = complete
  conditioning = _changed(conditioning, is_image=np.ones(4, bool))
  before = apply(z, steps, z, conditioning)
  last = np.array([0, 0, 1], np.float32).reshape(1, 3, 1)
  changed = _changed(
    conditioning,
    text=np.asarray(conditioning.text) + last[..., None],
    text_mask=np.asarray(conditioning.text_mask) | (last > 0),
  )
  moved = z + last[..., None, None]
  after = apply(moved, steps, moved, changed)
  np.testing.assert_allclose(after[:, :2], before[:, :2], atol=1e-6)
  assert np.abs(after[:, 2] - before[:, 2]).max() > 1e-3
  z, conditioning = jax.tree.map(
    lambda x: jnp.asarray(np.roll(x, 1, axis=1)) if x.ndim > 1 else x, (z, conditioning)
  )
  np.testing.assert_allclose(
    apply(z, steps, z, conditioning), np.roll(before, 1, axis=1), atol=2e-5
  )


def test_a_video_mixes_its_frames(complete):
  apply, _, _, z, steps, conditioning = complete
  before = apply(z, steps, z, conditioning)
  moved = z + np.array([0, 0, 1], np.float32).reshape(1, 3, 1, 1, 1)
  after = apply(moved, steps, z, conditioning)
  assert np.abs(after[:, 0] - before[:, 0]).max() > 1e-4


def test_text_padding_has_no_effect(complete):
  apply, _, _, z, steps, conditioning = complete
  noisy = np.where(
    np.asarray(conditioning.text_mask)[..., None], conditioning.text, np.float32(99.0)
  )
  np.testing.assert_array_equal(
    apply(z, steps, z, conditioning),
    apply(z, steps, z, _changed(conditioning, text=noisy)),
  )


def test_every_condition_is_read(complete):
  apply, _, _, z, steps, conditioning = complete
  base = apply(z, steps, z, conditioning)
  given = {name: np.asarray(array) for name, array in vars(conditioning).items()}
  changes = {
    "labels": (given["labels"] + 1) % 3,
    "text": given["text"] + 1,
    "frame_mask": np.ones((4, 3), np.float32),
    "low_resolution": given["low_resolution"] + 1,
    "low_resolution_steps": given["low_resolution_steps"] + 100,
  }
  for name, value in changes.items():
    moved = apply(z, steps, z, _changed(conditioning, **{name: value}))
    assert np.abs(moved - base).max() > 1e-4, name
  assert np.abs(apply(z, steps + 1, z, conditioning) - base).max() > 1e-5
  assert np.abs(apply(z, steps, z + 1, conditioning) - base).max() > 1e-4
  # Frames outside the mask have no effect.
  hidden = _changed(conditioning, frames=given["frames"] + 5)
  np.testing.assert_array_equal(apply(z, steps, z, hidden), base)


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
  # Without the parts of attention that have few parameters: four unrolled layers compile slowly.
  module, variables, z, steps, conditioning = _model(
    text_dim=6, num_layers=4, qk_norm=False, relative_bias=False
  )
  inputs = jax.tree.map(jnp.asarray, (z, steps, None, conditioning))
  params = stack_pairs(variables["params"])
  scanned = dataclasses.replace(module, scan_layers=True, remat="full")

  def total(p, m):
    return jnp.sum(jnp.square(m.apply({"params": p}, *inputs)))

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


def test_bfloat16_stays_near_float32(complete):
  apply, module, variables, z, steps, conditioning = complete
  exact = apply(z, steps, z, conditioning)
  rounded = dataclasses.replace(module, dtype=jnp.bfloat16)
  half = compiled.apply(rounded, variables, z, steps, z, conditioning)
  assert half.dtype == jnp.float32
  assert np.abs(half - exact).max() < 0.05 * np.abs(exact).max()


def test_every_parameter_has_logical_axes():
  module = WaltDenoiser(**(TINY | ALL))
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
