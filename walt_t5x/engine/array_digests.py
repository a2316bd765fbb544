"""Digests of arrays that do not depend on how an array is sharded: what a checkpoint records, to detect damage.

The digest of an array is the sum, modulo 2^32, of k_i fold(w_i) over its words w_i at their flat positions i, where
fold(w) = w xor (w >> 16) and k_i is the product of two odd random numbers, one for i mod 2^16 and one for the next 16
bits of i. A shard contributes its part of the sum, so that each host reads only its own. A change of a single word
changes the digest, since all factors are odd; other changes do except with probability 2^-32, and 2^-17 where two words
differ in the same bit. It protects against accidents, not against intent.
"""

import itertools
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

_FIRST, _SECOND = np.uint32(0x85EBCA6B), np.uint32(0xC2B2AE35)
# Words whose products numpy sums at once, few enough for them to stay in the cache.
_BLOCK = 2**16


def _odd(numbers: Any) -> Any:
  """Odd random numbers: numpy or JAX arrays of uint32, mixed by the finalizer of MurmurHash3."""
  h = (numbers ^ (numbers >> np.uint32(16))) * _FIRST
  h = (h ^ (h >> np.uint32(13))) * _SECOND
  return (h ^ (h >> np.uint32(16))) | np.uint32(1)


_WITHIN, _OF_BLOCK = _odd(np.arange(2 * _BLOCK, dtype=np.uint32)).reshape(2, _BLOCK)


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


def _part(values: np.ndarray, index: tuple[slice, ...] = (), shape: tuple[int, ...] = ()) -> int:
  """What a shard contributes: `values` are those of `index` in an array of `shape`, by default the array."""
  values = np.ascontiguousarray(values)
  size = max(values.dtype.itemsize // 4, 1)
  words = values.reshape(-1).view(f"<u{min(values.dtype.itemsize, 4)}")
  if not words.size:
    return 0
  rows, first = words.reshape(1, -1), np.zeros(1, np.int64)
  if index and values.shape != shape:
    # Positions of the first words of the rows, which are contiguous in the array.
    rows = words.reshape(-1, values.shape[-1] * size)
    offsets = [s.start or 0 for s in index]
    along = np.unravel_index(np.arange(len(rows)), values.shape[:-1]) if len(shape) > 1 else ()
    places = (place + offset for place, offset in zip([*along, 0], offsets, strict=True))
    first = np.reshape(sum(p * stride * size for p, stride in zip(places, _strides(shape))), -1)
  width, total = rows.shape[1], 0
  # Allocated once: fresh memory costs a thread more than the sums.
  memory = np.empty(_BLOCK, np.uint32)
  in_one = first % _BLOCK + width <= _BLOCK
  for row in np.flatnonzero(~in_one).tolist():
    start = int(first[row])
    ends = [*range(_BLOCK - start % _BLOCK, width, _BLOCK), width]
    for left, right in itertools.pairwise([0, *ends]):
      within = (start + left) % _BLOCK
      factors = _WITHIN[within : within + right - left]
      total += int(
        _sums(rows[row : row + 1, left:right], factors, memory) @ _of_blocks(start + left)
      )
  found, several = np.flatnonzero(in_one), max(_BLOCK // width, 1)
  for at in range(0, len(found), several):
    some = found[at : at + several]
    factors = np.lib.stride_tricks.sliding_window_view(_WITHIN, width)
    sums = _sums(rows[some], factors[first[some] % _BLOCK], memory)
    total += int(sums @ _of_blocks(first[some]))
  return total


def _of_blocks(positions: np.ndarray | int) -> np.ndarray:
  """The factors of the blocks of these positions, in the dtype in which their products with sums are exact."""
  return np.atleast_1d(_OF_BLOCK[positions // _BLOCK % _BLOCK]).astype(np.uint64)


def _sums(words: np.ndarray, factors: np.ndarray, memory: np.ndarray) -> np.ndarray:
  """Of each row, without the factor of its block, modulo 2^32."""
  h = memory[: words.size].reshape(words.shape)
  np.right_shift(words, np.uint32(16), out=h, casting="unsafe", dtype=np.uint32)
  np.bitwise_xor(words, h, out=h)
  np.multiply(h, factors, out=h)
  return np.add.reduce(h, axis=1, dtype=np.uint32)


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
  words = bits.astype(jnp.uint32)
  within, block = position % np.uint32(_BLOCK), position // np.uint32(_BLOCK)
  factors = _odd(within) * _odd(block + np.uint32(_BLOCK))
  return jnp.sum((words ^ (words >> np.uint32(16))) * factors, dtype=jnp.uint32)


_UNSIGNED = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
