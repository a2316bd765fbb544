"""Every set of rules gives the results of one device, and places each parameter as documented in its table."""

import functools
import re

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from flax.linen.partitioning import get_axis_names
from jax.sharding import PartitionSpec

from tests import tiny_denoiser
from tests.collective_counts import collective_counts
from tests.random_params import random_params
from walt_t5x import engine
from walt_t5x.denoiser.attention import WindowAttention
from walt_t5x.denoiser.transformer import Conditioning, WaltDenoiser
from walt_t5x.engine.builtin.train_state import split_variables
from walt_t5x.sharding import partitioning
from walt_t5x.sharding.constraints import TOKENS, constrain

TINY = tiny_denoiser.FIELDS | {
  "num_heads": 4,
  "spatial_window": (1, 4, 8),
  "spatiotemporal_window": (3, 4, 4),
  "text_dim": 8,
  "scan_layers": True,
}
# (size of 'model', rules) by name of the setting in the table of walt_t5x/sharding/partitioning.py.
SETTINGS = {
  "data": (1, {}),
  "fully_sharded": (1, {"fully_sharded": True}),
  "tensor": (4, {}),
  "fully_sharded_tensor": (2, {"fully_sharded": True}),
  "sequence": (2, {"model_axis": "sequence"}),
  "fully_sharded_sequence": (2, {"model_axis": "sequence", "fully_sharded": True}),
}
STAGES = {
  "base": {"frame_prediction": True},
  "sr": {"patch_size": 2, "low_resolution_scale": 2, "pooled_text": False},
}
ROWS = 8
# Compiled programs run once, so LLVM optimization is off.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def partitioner(setting: str) -> engine.PjitPartitioner:
  size, settings = SETTINGS[setting]
  return engine.PjitPartitioner(
    num_partitions=size, logical_axis_rules=partitioning.rules(**settings)
  )


