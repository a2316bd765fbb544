"""Initial train states, created in place on the mesh."""

from collections.abc import Mapping
from typing import Any

import jax
from etils import epath
from flax import traverse_util
from jax.sharding import PartitionSpec

from walt_t5x.engine.builtin.base_model import BaseModel
from walt_t5x.engine.builtin.partitioner import PjitPartitioner
from walt_t5x.engine.builtin.train_state import TrainState, count_parameters, split_variables


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
    variables = jax.eval_shape(self._variables, jax.random.PRNGKey(0))
    _, params_axes = split_variables(variables)
    self.shapes: TrainState = jax.eval_shape(self._state, jax.random.PRNGKey(0))
    self.logical_axes = self.shapes.as_logical_axes(params_axes)
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
    params, _ = split_variables(self._variables(rng))
    return TrainState.create(self._model.optimizer_def, params)


def write_model_info(model_dir: str, initializer: StateInitializer) -> None:
  """Writes name, shape, logical axes and mesh axes of every array to `<model_dir>/model-info.txt`."""
  if jax.process_index() != 0:
    return

  def flat(tree: TrainState) -> dict[str, Any]:
    return traverse_util.flatten_dict(tree.state_dict(), sep="/")

  logical, mesh = flat(initializer.logical_axes), flat(initializer.axes)
  lines = [f"Parameters: {count_parameters(initializer.shapes.params)}", ""]
  for name, leaf in flat(initializer.shapes).items():
    axes = ", ".join(f"{axis}={size}" for axis, size in zip(logical[name], leaf.shape))
    lines.append(f"{name:90} {leaf.dtype!s:9} ({axes})  {tuple(mesh[name]) or _REPLICATED}")
  (epath.Path(model_dir) / "model-info.txt").write_text("\n".join(lines) + "\n")


_REPLICATED = tuple(PartitionSpec())
