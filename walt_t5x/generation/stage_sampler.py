"""Sampling of one stage, compiled once per shape, over all devices, and the noise that it starts from."""

import contextlib
import functools
import math
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core.spmd import logical_axis_rules
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from walt_t5x.denoiser.transformer import Conditioning
from walt_t5x.generation.stage import StageConfig
from walt_t5x.sharding import partitioning


def mesh_for(rows: int, devices: Sequence[Any]) -> Mesh | None:
  """A ('data', 'model') mesh: `rows` over as many devices as divide them, the token grid's height over the rest.

  None for a single device.
  """
  if len(devices) == 1:
    return None
  data = math.gcd(rows, len(devices))
  return Mesh(np.asarray(devices).reshape(data, -1), ("data", "model"))


def noise_for(
  seed: int, what: str, indices: np.ndarray, shape: tuple[int, ...], *, extension: int = 0
) -> Array:
  """Standard normal [B, *shape], a function of the seed, the sample and its use, independent of the batch.

  Args:
    what: the stage, or another use of noise.
    indices: index of each sample [B].
    extension: number of the clip's extension; 0 for its first part.
  """
  use = np.uint32(zlib.crc32(f"{what} {extension}".encode()))
  return _normal(np.uint32(seed), use, jnp.asarray(indices, jnp.uint32), tuple(shape))


@functools.partial(jax.jit, static_argnums=3)
def _normal(seed: Array, use: Array, indices: Array, shape: tuple[int, ...]) -> Array:
  key = jax.random.fold_in(jax.random.key(seed), use)
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)
  return jax.vmap(lambda k: jax.random.normal(k, shape))(keys)


class StageSampler:
  """`(params, noise, conditioning, null_text) -> normalized latents`, on the devices of a mesh.

  Weights are replicated on each device, the batch is sharded over 'data' and, if it has fewer clips than devices, the
  height of the token grid over 'model'.
  """

  def __init__(self, config: StageConfig, *, mesh: Mesh | None = None):
    self._mesh = mesh
    # None for the default device.
    self._replicated = self._rows = None
    if mesh is not None:
      self._replicated = NamedSharding(mesh, PartitionSpec())
      self._rows = NamedSharding(mesh, PartitionSpec("data"))
    self._rules = tuple(partitioning.rules(model_axis="sequence"))
    model = config.model

    def sample(params, noise, low_noise, conditioning, null_text):
      if low_noise is not None:
        time = jnp.full((noise.shape[0],), model.sampling_low_resolution_noise)
        conditioning = model.low_resolution_noised(conditioning, low_noise, time=time)
      return model.sample(params, noise, conditioning, null_text=null_text)

    self._sample = jax.jit(sample)

  def place(self, params: Any) -> Any:
    """Places the weights on the devices."""
    return jax.device_put(params, self._replicated)

  def __call__(
    self,
    params: Any,
    noise: Array,
    conditioning: Conditioning,
    *,
    low_noise: Array | None = None,
    null_text: Array | None = None,
  ) -> Array:
    """Samples [B, t, h, w, c], normalized.

    Args:
      params: weights from `place`.
      noise: standard normal [B, t, h, w, c].
      conditioning: conditioning of the same batch size; low-resolution latents without noise.
      low_noise: standard normal in the shape of the low-resolution latents, for super-resolution stages.
      null_text: the null caption's embedding [B, n, E].
    """
    arguments = jax.device_put((noise, low_noise, conditioning, null_text), self._rows)
    with self._on_mesh():
      return self._sample(params, *arguments)

  def lower(self, params: Any, *arguments: Any, devices: Sequence[Any]) -> Any:
    """Lowers the chain for shapes, on devices that need not exist.

    Args:
      params: shapes of the weights.
      arguments: shapes of (noise, low-resolution noise, fields of `Conditioning`, null text), for the full batch.
      devices: devices to compile for, those of the mesh if there is one.
    """
    one = jax.sharding.SingleDeviceSharding(devices[0])

    def placed(tree: Any, sharding: Any) -> Any:
      sharding = sharding or one
      return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)

    def sample(params: Any, noise: Any, low_noise: Any, fields: Any, null_text: Any) -> Any:
      return self._sample(params, noise, low_noise, Conditioning(**fields), null_text)

    with self._on_mesh():
      return jax.jit(sample).lower(placed(params, self._replicated), *placed(arguments, self._rows))

  def _on_mesh(self) -> contextlib.ExitStack:
    """Enters mesh and rules, which the network's sharding constraints read."""
    stack = contextlib.ExitStack()
    if self._mesh is not None:
      stack.enter_context(self._mesh)
      stack.enter_context(logical_axis_rules(self._rules))
    return stack
