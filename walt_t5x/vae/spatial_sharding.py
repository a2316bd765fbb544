"""Encodes and decodes one clip on several devices, sharded along the height, with the result of one device.

A convolution needs a few pixel rows of the neighboring device and a normalization the sums of all devices. XLA's
partitioner inserts both (halo exchange and all-reduce) from the sharding of the input alone, so the result has no seams
that need blending. Independent tiles would not give this result: their statistics would be per tile.
"""

from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike
from jaxtyping import Array

from walt_t5x.types import Params
from walt_t5x.vae.autoencoder import CausalVae, Posterior


def sharded_encode(
  vae: CausalVae, mesh: Mesh, *, axis: str
) -> Callable[[Params, ArrayLike], Array]:
  """`(params, video) -> posterior mean`, compiled, with the height of pixels and latents sharded over a mesh axis.

  Parameters are replicated, data over the other axes of the mesh. The function raises ValueError if the height is not a
  multiple of spatial_factor times the size of the mesh axis.
  """

  def mean(params: Params, video: ArrayLike) -> Array:
    return cast(Posterior, vae.apply({"params": params}, video, method="encode")).mean

  return _sharded(mean, mesh, axis, what="pixels", factor=vae.spatial_factor)


def sharded_decode(
  vae: CausalVae, mesh: Mesh, *, axis: str
) -> Callable[[Params, ArrayLike], Array]:
  """`(params, latents) -> pixels`, sharded as in `sharded_encode`; not clipped."""

  def pixels(params: Params, latents: ArrayLike) -> Array:
    return cast(Array, vae.apply({"params": params}, latents, method="decode"))

  return _sharded(pixels, mesh, axis, what="latents", factor=1)


def _sharded(
  function: Callable[[Params, ArrayLike], Array], mesh: Mesh, axis: str, *, what: str, factor: int
) -> Callable[[Params, ArrayLike], Array]:
  rows = NamedSharding(mesh, PartitionSpec(None, None, axis))
  everywhere = NamedSharding(mesh, PartitionSpec())
  compiled = jax.jit(function, in_shardings=(everywhere, rows), out_shardings=rows)
  multiple = mesh.shape[axis] * factor

  def run(params: Params, x: ArrayLike) -> Array:
    if jnp.shape(x)[2] % multiple:
      raise ValueError(
        f"spatial sharding: got {jnp.shape(x)[2]} rows of {what} for mesh axis {axis!r}, expected a multiple of "
        f"{multiple}; use fewer devices along that axis."
      )
    return compiled(params, x)

  return run
