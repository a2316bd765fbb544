"""Training gives the same result for any number of microbatches, data shards and model shards."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from tests.engine import runs, toy
from walt_t5x import engine
from walt_t5x.engine import array_digests
from walt_t5x.engine.builtin.partitioner import standard_logical_axis_rules
from walt_t5x.engine.builtin.training_step import gradients

RULES = [*standard_logical_axis_rules(), ("unmodeled", None)]


def partitioner(num_partitions: int, **settings) -> engine.PjitPartitioner:
  return engine.PjitPartitioner(
    num_partitions=num_partitions, **{"logical_axis_rules": RULES} | settings
  )


def train(folder, **changes):
  """Four deterministic steps without checkpoints."""
  changes = {"model": runs.model(), "checkpoint_cfg": engine.CheckpointConfig()} | changes
  return runs.train(folder, 4, **changes)


def assert_close(a, b):
  a, b = runs.flat(a), runs.flat(b)
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_allclose(a[name], b[name], rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
  folder = tmp_path_factory.mktemp("single")
  return folder, train(folder)


def test_eight_data_shards_equal_one_device(single, tmp_path):
  assert jax.device_count() == 8
  folder, expected = single
  assert_close(train(tmp_path, partitioner=partitioner(1)), expected)
  for a, b in zip(runs.lines(tmp_path), runs.lines(folder)):
    assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    assert a["gradient_norm"] == pytest.approx(b["gradient_norm"], rel=1e-5)
    assert a["ids"] == b["ids"]


def some_devices(count: int, model: int = 1) -> engine.PjitPartitioner:
  """A partitioner over the first devices, `model` of them along the model axis."""
  made = partitioner(model)
  grid = np.array(jax.devices()[:count]).reshape(count // model, model)
  made.mesh = jax.sharding.Mesh(grid, ("data", "model"))
  return made


@pytest.mark.parametrize(("devices", "model"), [(4, 1), (2, 2), (4, 4), (8, 2)])
def test_every_mesh_gives_the_same_losses(single, tmp_path, devices, model):
  folder, expected = single
  state = train(tmp_path, partitioner=some_devices(devices, model))
  assert len(state.params["kernel"].sharding.device_set) == devices
  for a, b in zip(runs.lines(tmp_path), runs.lines(folder)):
    for name in ("loss", "gradient_norm", "update_norm"):
      assert a[name] == pytest.approx(b[name], rel=1e-5)
  assert_close(state, expected)


def test_a_checkpoint_moves_from_8_to_4_to_1_devices_and_back_exactly(tmp_path):
  """Restored and saved again on each mesh without a step in between: the bits are equal."""
  save = engine.CheckpointConfig(save=engine.SaveCheckpointConfig(period=2, save_dataset=True))
  settings = {"model": runs.model(), "checkpoint_cfg": save}
  start = runs.train(tmp_path / "8", 4, partitioner=some_devices(8, 2), **settings)
  before = tmp_path / "8"
  for count, model in ((4, 4), (1, 1), (8, 4), (8, 1)):
    folder = tmp_path / f"{count}_{model}"
    restore = engine.RestoreCheckpointConfig(path=str(before), restore_dataset=True)
    cfg = engine.CheckpointConfig(save.save, restore)
    mesh = some_devices(count, model)
    state = runs.train(folder, 4, **(settings | {"checkpoint_cfg": cfg, "partitioner": mesh}))
    assert len(state.params["kernel"].sharding.device_set) == count
    for name, array in runs.flat(start).items():
      np.testing.assert_array_equal(runs.flat(state)[name], array, err_msg=name)
    before = folder
  # After the moves the run continues like one that was not moved.
  home = runs.train(tmp_path / "8", 6, partitioner=some_devices(8, 1), **settings)
  away = runs.train(before, 6, partitioner=some_devices(8, 1), **settings)
  for name, array in runs.flat(home).items():
    np.testing.assert_array_equal(runs.flat(away)[name], array, err_msg=name)


def test_model_shards_equal_one_device_and_are_shards(single, tmp_path):
  state = train(tmp_path, partitioner=partitioner(4))
  for tree in (state.params, state.param_states[1].mu, state.param_states[4].ema):
    kernel = tree["kernel"]  # ("embed", "mlp"): eight columns over four devices.
    assert kernel.sharding.spec == PartitionSpec(None, "model")
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(4, 2)}
  assert state.params["bias"].sharding.is_fully_replicated
  assert_close(state, single[1])


def test_microbatches_equal_the_full_batch(single, tmp_path):
  folder, expected = single
  state = train(tmp_path, trainer_cls=runs.trainer(num_microbatches=4))
  assert_close(state, expected)
  for a, b in zip(runs.lines(tmp_path), runs.lines(folder)):
    assert {k: a[k] for k in ("loss", "ids", "gradient_norm")} == pytest.approx(
      {k: b[k] for k in ("loss", "ids", "gradient_norm")}, rel=1e-5
    )


def test_the_gradient_equals_the_closed_form():
  """d/dw mean((x w)^2) = 2 X^T X w / n, for any number of microbatches."""
  x = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
  w = np.array([1.0, -2.0, 0.5], np.float32)

  def loss(params, batch, rng):
    return ((batch["x"] @ params) ** 2).mean(), {}

  sharding = runs.one_device().data_sharding
  for k in (None, 1, 2, 3):
    run = jax.jit(
      lambda w, k=k: gradients(
        loss, w, {"x": x}, rng=jax.random.PRNGKey(0), num_microbatches=k, data_sharding=sharding
      )[1]
    )
    np.testing.assert_allclose(run(w), 2 * x.T @ x @ w / 6, rtol=1e-5)
  with pytest.raises(
    ValueError, match=r"num_microbatches: got 4, expected a divisor of the batch size 6"
  ):
    gradients(
      loss, w, {"x": x}, rng=jax.random.PRNGKey(0), num_microbatches=4, data_sharding=sharding
    )


def test_a_checkpoint_moves_to_another_mesh(tmp_path):
  """Saved over 8 data shards, continued over 4 model shards: equal to a run on one mesh."""
  save = engine.CheckpointConfig(save=engine.SaveCheckpointConfig(period=2, save_dataset=True))
  here, there = tmp_path / "here", tmp_path / "there"
  expected = train(here, checkpoint_cfg=save)
  runs.train(there, 2, model=runs.model(), checkpoint_cfg=save, partitioner=partitioner(1))
  assert_close(train(there, checkpoint_cfg=save, partitioner=partitioner(4)), expected)


def test_masked_and_split_optimizers_are_sharded_like_their_parameters(tmp_path):
  """A separate chain for each part of the model, as for generator and discriminator."""

  def label(params):
    return jax.tree_util.tree_map_with_path(
      lambda path, _: "head" if path[0].key == "out_kernel" else "body", params
    )

  body = runs.optimizers.adamw_chain(
    0.1, ema_decay=0.5, weight_decay=0.1, weight_decay_names=("kernel",)
  )
  split = optax.multi_transform({"body": body, "head": optax.adam(0.1)}, label)
  model = toy.ToyModel(runs.optimizers.wrap(split))
  save = engine.CheckpointConfig(save=engine.SaveCheckpointConfig(period=2))
  state = train(tmp_path, model=model, partitioner=partitioner(2), checkpoint_cfg=save)
  inner = state.param_states.inner_states
  assert inner["body"].inner_state[1].mu["kernel"].sharding.spec == PartitionSpec(None, "model")
  assert isinstance(inner["body"].inner_state[1].mu["out_kernel"], optax.MaskedNode)
  assert_close(train(tmp_path, model=model, partitioner=partitioner(2), checkpoint_cfg=save), state)
  average = engine.checkpoints.load_params(tmp_path, ema=True)
  flat = runs.flat(state)
  prefix = "state/param_states/inner_states/body/inner_state/4/ema"
  np.testing.assert_array_equal(average["kernel"], flat[f"{prefix}/kernel"])
  np.testing.assert_array_equal(average["out_kernel"], flat["target/out_kernel"])  # Has no average.


@dataclasses.dataclass(frozen=True)
class _Chip:
  """The attributes that JAX's placement reads of a chip of a v5e slice."""

  id: int
  coords: tuple[int, int, int]
  platform: str = "tpu"
  device_kind: str = "TPU v5 lite"
  core_on_chip: int = 0
  process_index: int = 0
  slice_index: int = 0


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
def test_model_partitions_of_a_large_slice_are_neighbors(size, monkeypatch):
  chips = [_Chip(16 * y + x, (x, y, 0)) for y in range(16) for x in range(16)]
  monkeypatch.setattr(engine.PjitPartitioner, "devices", chips)
  grid = partitioner(size).mesh.devices
  assert grid.shape == (256 // size, size)
  assert {chip.id for chip in grid.flat} == set(range(256))
  for row in grid:
    for a, b in itertools.pairwise(row):
      assert sum(abs(i - j) for i, j in zip(a.coords, b.coords, strict=True)) == 1


def test_invalid_sizes_are_rejected(tmp_path):
  for size, nearest in ((6, "8"), (12, "8 and 16")):
    message = rf"batch size {size} is not divisible by 8 data partitions.*that are: {nearest}\."
    with pytest.raises(ValueError, match=message):
      train(tmp_path, partitioner=partitioner(1), train_dataset_cfg=runs.dataset(batch_size=size))
  with pytest.raises(
    ValueError, match=r"kernel: dimension of 4 is not divisible by mesh axis 'model' of 8"
  ):
    rules = [("batch", "data"), ("embed", "model"), ("mlp", None), ("unmodeled", None)]
    train(tmp_path, partitioner=partitioner(8, logical_axis_rules=rules))
  with pytest.raises(ValueError, match="8 devices do not divide into 3"):
    train(tmp_path, partitioner=partitioner(3))
  with pytest.raises(ValueError, match="exactly one of them"):
    engine.PjitPartitioner(num_partitions=2, model_parallel_submesh=(1, 1, 1, 2))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "bool"])
