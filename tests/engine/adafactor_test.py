"""Adafactor compared with a numpy loop, and the sharding of its factored state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from walt_t5x.engine.adafactor import factored_state_axes
from walt_t5x.engine.builtin.optimizer import OptaxWrapper
from walt_t5x.engine.optimizers import adafactor_chain

pytestmark = pytest.mark.numerics

# Two parameters have moments of the same shapes, which only the parameters distinguish.
SHAPES = {
  "kernel": (3, 8, 6),
  "flipped": (3, 6, 8),
  "square": (6, 6),
  "heads": (8, 2, 7),
  "bias": (5,),
}
AXES = {
  "kernel": PartitionSpec("layers", "embed", "mlp"),
  "flipped": PartitionSpec("layers", "embed", "mlp"),
  "square": PartitionSpec("embed", "joined"),
  "heads": PartitionSpec("embed", "heads", "kv"),
  "bias": PartitionSpec("mlp"),
}


def _tree(seed, scale=1.0):
  rng = np.random.default_rng(seed)
  return {n: scale * rng.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}


def test_updates_equal_a_numpy_loop():
  """Equations of Algorithm 4 of the paper, on the two longest axes, without the relative step size."""
  chain = adafactor_chain(0.1, clip_norm=None, min_dim_size_to_factor=4, momentum=0.5)
  params, state, update = _tree(0), jax.jit(chain.init)(_tree(0)), jax.jit(chain.update)
  expected = {n: p.astype(np.float64) for n, p in params.items()}
  axes = {"kernel": (1, 2), "flipped": (2, 1), "square": (1, 0), "heads": (0, 2)}
  row, col, full, momentum = {}, {}, {}, {n: 0.0 for n in SHAPES}
  for step in range(1, 5):
    gradients = _tree(step)
    updates, state = update(gradients, state, params)
    params = optax.apply_updates(params, updates)
    decay = 1 - step**-0.8
    for name, g in gradients.items():
      square = g.astype(np.float64) ** 2 + 1e-30
      if name in axes:
        longest, second = axes[name]
        row[name] = decay * row.get(name, 0) + (1 - decay) * square.mean(longest, keepdims=True)
        col[name] = decay * col.get(name, 0) + (1 - decay) * square.mean(second, keepdims=True)
        v = row[name] * col[name] / row[name].mean(second, keepdims=True)
      else:
        v = full[name] = decay * full.get(name, 0) + (1 - decay) * square
      u = g / np.sqrt(v)
      u = u / max(1.0, np.sqrt(np.mean(u**2)))
      momentum[name] = 0.5 * momentum[name] + 0.5 * u
      expected[name] = expected[name] - 0.1 * momentum[name]
      np.testing.assert_allclose(params[name], expected[name], rtol=1e-4, atol=1e-5)


def test_moments_have_the_names_of_their_axes():
  chain = adafactor_chain(0.1, clip_norm=None, min_dim_size_to_factor=4)
  state = jax.eval_shape(lambda: OptaxWrapper(chain).init_state(_tree(0)))
  axes = OptaxWrapper(chain).derive_logical_axes(state, AXES).param_states[0]
  assert axes.v_row == {
    "kernel": PartitionSpec("layers", "mlp"),
    "flipped": PartitionSpec("layers", "embed"),
    "square": PartitionSpec("embed"),
    "heads": PartitionSpec("heads", "kv"),
    "bias": PartitionSpec(None),
  }
  assert axes.v_col == {
    "kernel": PartitionSpec("layers", "embed"),
    "flipped": PartitionSpec("layers", "mlp"),
    "square": PartitionSpec("joined"),
    "heads": PartitionSpec("embed", "heads"),
    "bias": PartitionSpec(None),
  }
  assert axes.v["bias"] == PartitionSpec("mlp") and axes.v["kernel"] == PartitionSpec(None)
  shapes = state.param_states[0]
  for names, leaf in zip(
    jax.tree.leaves(axes, is_leaf=lambda n: isinstance(n, PartitionSpec)), jax.tree.leaves(shapes)
  ):
    assert len(names) == leaf.ndim


def test_masked_parts_stay_masked():
  labels = {n: "a" if n == "kernel" else "b" for n in SHAPES}
  chain = optax.multi_transform(
    {"a": adafactor_chain(0.1, min_dim_size_to_factor=4), "b": optax.sgd(0.1)}, labels
  )
  wrapper = OptaxWrapper(chain)
  state = jax.eval_shape(lambda: wrapper.init_state(_tree(0)))
  axes = wrapper.derive_logical_axes(state, AXES)
  found = [
    node
    for node in jax.tree.leaves(
      axes.param_states, is_leaf=lambda n: isinstance(n, optax.FactoredState)
    )
    if isinstance(node, optax.FactoredState)
  ]
  assert found[0].v_row["kernel"] == PartitionSpec("layers", "mlp")
  assert isinstance(found[0].v_row["bias"], optax.MaskedNode)


def test_a_sharded_step_equals_one_device_and_the_moments_are_sharded():
  devices = jax.devices()
  if len(devices) < 4:
    pytest.skip("needs 4 devices, see tests/conftest.py")
  mesh = jax.sharding.Mesh(np.array(devices[:4]).reshape(2, 2), ("data", "model"))
  rules = {"embed": "data", "mlp": "model"}
  chain = adafactor_chain(0.1, min_dim_size_to_factor=4)
  wrapper = OptaxWrapper(chain)
  params = {"kernel": jnp.asarray(_tree(0)["kernel"])}
  gradients = {"kernel": jnp.asarray(_tree(1)["kernel"])}
  state = wrapper.init_state(params)
  axes = wrapper.derive_logical_axes(state, {"kernel": AXES["kernel"]})

  def sharding(names):
    return jax.sharding.NamedSharding(mesh, PartitionSpec(*(rules.get(n) for n in names)))

  shardings = jax.tree.map(sharding, axes)
  placed = jax.device_put(state, shardings)
  apply = jax.jit(wrapper.apply_gradient, out_shardings=(None, shardings))
  got, new_state = apply(params, placed, gradients)
  wanted, one_device = wrapper.apply_gradient(params, state, gradients)
  np.testing.assert_allclose(got["kernel"], wanted["kernel"], rtol=1e-5, atol=1e-6)
  moments = next(s for s in new_state.param_states if isinstance(s, optax.FactoredState))
  assert moments.v_row["kernel"].sharding.spec == PartitionSpec(None, "model")
  reference = next(s for s in one_device.param_states if isinstance(s, optax.FactoredState))
  np.testing.assert_allclose(moments.v_row["kernel"], reference.v_row["kernel"], rtol=1e-5)


def test_each_state_keeps_the_axes_of_its_own_parameters():
  """Of two models whose parameters differ in the order of their axes, and of two parts of one model."""
  chain = adafactor_chain(0.1, clip_norm=None, min_dim_size_to_factor=4)
  wide, tall = ({"kernel": jnp.zeros(shape)} for shape in ((8, 6), (6, 8)))
  axes = {"kernel": PartitionSpec("embed", "mlp")}
  first, second = (OptaxWrapper(chain).init_state(params) for params in (wide, tall))
  for state, row, col in ((first, "mlp", "embed"), (second, "embed", "mlp")):
    moments = OptaxWrapper(chain).derive_logical_axes(state, axes).param_states[0]
    assert moments.v_row == {"kernel": PartitionSpec(row)}
    assert moments.v_col == {"kernel": PartitionSpec(col)}
  parts = {"wide": chain, "tall": chain}
  split = OptaxWrapper(optax.multi_transform(parts, {"wide": "wide", "tall": "tall"}))
  state = split.init_state({"wide": wide, "tall": tall})
  inner = split.derive_logical_axes(state, {"wide": axes, "tall": axes}).param_states.inner_states
  for part, row in (("wide", "mlp"), ("tall", "embed")):
    assert inner[part].inner_state[0].v_row[part] == {"kernel": PartitionSpec(row)}


def test_an_unknown_state_is_rejected():
  state = optax.FactoredState(
    count=jnp.zeros([]),
    v_row={"k": jnp.zeros((31,))},
    v_col={"k": jnp.zeros((37,))},
    v={"k": jnp.zeros((1,))},
  )
  with pytest.raises(ValueError, match="initialize the optimizer"):
    factored_state_axes(state, {"k": PartitionSpec("a", "b")})
