"""Position tables on another grid compared with scipy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from flax import traverse_util

from tests.compiled import apply
from tests.random_params import random_params
from walt_t5x.denoiser.interpolation import (
  InterpolatePositions,
  displacements,
  interpolate_rows,
  interpolation_matrix,
)
from walt_t5x.denoiser.transformer import WaltDenoiser

OLD = {"spatial_window": (1, 4, 4), "spatiotemporal_window": (3, 2, 2)}
NEW = {"spatial_window": (1, 4, 6), "spatiotemporal_window": (3, 2, 3)}
TRANSFORM = InterpolatePositions(
  grid=(3, 4, 4),
  new_grid=(3, 4, 6),
  **OLD,
  **{f"new_{name}": window for name, window in NEW.items()},
)


def test_the_same_grid_is_the_identity():
  table = np.random.default_rng(0).normal(size=(12, 5)).astype(np.float32)
  assert interpolate_rows(table, (3, 4), (3, 4)) is table
  np.testing.assert_array_equal(interpolation_matrix(7, 7), np.eye(7))


def test_a_table_equals_scipys_zoom_with_aligned_ends():
  table = np.random.default_rng(1).normal(size=(4 * 5, 3))
  got = interpolate_rows(table, (4, 5), (4, 9)).reshape(4, 9, 3)
  for k in range(3):
    wanted = scipy.ndimage.zoom(table.reshape(4, 5, 3)[..., k], (1, 9 / 5), order=1)
    np.testing.assert_allclose(got[..., k], wanted, atol=1e-12)


def test_a_linear_table_stays_linear_and_displacement_zero_stays():
  window, wider = (3, 2, 2), (3, 2, 3)
  place = np.stack(
    np.meshgrid(*(np.linspace(-1, 1, n) for n in displacements(window)), indexing="ij"), -1
  ).reshape(-1, 3)
  moved = interpolate_rows(place, displacements(window), displacements(wider))
  wanted = np.stack(
    np.meshgrid(*(np.linspace(-1, 1, n) for n in displacements(wider)), indexing="ij"), -1
  ).reshape(-1, 3)
  np.testing.assert_allclose(moved, wanted, atol=1e-12)
  np.testing.assert_allclose(moved[len(moved) // 2], 0, atol=1e-12)


def test_one_row_is_repeated_and_several_rows_can_become_one():
  np.testing.assert_allclose(interpolation_matrix(1, 3), np.ones((3, 1)))
  np.testing.assert_allclose(interpolation_matrix(3, 1), [[0, 1, 0]])


def _state(scan, windows, width):
  module = WaltDenoiser(
    num_layers=4,
    width=8,
    num_heads=2,
    mlp_dim=8,
    latent_channels=2,
    scan_layers=scan,
    dtype=jnp.float32,
    **windows,
  )
  z = jnp.zeros((1, 3, 4, width, 2))
  params = random_params(module.init, z, jnp.ones((1,)))
  return module, z, {"target": params, "state": {"step": 7, "param_states": {"0": {"mu": params}}}}


@pytest.mark.parametrize("scan", [False, True])
def test_only_the_tables_of_a_checkpoint_change_to_the_shapes_of_the_new_grid(scan):
  _, _, old = _state(scan, OLD, 4)
  module, z, new = _state(scan, NEW, 6)
  moved = TRANSFORM(old, new)
  before, after = traverse_util.flatten_dict(old), traverse_util.flatten_dict(moved)
  wanted = traverse_util.flatten_dict(new)
  for name, value in after.items():
    assert jnp.shape(value) == jnp.shape(wanted[name]), name
    if not {"space", "relative_position_bias"} & set(name):
      assert value is before[name] or np.array_equal(value, before[name])
  params = jax.tree.map(jnp.asarray, moved["target"])
  assert np.isfinite(apply(module, {"params": params}, z, jnp.ones((1,)))).all()
  changed = [n for n in after if jnp.shape(after[n]) != jnp.shape(before[n])]
  assert {"mu", "target"} == {"mu" if "mu" in n else "target" for n in changed}


def test_a_resumed_run_is_unchanged_and_a_wrong_grid_raises():
  _, _, old = _state(False, OLD, 4)
  assert TRANSFORM(old, None, is_resuming=True) is old
  _, _, other = _state(False, NEW, 6)
  with pytest.raises(ValueError, match=re.escape("rows, expected")):
    TRANSFORM(other, None)
  with pytest.raises(ValueError, match="no position table"):
    TRANSFORM({"target": {"kernel": np.zeros(3)}}, None)
