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
from walt_t5x.generation.stage import StageConfig, StageInfo, load_weights
from walt_t5x.generation.weight_sharding import sampling_rules, weight_shardings


def mesh_for(rows: int, devices: Sequence[Any]) -> Mesh | None:
  """A ('data', 'model') mesh: `rows` over as many devices as divide them, the token grid's height over the rest.

  None for a single device.
  """
  if len(devices) == 1:
    return None
  data = math.gcd(rows, len(devices))
  return Mesh(np.asarray(devices).reshape(data, -1), ("data", "model"))


def noise_for(
  seed: int | Sequence[int],
  what: str,
  indices: np.ndarray,
  shape: tuple[int, ...],
  *,
  extension: int = 0,
) -> Array:
  """Standard normal [B, *shape], a function of the seed, the sample and its use, independent of the batch.

  Args:
    seed: from 0 to 2^32 - 1, one for all samples or one for each.
    what: the stage, or another use of noise.
    indices: index of each sample [B].
    extension: number of the clip's extension; 0 for its first part.
  """
  use = np.uint32(zlib.crc32(f"{what} {extension}".encode()))
  seeds = np.broadcast_to(np.asarray(seed, np.uint32), np.shape(indices))
  return _normal(seeds, use, jnp.asarray(indices, jnp.uint32), tuple(shape))


@functools.partial(jax.jit, static_argnums=3)
def _normal(seeds: Array, use: Array, indices: Array, shape: tuple[int, ...]) -> Array:
  def key(seed: Array, index: Array) -> Array:
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), use), index)

  return jax.vmap(lambda k: jax.random.normal(k, shape))(jax.vmap(key)(seeds, indices))


class StageSampler:
  """`(params, noise, conditioning, null_text) -> normalized latents`, on the devices of a mesh.

  The batch is sharded over 'data' and, if it has fewer clips than devices, the height of the token grid over 'model'.

  Args:
    config: the stage.
    mesh: its devices, see `mesh_for`; None for the default device.
    sharded: whether the devices split the weights, see `weight_sharding.weight_shardings`; otherwise each holds all.
  """

  def __init__(self, config: StageConfig, *, mesh: Mesh | None = None, sharded: bool = False):
    self._mesh, self._config, self._sharded = mesh, config, sharded and mesh is not None
    # None for the default device.
    self._rows = None if mesh is None else NamedSharding(mesh, PartitionSpec("data"))
    self._rules = tuple(sampling_rules(sharded=self._sharded))
    model = config.model

    def sample(params, noise, low_noise, conditioning, null_text):
      if low_noise is not None:
        time = jnp.full((noise.shape[0],), model.sampling_low_resolution_noise)
        conditioning = model.low_resolution_noised(conditioning, low_noise, time=time)
      return model.sample(params, noise, conditioning, null_text=null_text)

    self._sample = jax.jit(sample)

  @functools.cached_property
  def shardings(self) -> Any:
    """The sharding of each weight, or one for all; None for the default device."""
    if self._mesh is None:
      return None
    return weight_shardings(self._config, self._mesh, sharded=self._sharded)

  def device_bytes(self, params: Any) -> int:
    """Size of the weights that each device holds, for weights or their shapes."""

    def size(x: Any, sharding: Any = None) -> int:
      shape = x.shape if sharding is None else sharding.shard_shape(x.shape)
      return math.prod(shape) * x.dtype.itemsize

    trees = (params, self.shardings) if self._sharded else (params,)
    return sum(jax.tree.leaves(jax.tree.map(size, *trees)))

  def load(self, info: StageInfo) -> tuple[Any, str]:
    """Reads the weights, those that the devices split onto their devices; returns them and their fingerprint."""
    return load_weights(info, self.shardings if self._sharded else None)

  def place(self, params: Any) -> Any:
    """Places the weights on the devices."""
    return jax.device_put(params, self.shardings)

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

    def spec(x: Any, sharding: Any) -> Any:
      return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or one)

    def placed(tree: Any, sharding: Any) -> Any:
      return jax.tree.map(lambda x: spec(x, sharding), tree)

    def sample(params: Any, noise: Any, low_noise: Any, fields: Any, null_text: Any) -> Any:
      return self._sample(params, noise, low_noise, Conditioning(**fields), null_text)

    if self._sharded:
      weights = jax.tree.map(spec, params, self.shardings)
    else:
      weights = placed(params, self.shardings)
    with self._on_mesh():
      return jax.jit(sample).lower(weights, *placed(arguments, self._rows))

  def _on_mesh(self) -> contextlib.ExitStack:
    """Enters mesh and rules, which the network's sharding constraints read."""
    stack = contextlib.ExitStack()
    if self._mesh is not None:
      stack.enter_context(self._mesh)
      stack.enter_context(logical_axis_rules(self._rules))
    return stack
