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
  """`(params, video) -> posterior mean`, with the height of pixels and latents sharded over a mesh axis.

  Args:
    vae: the autoencoder.
    mesh: devices; data is replicated over its other axes.
    axis: name of the mesh axis over which the height is sharded.

  Returns:
    A compiled function; parameters are replicated. It raises ValueError if the height is not a multiple of
    spatial_factor times the size of the mesh axis.
  """

  def mean(params: Params, x: ArrayLike) -> Array:
    return cast(Posterior, vae.apply(params, x, method="encode")).mean

  run = _sharded(vae, mesh, axis, mean)

  def encode(params: Params, video: ArrayLike) -> Array:
    _check_rows(jnp.shape(video)[2], mesh.shape[axis] * vae.spatial_factor, axis, "pixels")
    return run(params, video)

  return encode


def sharded_decode(
  vae: CausalVae, mesh: Mesh, *, axis: str
) -> Callable[[Params, ArrayLike], Array]:
  """`(params, latents) -> pixels`, sharded as in `sharded_encode`; not clipped."""
  run = _sharded(
    vae, mesh, axis, lambda params, z: cast(Array, vae.apply(params, z, method="decode"))
  )

  def decode(params: Params, latents: ArrayLike) -> Array:
    _check_rows(jnp.shape(latents)[2], mesh.shape[axis], axis, "latents")
    return run(params, latents)

  return decode


def _sharded(
  vae: CausalVae, mesh: Mesh, axis: str, function: Callable[[Params, ArrayLike], Array]
) -> Callable[[Params, ArrayLike], Array]:
  rows = NamedSharding(mesh, PartitionSpec(None, None, axis))
  everywhere = NamedSharding(mesh, PartitionSpec())
  return jax.jit(
    lambda params, x: function({"params": params}, x),
    in_shardings=(everywhere, rows),
    out_shardings=rows,
  )


def _check_rows(rows: int, multiple: int, axis: str, what: str) -> None:
  if rows % multiple:
    raise ValueError(
      f"spatial sharding: got {rows} rows of {what} for mesh axis {axis!r}, expected a multiple of {multiple}; use "
      "fewer devices along that axis."
    )
