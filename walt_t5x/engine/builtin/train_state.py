"""Everything that a training step reads and writes, in T5X's layout, and its creation in place on the mesh."""

import functools
from collections.abc import Mapping
from typing import Any

import flax.core
import flax.struct
import jax
from flax import serialization, traverse_util
from flax.linen import partitioning as flax_partitioning

from walt_t5x.engine.builtin.base_model import BaseModel
from walt_t5x.engine.builtin.optimizer import OptaxWrapper, OptimizerState
from walt_t5x.engine.builtin.partitioner import PjitPartitioner
from walt_t5x.files import storage


class TrainState(flax.struct.PyTreeNode):
  """Parameters, optimizer state and step, and the model's other collections.

  As a dict (and in a checkpoint) it is `{'target': parameters, 'state': {'step', 'param_states'}}`, with
  `'flax_mutables'` if the model has other collections.
  """

  params: Any
  optimizer_state: OptimizerState
  flax_mutables: Any
  optimizer_def: OptaxWrapper = flax.struct.field(pytree_node=False)

  @classmethod
  def create(cls, optimizer_def: OptaxWrapper, variables: Mapping[str, Any]) -> "TrainState":
    """The state before the first step, from the model's collections. Frozen dicts, as in T5X."""
    mutables, params = flax.core.pop(flax.core.freeze(variables), "params")
    return cls(params, optimizer_def.init_state(params), mutables, optimizer_def)

  @property
  def step(self) -> Any:
    return self.optimizer_state.step

  @property
  def param_states(self) -> Any:
    return self.optimizer_state.param_states

  def apply_gradient(self, grads: Any) -> "TrainState":
    """The state after one update."""
    params, optimizer_state = self.optimizer_def.apply_gradient(
      self.params, self.optimizer_state, grads
    )
    return self.replace(params=params, optimizer_state=optimizer_state)

  def state_dict(self) -> dict[str, Any]:
    """Nested plain dicts, as saved: without the empty states of stateless transformations."""
    state = traverse_util.flatten_dict(serialization.to_state_dict(self.optimizer_state))
    saved = {
      "target": serialization.to_state_dict(self.params),
      "state": traverse_util.unflatten_dict(state),
    }
    if self.flax_mutables:
      saved["flax_mutables"] = serialization.to_state_dict(self.flax_mutables)
    return saved

  def restore_state(self, state_dict: Mapping[str, Any]) -> "TrainState":
    """Replaces the leaves of this state by those of `state_dict`, which has all; its empty states remain."""
    own = serialization.to_state_dict(self.optimizer_state)
    flat = traverse_util.flatten_dict(own, keep_empty_nodes=True)
    empty = {k: v for k, v in flat.items() if v is traverse_util.empty_node}
    state = traverse_util.unflatten_dict(empty | traverse_util.flatten_dict(state_dict["state"]))
    return self.replace(
      params=serialization.from_state_dict(self.params, state_dict["target"]),
      optimizer_state=serialization.from_state_dict(self.optimizer_state, state),
      flax_mutables=serialization.from_state_dict(
        self.flax_mutables, state_dict.get("flax_mutables", {})
      ),
    )

  def as_logical_axes(self, axes: Mapping[str, Any]) -> "TrainState":
    """This state with each leaf replaced by its logical axes, given per collection."""
    names = {
      collection: flax_partitioning.get_axis_names(flax.core.unfreeze(tree))
      for collection, tree in axes.items()
    }
    mutables, params = flax.core.pop(flax.core.freeze(names), "params")
    _check_axes(self.params, params)
    _check_axes(self.flax_mutables, mutables)
    return self.replace(
      params=params,
      optimizer_state=self.optimizer_def.derive_logical_axes(self.optimizer_state, params),
      flax_mutables=mutables,
    )


