"""Low-rank adapters: W + A B in place of the W of a projection, of which only A and B are trained (LoRA, 2106.09685).

The projections of attention and the MLPs have them (`WaltDenoiser.adapter_rank`), next to their kernels:

  kernel        W [inputs..., features...]
  adapter_down  A [inputs..., r]    normal, variance 1 / inputs
  adapter_up    B [r, features...]  zero, so that training starts from W

The product has no scale in addition: the learning rate has its role.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from flax.linen.partitioning import param_with_axes
from jaxtyping import Array

DOWN, UP = "adapter_down", "adapter_up"


def parameters(linear: Any, inputs: Sequence[int]) -> tuple[Array, Array]:
  """A [inputs..., r] and B [r, features...] of a `layers.Linear` that is being applied, float32.

  Args:
    linear: the layer; its `features`, `axes` and `adapter_rank` are read. A and B have the logical axes of its kernel.
    inputs: shape of the kernel's input axes.
  """
  inputs, features, rank = tuple(inputs), tuple(linear.features), linear.adapter_rank
  axes = tuple(linear.axes)
  normal = nn.initializers.normal(math.prod(inputs) ** -0.5)
  down = param_with_axes(
    DOWN, normal, (*inputs, rank), jnp.float32, axes=(*axes[: len(inputs)], "unmodeled")
  )
  zeros = nn.initializers.zeros_init()
  up = param_with_axes(
    UP, zeros, (rank, *features), jnp.float32, axes=("unmodeled", *axes[len(inputs) :])
  )
  return down, up


def merged(params: Mapping[str, Any]) -> dict[str, Any]:
  """The parameters of the network without adapters that computes the same: each kernel W + A B.

  Args:
    params: nested parameters, also of stacked layers (`scan_layers`); those without adapters are returned as they are.

  Raises:
    KeyError: an A has no W or no B.
  """
  flat: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(dict(params))
  kept = {name: array for name, array in flat.items() if name[-1] not in (DOWN, UP)}
  for name in flat:
    if name[-1] == DOWN:
      kernel, up = (*name[:-1], "kernel"), flat[(*name[:-1], UP)]
      kept[kernel] = kept[kernel] + _product(flat[name], up, axes=kept[kernel].ndim)
  return traverse_util.unflatten_dict(kept)


def _product(down: Any, up: Any, *, axes: int) -> Array:
  """A B, with as many axes as the kernel; the first are those of stacked layers, if any."""
  product = functools.partial(jnp.tensordot, axes=1)
  for _ in range(down.ndim + up.ndim - 2 - axes):
    product = jax.vmap(product)
  return product(jnp.asarray(down), jnp.asarray(up))