def test_the_digest_of_an_array_is_that_of_its_values_in_their_order(dtype):
  """For any sharding, on the host and in a compiled program."""
  mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("a", "b", "c"))
  values = (2 * np.random.default_rng(0).normal(size=(4, 8, 6))).astype(np.int8)
  array = values.astype(jnp.dtype(dtype))
  digest = array_digests.digests({"": array})[""]
  for spec in ((), ("a", "b"), ("a", None, "c"), (None, ("a", "b"), "c")):
    sharding = jax.sharding.NamedSharding(mesh, PartitionSpec(*spec))
    sharded = jax.device_put(array, sharding)
    assert (
      array_digests.digests({"": sharded})[""] == digest == int(array_digests._of_device(sharded))
    )
  assert array_digests.digests({"": array[::-1]})[""] != digest
  # Of large arrays too, whose words are summed in blocks.
  large = np.tile(values.astype(jnp.dtype(dtype)).reshape(-1)[:60], 2400).reshape(8, -1)
  expected = array_digests.digests({"": large})[""]
  for spec in ((), ("a", ("b", "c")), (None, "a"), (("a", "b", "c"),)):
    sharded = jax.device_put(large, jax.sharding.NamedSharding(mesh, PartitionSpec(*spec)))
    assert array_digests.digests({"": sharded})[""] == expected
  assert int(array_digests._of_device(sharded)) == expected
  moved = np.roll(large.reshape(-1), 2**16).reshape(large.shape)
  assert array_digests.digests({"": moved})[""] != expected
  part = array[0, :3]
  digest = array_digests.digests({"": part})[""]
  for bit in range(8 * part.nbytes):
    changed = np.frombuffer(part.tobytes(), np.uint8).copy()
    changed[bit // 8] ^= 1 << bit % 8
    changed = changed.view(part.dtype).reshape(part.shape)
    assert array_digests.digests({"": changed})[""] != digest
