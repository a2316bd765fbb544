"""Sharding of activations: logical axis names at the layer boundaries, like `param_with_axes` for parameters.

XLA chooses the layout of everything in between. Without constraints it propagates the sharding of parameters to the
activations (for example ZeRO's split of the width) and reshards the tokens at each layer.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import jax
from flax.core.spmd import get_logical_axis_rules
from flax.linen.spmd import logical_to_mesh_axes
from jax.interpreters import pxla
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from walt_t5x.sharding.partitioning import Rules

TOKENS = ("batch", "frames", "height", "width", "embed")
CELLS = ("batch", "height", "width", "frames", None, "embed")


def _mesh() -> Mesh | None:
  """The mesh of the engine's step that is being traced; None outside a step."""
  mesh = pxla.thread_resources.env.physical_mesh
  return None if mesh.empty or not get_logical_axis_rules() else mesh


def platform() -> str:
  """The platform that the step is compiled for, such as "tpu": that of the mesh, else JAX's default."""
  mesh = pxla.thread_resources.env.physical_mesh
  return jax.default_backend() if mesh.empty else mesh.devices.flat[0].platform


def _spec(
  mesh: Mesh, shape: Sequence[int], names: Sequence[str | None], rules: Rules | None = None
) -> PartitionSpec:
  """Mesh axes by logical names; an axis whose size the mesh axes do not divide is not sharded."""
  found = []
  axes = logical_to_mesh_axes(tuple(names), rules or get_logical_axis_rules()) or ()
  for size, axis in zip(shape, axes, strict=True):
    found.append(axis if size % _size(mesh, axis) == 0 else None)
  return PartitionSpec(*found)


def _size(mesh: Mesh, axes: str | Sequence[str] | None) -> int:
  return math.prod(mesh.shape[a] for a in ((axes,) if isinstance(axes, str) else axes or ()))


def sharding_of(
  mesh: Mesh, shape: Sequence[int], names: Sequence[str | None], *, rules: Rules
) -> NamedSharding:
  """The sharding of an array with these logical names by `rules`, outside a step.

  An axis whose size the mesh axes do not divide is not sharded.
  """
  return NamedSharding(mesh, _spec(mesh, shape, names, rules))


def parts(shape: Sequence[int], names: Sequence[str | None]) -> list[int]:
  """Number of devices over which each axis of an array with these logical names is split."""
  mesh = _mesh()
  return [1] * len(shape) if mesh is None else [_size(mesh, a) for a in _spec(mesh, shape, names)]


def on_each_device(
  function: Callable[[dict[str, Array]], Array],
  arrays: Mapping[str, tuple[Array, Sequence[str | None]]],
  names: Sequence[str | None],
) -> Array:
  """Runs function({name: array}) on each device's shard, for operations that XLA cannot partition.

  Args:
    function: must not need the shard of another device.
    arrays: arrays by name, each with the logical names of its axes.
    names: logical names of the result's axes; the result has the shape of the first array.
  """
  mesh, given = _mesh(), {name: array for name, (array, _) in arrays.items()}
  if mesh is None:
    return function(given)
  specs = {name: _spec(mesh, array.shape, axes) for name, (array, axes) in arrays.items()}
  like = next(iter(given.values()))
  mapped = jax.shard_map(
    lambda complete: function(dict(complete)),
    mesh=mesh,
    in_specs=(specs,),
    out_specs=_spec(mesh, like.shape, names),
    check_vma=False,
  )
  return mapped(given)


def constrain(x: Array, names: Sequence[str | None] | None = None) -> Array:
  """Constrains the sharding of x by the engine's rules; returns x unchanged outside an engine's step.

  An axis whose size the mesh axes do not divide is not sharded, for example the batch of a small microbatch.

  Not flax's `with_sharding_constraint`: flax 0.12 looks for a mesh set by `jax.set_mesh`, which neither T5X nor the
  built-in engine sets, and without it has no effect.

  Args:
    x: an activation.
    names: logical name of each axis; an axis without a rule is not sharded. By default those of tokens, in a grid or
      by cells.
  """
  mesh = _mesh()
  if mesh is None:
    return x
  names = names or (TOKENS if x.ndim == len(TOKENS) else CELLS)
  return jax.lax.with_sharding_constraint(x, _spec(mesh, x.shape, names))
