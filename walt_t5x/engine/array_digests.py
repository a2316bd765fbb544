"""Digests of arrays that do not depend on how an array is sharded: what a checkpoint records, to detect damage.

The digest of an array is the sum, modulo 2^32, of mix(w_i xor i K) over its words w_i and their flat positions i; mix
is the finalizer of MurmurHash3, K an odd constant. A shard contributes its part of the sum, so that each host reads
only its own. For a fixed position the mix is a bijection: a change of a single element changes the digest, and any
other change does so except with probability 2^-32. It protects against accidents, not against intent.
"""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

# Elements that numpy mixes at once, few enough for its temporaries to stay in the cache.
_CHUNK = 2**15
_SPREAD, _FIRST, _SECOND = (np.uint32(n) for n in (0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35))


def digests(arrays: Mapping[str, Any]) -> dict[str, int]:
  """Digest of each array by name. If one is sharded over several processes, all of them call this with the same names.

  Numpy arrays and those of the CPU are read in place; those of an accelerator stay on it.
  """
  found, parts, shared = {}, [], []
  for name, array in arrays.items():
    if not isinstance(array, jax.Array):
      parts.append((name, np.asarray(array), (), ()))
    elif next(iter(array.sharding.device_set)).platform == "cpu":
      shards = [shard for shard in array.addressable_shards if shard.replica_id == 0]
      parts += [(name, np.asarray(shard.data), shard.index, array.shape) for shard in shards]
      if not array.is_fully_addressable:
        shared.append(name)
    else:
      found[name] = _of_device(array)
  # A process may hold no shard of an array.
  found |= {name: 0 for name in arrays if name not in found}
  with ThreadPoolExecutor(os.cpu_count()) as pool:
    sums = pool.map(lambda part: _part(*part[1:]), parts)
    for (name, *_), one in zip(parts, sums, strict=True):
      found[name] += one
  if shared:
    mine = np.array([found[name] % 2**32 for name in shared], np.uint32)
    everyone = np.asarray(multihost_utils.process_allgather(mine)).astype(np.uint64)
    found |= dict(zip(shared, everyone.sum(axis=0).tolist(), strict=True))
  return {name: int(digest) % 2**32 for name, digest in found.items()}


def _mixed(words: Any, position: Any) -> Any:
  """Numpy or JAX arrays of uint32, flat positions modulo 2^32."""
  h = words ^ (position * _SPREAD)
  h = (h ^ (h >> np.uint32(16))) * _FIRST
  h = (h ^ (h >> np.uint32(13))) * _SECOND
  return h ^ (h >> np.uint32(16))


def _part(values: np.ndarray, index: tuple[slice, ...] = (), shape: tuple[int, ...] = ()) -> int:
  """What a shard contributes: `values` are those of `index` in an array of `shape`, by default the array."""
  values = np.ascontiguousarray(values)
  size = max(values.dtype.itemsize // 4, 1)
  words = values.reshape(-1).view(f"<u{min(values.dtype.itemsize, 4)}")
  if not words.size:
    return 0
  rows, first = words.reshape(1, -1), np.zeros(1, np.uint32)
  if index and values.shape != shape:
    # Positions of the first words of the rows, which are contiguous in the array.
    rows = words.reshape(-1, values.shape[-1] * size)
    offsets = [s.start or 0 for s in index]
    along = np.unravel_index(np.arange(len(rows)), values.shape[:-1]) if len(shape) > 1 else ()
    places = (place + offset for place, offset in zip([*along, 0], offsets, strict=True))
    found = sum(place * stride * size for place, stride in zip(places, _strides(shape)))
    first = np.reshape(found, -1).astype(np.uint32)
  height, width = max(_CHUNK // rows.shape[1], 1), min(rows.shape[1], _CHUNK)
  within, total = np.arange(width, dtype=np.uint32), 0
  for top in range(0, len(rows), height):
    for left in range(0, rows.shape[1], width):
      part = rows[top : top + height, left : left + width].astype(np.uint32, copy=False)
      start = first[top : top + height, None] + np.uint32(left % 2**32)
      total += _mixed_sum(part, start + within[: part.shape[1]])
  return total


def _mixed_sum(words: np.ndarray, position: np.ndarray) -> int:
  """The sum of `_mixed`, modulo 2^32, in half its time: in the memory of `position`."""
  h, shifted = position, np.empty_like(position)
  np.multiply(h, _SPREAD, out=h)
  np.bitwise_xor(words, h, out=h)
  for shift, factor in ((16, _FIRST), (13, _SECOND), (16, None)):
    np.right_shift(h, np.uint32(shift), out=shifted)
    np.bitwise_xor(h, shifted, out=h)
    if factor is not None:
      np.multiply(h, factor, out=h)
  return int(np.add.reduce(h, axis=None, dtype=np.uint32))


def _strides(shape: tuple[int, ...]) -> list[int]:
  return [int(np.prod(shape[axis + 1 :], dtype=np.int64)) for axis in range(len(shape))]


@jax.jit
def _of_device(array: jax.Array) -> jax.Array:
  if array.dtype == jnp.bool_:
    array = array.astype(jnp.uint8)
  bits = jax.lax.bitcast_convert_type(array, _UNSIGNED[min(array.dtype.itemsize, 4)])
  position = jnp.zeros(bits.shape, jnp.uint32)
  for axis, stride in enumerate(_strides(bits.shape)):
    along = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    position += along * np.uint32(stride % 2**32)
  return jnp.sum(_mixed(bits.astype(jnp.uint32), position), dtype=jnp.uint32)


_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
