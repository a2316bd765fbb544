"""optax transformations as the engine's optimizer, with T5X's state layout."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec

from walt_t5x.engine.adafactor import factored_state_axes


@flax.struct.dataclass
class OptimizerState:
  """The step count and the optax state."""

  step: Any
  param_states: Any


class OptaxWrapper:
  """An optax transformation, with its own learning rate, and with the state layout that T5X saves."""

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
    """The state, or its shapes, with each leaf replaced by its logical axes.

    State that the optimizer keeps per parameter (moments, averages, accumulators) has the parameter's axes; other
    state (counts, hyperparameters) is replicated. optax itself distinguishes the two, so any transformation whose
    states mirror the parameters is covered, including masked and multi-transform ones. `param_axes` has a
    `PartitionSpec` of logical names per parameter.
    """

    def is_leaf(node: Any) -> bool:
      return isinstance(node, optax.MaskedNode | optax.FactoredState)

    def init(params: Any) -> Any:
      """The optimizer's state, with `params` in place of factored moments: those have fewer axes."""
      state = self.optax_optimizer.init(params)
      return jax.tree.map(
        lambda node: params if isinstance(node, optax.FactoredState) else node,
        state,
        is_leaf=is_leaf,
      )

    def axes_of(node: Any, axes: Any) -> Any:
      if isinstance(node, optax.FactoredState):
        return factored_state_axes(node, axes)
      return node if isinstance(node, optax.MaskedNode) else axes

    param_states = optax.tree_map_params(
      init,
      axes_of,
      state.param_states,
      param_axes,
      transform_non_params=lambda _: PartitionSpec(),
      is_leaf=is_leaf,
    )
    return OptimizerState(step=PartitionSpec(), param_states=param_states)
