"""The tiny denoiser on meshes of fake devices: equal losses, and checkpoints that move between meshes exactly.

The small version of `python -m benchmarks.engine_meshes`, which trains on every mesh.
"""

import functools

import jax
import numpy as np
import pytest

from benchmarks import engine_meshes as meshes

# `tests/engine/parallel_test.py` moves the toy's checkpoints over more meshes, the benchmark the denoiser's.
JOURNEY = ((8, 2), (1, 1), (8, 4))


@pytest.fixture(scope="module")
def on_mesh(tmp_path_factory):
  """`f(devices, model_parallel)`: the denoiser on that mesh."""
  with meshes.configured(tmp_path_factory.mktemp("meshes") / "cache") as given:
    yield functools.cache(functools.partial(meshes.OnMesh, given))


@pytest.fixture(scope="module")
def state(on_mesh):
  """A state whose arrays, moments and average included, all have random values."""
  mesh = on_mesh(1, 1)
  rng = np.random.default_rng(0)

  def random(leaf):
    if leaf.dtype == np.int32:
      return np.full(leaf.shape, 7, np.int32)
    return (0.05 * rng.standard_normal(leaf.shape)).astype(leaf.dtype)

  return jax.device_put(jax.tree.map(random, mesh.initializer.shapes), mesh.initializer.shardings)


def test_data_and_model_parallel_losses_equal_those_of_one_device(on_mesh, state):
  losses = []
  batch = jax.device_get(next(on_mesh(1, 1).rows))
  for devices, model_parallel in ((1, 1), (8, 2)):
    mesh = on_mesh(devices, model_parallel)
    loss_fn = mesh.partitioner.partition(
      lambda params, batch, model=mesh.model: model.loss_fn(params, batch, jax.random.key(3))[0],
      in_axis_resources=(mesh.initializer.axes.params, mesh.partitioner.data_partition_spec),
      out_axis_resources=None,
    )
    placed = jax.device_put(batch, mesh.partitioner.data_sharding)
    losses.append(float(loss_fn(mesh.place(state).params, placed)))
  np.testing.assert_allclose(losses, losses[0], rtol=meshes.TOLERANCE)


def test_a_checkpoint_moves_from_8_devices_to_1_and_back_exactly(on_mesh, state, tmp_path):
  start = on_mesh(*JOURNEY[0])
  start.save(tmp_path / "0", start.place(state))
  for n, (devices, model_parallel) in enumerate(JOURNEY[1:]):
    mesh = on_mesh(devices, model_parallel)
    moved = mesh.restore(tmp_path / str(n))
    for array in jax.tree.leaves(moved.params):
      assert len(array.sharding.device_set) == devices
    split = [a for a in jax.tree.leaves(moved.params) if not a.sharding.is_fully_replicated]
    assert bool(split) == (model_parallel > 1)
    assert not meshes.differences(moved, state)
    # Nothing reads the last one.
    if n + 2 < len(JOURNEY):
      mesh.save(tmp_path / str(n + 1), moved)
