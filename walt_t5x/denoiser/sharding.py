"""Where activations live on the mesh: named at the borders of layers, as parameters are by `param_with_axes`.

XLA chooses the layout of everything in between. Left alone it lets the layout of sharded parameters leak into the
activations (ZeRO's split of the width, say) and moves the tokens around at each layer.
"""

from collections.abc import Sequence

import jax
from flax.core.spmd import get_logical_axis_rules
from flax.linen.partitioning import logical_to_mesh_axes
from jax.interpreters import pxla
from jax.sharding import PartitionSpec
from jaxtyping import Array

TOKENS = ("batch", "frames", "height", "width", "embed")


def constrain(x: Array, names: Sequence[str | None] = TOKENS) -> Array:
  """x where the engine's rules want axes of these names; as it is outside of an engine's step.

  An axis that its share of the mesh does not divide stays whole: rows of a small microbatch, say.

  Not flax's `with_sharding_constraint`: flax 0.12 looks for a mesh of `jax.set_mesh`, which neither T5X nor the
  built-in engine sets, and then constrains nothing.

  Args:
    x: an activation.
    names: logical name of each axis; those that no rule names stay whole.
  """
  mesh, rules = pxla.thread_resources.env.physical_mesh, get_logical_axis_rules()
  if mesh.empty or not rules:
    return x
  found = []
  for size, axes in zip(x.shape, logical_to_mesh_axes(tuple(names), rules)):
    parts = 1
    for axis in (axes,) if isinstance(axes, str) else axes or ():
      parts *= mesh.shape[axis]
    found.append(axes if size % parts == 0 else None)
  return jax.lax.with_sharding_constraint(x, PartitionSpec(*found))