@functools.cache
def stage(name: str):
  """(module, inputs per example, parameters, their logical axes); noise everywhere: zeros would hide errors."""
  module = WaltDenoiser(**(TINY | STAGES[name]))
  rng = np.random.default_rng(0)

  # In numpy: each operation on a device would compile a program, and so would placing its result on a mesh.
  def noise(*shape):
    return rng.normal(size=(ROWS, *shape)).astype(np.float32)

  side = 8 * module.patch_size
  latents, steps = noise(3, side, side, 4), np.arange(ROWS, dtype=np.float32) * 100
  given = {"text": noise(3, 4, 8), "text_mask": np.ones((ROWS, 3, 4), bool)}
  if module.frame_prediction:
    first = np.tile(np.array([1, 0, 0], np.float32), (ROWS, 1))
    given |= {"frames": noise(3, side, side, 4), "frame_mask": first}
  if module.low_resolution_scale:
    given |= {
      "low_resolution": noise(3, side // 2, side // 2, 4),
      "low_resolution_steps": np.full(ROWS, 50, np.float32),
    }
  given |= {"is_image": np.arange(ROWS) % 2 == 1}
  inputs = (latents, steps, noise(3, side, side, 4), given)
  variables = jax.eval_shape(
    lambda *inputs: module.init(jax.random.key(0), *inputs[:3], Conditioning(**inputs[3])), *inputs
  )
  variables, axes = split_variables(variables)
  params = jax.tree.map(
    lambda p: (0.3 * rng.normal(size=p.shape)).astype(p.dtype), variables["params"]
  )
  return (
    module,
    inputs,
    params,
    flax.core.unfreeze(get_axis_names(flax.core.unfreeze(axes["params"]))),
  )


def step():
  module, inputs, params, axes = stage("base")

  def loss_and_gradients(params, inputs):
    def loss(params):
      conditioning = Conditioning(**inputs[3])
      return jnp.square(module.apply({"params": params}, *inputs[:3], conditioning)).mean()

    return jax.value_and_grad(loss)(params)

  return loss_and_gradients, params, inputs, axes


@functools.cache
def expected():
  function, params, batch, _ = step()
  compiled = jax.jit(function).lower(params, batch).compile(QUICKLY)
  return jax.device_get(compiled(params, batch))


@functools.cache
def partitioned(setting: str):
  """(compiled text, loss, gradients on the mesh)."""
  function, params, batch, axes = step()
  made = partitioner(setting)
  mesh_axes = made.get_mesh_axes(axes)
  rows = jax.tree.map(lambda _: made.data_partition_spec, batch)
  lowered = made.partition(function, (mesh_axes, rows), (None, mesh_axes)).lower(params, batch)
  compiled = lowered.compile(QUICKLY)
  placed = (
    jax.device_put(params, made.get_shardings(mesh_axes)),
    jax.device_put(batch, made.data_sharding),
  )
  return compiled.as_text(), *compiled(*placed)


@pytest.mark.parametrize("setting", SETTINGS)
def test_loss_and_gradients_equal_those_of_one_device(setting):
  """Of the base stage; the super-resolution stage is in `tests/engine/stage_steps_test.py`."""
  wanted_loss, wanted = expected()
  _, loss, gradients = partitioned(setting)
  assert float(loss) == pytest.approx(float(wanted_loss), rel=1e-5)
  scale = max(np.abs(g).max() for g in jax.tree.leaves(wanted))
  assert scale > 0
  for path, g in traverse_util.flatten_dict(jax.device_get(gradients), sep="/").items():
    want = traverse_util.flatten_dict(wanted, sep="/")[path]
    np.testing.assert_allclose(
      g, want, rtol=1e-5, atol=1e-5 * np.abs(want).max() + 1e-6 * scale, err_msg=path
    )


# The table's entry for a kernel: (the leading axis of a scanned stack) and the kernel's own axes.
MATRICES = {
  "attention/query/kernel": ("embed", "heads", None),
  "attention/out/kernel": ("heads", None, "embed"),
  "mlp/wi/kernel": ("embed", "mlp"),
  "mlp/wo/kernel": ("mlp", "embed"),
  "adaln_lora/down/kernel": ("embed", None),
  "attention/relative_position_bias/table": (None, "heads"),
}
TABLE = {
  "data": {"embed": None, "heads": None, "mlp": None},
  "fully_sharded": {"embed": 8, "heads": None, "mlp": None},
  "tensor": {"embed": None, "heads": 4, "mlp": 4},
  "fully_sharded_tensor": {"embed": 4, "heads": 2, "mlp": 2},
  "sequence": {"embed": None, "heads": None, "mlp": None},
  "fully_sharded_sequence": {"embed": 8, "heads": None, "mlp": None},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_parameters_are_placed_as_the_table_says(setting):
  _, _, gradients = partitioned(setting)
  flat = traverse_util.flatten_dict(gradients, sep="/")
  for suffix, names in MATRICES.items():
    found = {path: g for path, g in flat.items() if path.endswith("spatial/" + suffix)}
    assert found, suffix
    for path, array in found.items():
      parts = [1, *(TABLE[setting].get(name) or 1 for name in names)]
      shape = tuple(size // n for size, n in zip(array.shape, parts))
      assert {shard.data.shape for shard in array.addressable_shards} == {shape}, path


def test_rules_name_every_axis_of_every_module():
  names = {name for name, _ in partitioning.rules()}
  for name in STAGES:
    axes = stage(name)[3]
    leaves = jax.tree.leaves(axes, is_leaf=lambda n: isinstance(n, PartitionSpec))
    assert {a for spec in leaves for a in spec if a is not None} <= names


# Golden values from our own output: the collectives that XLA's CPU compiler makes of loss and gradient of the tiny base
# stage, counted per loop iteration. Data parallelism only sums gradients; fully sharded parameters are gathered and
# gradients scattered (all-reduce and a slice, on CPU); "tensor" sums after each product that is split by heads or MLP,
# and gathers complete modulation vectors; "sequence" sums and gathers once. A new entry adds communication to every
# step: find its cause before changing the table.
COUNTS = {
  "data": {"all-reduce": 1},
  "fully_sharded": {"all-gather": 65, "all-reduce": 2},
  "tensor": {"all-gather": 4, "all-reduce": 14},
  "fully_sharded_tensor": {"all-gather": 71, "all-reduce": 15},
  "sequence": {"all-gather": 1, "all-reduce": 2},
  "fully_sharded_sequence": {"all-gather": 65, "all-reduce": 5, "all-to-all": 2},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_step_has_exactly_these_collectives(setting):
  text, *_ = partitioned(setting)
  assert collective_counts(text) == COUNTS[setting]


@pytest.mark.parametrize("window, free", [((1, 4, 8), True), ((3, 4, 4), True), ((1, 8, 8), False)])
def test_windows_within_a_part_need_no_communication(window, free):
  """Forward and backward; a window across the border of two parts is the counterexample."""
  layer = WindowAttention(window=window, num_heads=4)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 8, 8, 16)), jnp.float32)
  params = random_params(layer.init, x)

  def gradient(x):
    def total(x):
      return jnp.square(constrain(layer.apply({"params": params}, constrain(x)))).sum()

    return constrain(jax.grad(total)(x))

  made = partitioner("sequence")
  spec = PartitionSpec("data", None, "model", None, None)
  compiled = made.compile(made.partition(gradient, (spec,), spec), x)
  assert (collective_counts(compiled.as_text()) == {}) == free
  placed = jax.device_put(x, jax.sharding.NamedSharding(made.mesh, spec))
  np.testing.assert_allclose(compiled(placed), jax.jit(gradient)(x), rtol=1e-4, atol=1e-4)


def _constraints(made, rows):
  x = jnp.zeros((rows, 3, 8, 8, 16))
  return re.findall(
    r"spec=(P\S*\(.*?\))", str(made.partition(constrain, None, None).trace(x).jaxpr)
  )


def test_constrain_applies_only_in_a_step_and_to_divisible_sizes():
  assert "sharding_constraint" not in str(jax.make_jaxpr(constrain)(jnp.zeros((4, 3, 8, 8, 16))))
  made = partitioner("sequence")
  assert _constraints(made, 4) == ["P('data', None, 'model', None, None)"]
  assert _constraints(made, 3) == ["P(None, None, 'model', None, None)"]


def test_an_unknown_axis_is_rejected():
  with pytest.raises(ValueError, match=r"model_axis='rows': expected one of"):
    partitioning.rules(model_axis="rows")
  first = partitioning.rules(additional_rules=[("embed", "model")])[0]
  assert first == ("embed", "model") and TOKENS[0] == "batch"
