"""optax transformations as the engine's optimizer, with T5X's state layout."""

from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax import serialization, traverse_util
from jax.sharding import PartitionSpec

from walt_t5x.engine.adafactor import factored_state_axes


@flax.struct.dataclass
class OptimizerState:
  """The step count and the optax state."""

  step: Any
  param_states: Any


class OptaxWrapper:
  """An optax transformation with the state layout that T5X saves.

  The transformation has its own learning rate: the trainer's `learning_rate_fn` is only logged, as in T5X.

  Args:
    optax_optimizer: the transformation.
  """

  def __init__(self, optax_optimizer: optax.GradientTransformation):
    self.optax_optimizer = optax_optimizer

  def init_state(self, params: Any) -> OptimizerState:
    """The state before the first update."""
    return OptimizerState(
      step=jnp.zeros([], jnp.int32), param_states=self.optax_optimizer.init(params)
    )

  def apply_gradient(
    self, params: Any, state: OptimizerState, grads: Any
  ) -> tuple[Any, OptimizerState]:
    """One update: new parameters and new state."""
    updates, param_states = self.optax_optimizer.update(grads, state.param_states, params)
    return optax.apply_updates(params, updates), OptimizerState(
      step=state.step + 1, param_states=param_states
    )

  def derive_logical_axes(self, state: OptimizerState, param_axes: Any) -> OptimizerState:
    """The state with each leaf replaced by its logical axes.

    State that the optimizer keeps per parameter (moments, averages, accumulators) has the parameter's axes; other
    state (counts, hyperparameters) is replicated. optax itself distinguishes the two, so any transformation whose
    states mirror the parameters is covered, including masked and multi-transform ones.

    Args:
      state: a state, or its shapes.
      param_axes: `PartitionSpec` of logical names, one per parameter.
    """
    param_states = optax.tree_map_params(
      self.optax_optimizer,
      lambda leaf, axes: leaf if isinstance(leaf, optax.MaskedNode) else axes,
      state.param_states,
      param_axes,
      transform_non_params=lambda _: PartitionSpec(),
      is_leaf=lambda node: isinstance(node, optax.MaskedNode),
    )

    # Factored moments mirror the parameters by name but have fewer axes.
    def is_factored(node: Any) -> bool:
      return isinstance(node, optax.FactoredState)

    param_states = jax.tree.map(
      lambda node, axes: factored_state_axes(node, param_axes) if is_factored(node) else axes,
      state.param_states,
      param_states,
      is_leaf=is_factored,
    )
    return OptimizerState(step=PartitionSpec(), param_states=param_states)


def optimizer_state_dict(state: OptimizerState) -> dict[str, Any]:
  """The state as nested dicts of leaves, without the empty states of stateless transformations."""
  flat = traverse_util.flatten_dict(serialization.to_state_dict(state))
  return traverse_util.unflatten_dict(flat)


def restore_optimizer_state(state: OptimizerState, state_dict: dict[str, Any]) -> OptimizerState:
  """The inverse of `optimizer_state_dict`, with `state` as the template.

  Raises:
    ValueError: a leaf of the template is missing in `state_dict`.
  """
  template = traverse_util.flatten_dict(serialization.to_state_dict(state), keep_empty_nodes=True)
  given = traverse_util.flatten_dict(state_dict)
  missing = [k for k, v in template.items() if v is not traverse_util.empty_node and k not in given]
  if missing:
    names = ", ".join("/".join(k) for k in missing[:5])
    raise ValueError(
      f"optimizer state: {len(missing)} of {len(template)} entries are missing, first {names}. The checkpoint was "
      "made by another optimizer; restore with an assignment_map that drops 'state/.*' to initialize it again."
    )
  full = {k: given.get(k, v) for k, v in template.items()}
  # flax does not type the result; it has the type of the argument.
  return cast(
    OptimizerState, serialization.from_state_dict(state, traverse_util.unflatten_dict(full))
  )


def is_axes_leaf(node: Any) -> bool:
  """True for a `PartitionSpec`, which is a leaf in a tree of axes regardless of the JAX version."""
  return isinstance(node, PartitionSpec)


def map_axes(function: Any, axes: Any) -> Any:
  """Maps over a tree whose leaves are `PartitionSpec`s."""
  return jax.tree.map(function, axes, is_leaf=is_axes_leaf)
