"""The noise of a sample: a function of the seed, the sample and its use, independent of the batch."""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


def noise_for(
  seed: int, what: str, indices: np.ndarray, shape: tuple[int, ...], *, round: int = 0
) -> Array:
  """Standard normal [B, *shape].

  Args:
    seed: seed of the run.
    what: the stage, or another use of noise.
    indices: index of each sample [B].
    shape: shape of one sample.
    round: round of a continuation.
  """
  use = np.uint32(zlib.crc32(f"{what} {round}".encode()))
  return _normal(np.uint32(seed), use, jnp.asarray(indices, jnp.uint32), tuple(shape))


@functools.partial(jax.jit, static_argnums=3)
def _normal(seed: Array, use: Array, indices: Array, shape: tuple[int, ...]) -> Array:
  key = jax.random.fold_in(jax.random.key(seed), use)
  keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(indices)
  return jax.vmap(lambda k: jax.random.normal(k, shape))(keys)
