"""Where activations live on the mesh: named at the borders of layers, as parameters are by `param_with_axes`.

XLA chooses the layout of everything in between. Left alone it lets the layout of sharded parameters leak into the
activations (ZeRO's split of the width, say) and moves the tokens around at each layer.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import jax
from flax.core.spmd import get_logical_axis_rules
from flax.linen.spmd import logical_to_mesh_axes
from jax.interpreters import pxla
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array

TOKENS = ("batch", "frames", "height", "width", "embed")
CELLS = ("batch", "height", "width", "frames", None, "embed")


def _mesh() -> Mesh | None:
  """The mesh of the engine's step that is being traced; None outside of one."""
  mesh = pxla.thread_resources.env.physical_mesh
  return None if mesh.empty or not get_logical_axis_rules() else mesh


def platform() -> str:
  """What the step is compiled for, such as "tpu": of the mesh's devices, else of JAX's default."""
  mesh = pxla.thread_resources.env.physical_mesh
  return jax.default_backend() if mesh.empty else mesh.devices.flat[0].platform


def _spec(mesh: Mesh, shape: Sequence[int], names: Sequence[str | None]) -> PartitionSpec:
  """Mesh axes by logical names; an axis that its share of the mesh does not divide stays whole."""
  found = []
  axes = logical_to_mesh_axes(tuple(names), get_logical_axis_rules()) or ()
  for size, axis in zip(shape, axes, strict=True):
    found.append(axis if size % _size(mesh, axis) == 0 else None)
  return PartitionSpec(*found)


def _size(mesh: Mesh, axes: str | Sequence[str] | None) -> int:
  return math.prod(mesh.shape[a] for a in ((axes,) if isinstance(axes, str) else axes or ()))


def parts(shape: Sequence[int], names: Sequence[str | None]) -> list[int]:
  """Over how many devices each axis of an array of these logical names is split."""
  mesh = _mesh()
  return [1] * len(shape) if mesh is None else [_size(mesh, a) for a in _spec(mesh, shape, names)]


def on_each_device(
  function: Callable[[dict[str, Array]], Array],
  arrays: Mapping[str, tuple[Array, Sequence[str | None]]],
  names: Sequence[str | None],
) -> Array:
  """function({name: array}), run by each device on its part; for what XLA cannot split by itself.

  Args:
    function: needs no other device's part.
    arrays: by name, with the logical names of their axes.
    names: of the result's axes; it has the shape of the first array.
  """
  mesh, given = _mesh(), {name: array for name, (array, _) in arrays.items()}
  if mesh is None:
    return function(given)
  specs = {name: _spec(mesh, array.shape, axes) for name, (array, axes) in arrays.items()}
  like = next(iter(given.values()))
  mapped = jax.shard_map(
    lambda whole: function(dict(whole)),
    mesh=mesh,
    in_specs=(specs,),
    out_specs=_spec(mesh, like.shape, names),
    check_vma=False,
  )
  return mapped(given)


def constrain(x: Array, names: Sequence[str | None] | None = None) -> Array:
  """x where the engine's rules want axes of these names; as it is outside of an engine's step.

  An axis that its share of the mesh does not divide stays whole: rows of a small microbatch, say.

  Not flax's `with_sharding_constraint`: flax 0.12 looks for a mesh of `jax.set_mesh`, which neither T5X nor the
  built-in engine sets, and then constrains nothing.

  Args:
    x: an activation.
    names: logical name of each axis; those that no rule names stay whole. By default those of tokens, in a grid or by
      cells.
  """
  mesh = _mesh()
  if mesh is None:
    return x
  names = names or (TOKENS if x.ndim == len(TOKENS) else CELLS)
  return jax.lax.with_sharding_constraint(x, _spec(mesh, x.shape, names))