def _check_axes(params: Any, axes: Any) -> None:
  """Checks that every parameter has one logical axis per dimension."""
  flat_params: dict[str, Any] = traverse_util.flatten_dict(flax.core.unfreeze(params), sep="/")
  flat_axes: dict[str, Any] = traverse_util.flatten_dict(flax.core.unfreeze(axes), sep="/")
  for name, value in flat_params.items():
    if name not in flat_axes:
      raise ValueError(
        f"parameter {name} has no logical axes; declare it with flax.linen.partitioning.param_with_axes or "
        "variable_with_axes."
      )
    if len(flat_axes[name]) != len(value.shape):
      raise ValueError(
        f"parameter {name}: got axes {tuple(flat_axes[name])} for shape {tuple(value.shape)}, expected one axis "
        "name per dimension."
      )
  extra = sorted(set(flat_axes) - set(flat_params))
  if extra:
    raise ValueError(f"params_axes names parameters that do not exist: {extra[:5]}.")


def split_variables(variables: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
  """A model's collections ("params" and others), and their axes under the same names."""
  variables = flax.core.unfreeze(dict(variables))
  axes = {k.removesuffix("_axes"): v for k, v in variables.items() if k.endswith("_axes")}
  values = {k: v for k, v in variables.items() if not k.endswith("_axes")}
  if "params" not in values or set(axes) != set(values):
    raise ValueError(
      f"get_initial_variables: got collections {sorted(variables)}, expected params and params_axes, and each other "
      "collection with its axes. Declare variables with param_with_axes and variable_with_axes of "
      "flax.linen.partitioning."
    )
  return values, axes


class StateInitializer:
  """Shapes, axes and shardings of a model's train state, and the state itself.

  Args:
    model: the model to train.
    input_spec: name -> shape and dtype of the global batch.
    partitioner: mesh and rules.

  Attributes:
    shapes: the state as `jax.ShapeDtypeStruct`.
    logical_axes: the state as `PartitionSpec` of logical names.
    axes: the state as `PartitionSpec` of mesh axes.
    shardings: the state as `NamedSharding`.
  """

  def __init__(
    self,
    model: BaseModel,
    *,
    input_spec: Mapping[str, jax.ShapeDtypeStruct],
    partitioner: PjitPartitioner,
  ):
    self._model, self._partitioner = model, partitioner
    self._shapes = {k: tuple(v.shape) for k, v in input_spec.items()}
    self._types = {k: v.dtype for k, v in input_spec.items()}
    variables, axes = split_variables(jax.eval_shape(self._variables, jax.random.PRNGKey(0)))
    create = functools.partial(TrainState.create, model.optimizer_def)
    self.shapes: TrainState = jax.eval_shape(create, variables)
    self.logical_axes = self.shapes.as_logical_axes(axes)
    self.axes = partitioner.get_mesh_axes(self.logical_axes)
    self.shardings = partitioner.get_shardings(self.axes)
    partitioner.check_divisible(self.shapes.state_dict(), self.axes.state_dict())

  def from_scratch(self, rng: jax.Array) -> TrainState:
    """A new state; every device creates only its own part."""
    make = self._partitioner.partition(
      self._state, in_axis_resources=None, out_axis_resources=self.axes
    )
    return make(rng)

  def _variables(self, rng: jax.Array) -> Mapping[str, Any]:
    return self._model.get_initial_variables(rng, self._shapes, self._types)

  def _state(self, rng: jax.Array) -> TrainState:
    variables, _ = split_variables(self._variables(rng))
    return TrainState.create(self._model.optimizer_def, variables)


def write_model_info(model_dir: str, initializer: StateInitializer) -> None:
  """Writes name, shape, logical axes and mesh axes of every array to `<model_dir>/model-info.txt`."""
  if jax.process_index() != 0:
    return

  def flat(tree: TrainState) -> dict[str, Any]:
    return traverse_util.flatten_dict(tree.state_dict(), sep="/")

  logical, mesh = flat(initializer.logical_axes), flat(initializer.axes)
  parameters = sum(leaf.size for leaf in jax.tree.leaves(initializer.shapes.params))
  lines = [f"Parameters: {parameters}", ""]
  for name, leaf in flat(initializer.shapes).items():
    axes = ", ".join(f"{axis}={size}" for axis, size in zip(logical[name], leaf.shape))
    lines.append(f"{name:90} {leaf.dtype!s:9} ({axes})  {tuple(mesh[name])}")
  storage.write(storage.join(model_dir, "model-info.txt"), "\n".join(lines) + "\n")
