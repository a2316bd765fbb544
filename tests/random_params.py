"""Random parameters for networks under test, from shapes only: initializers would compile a program for each."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def random_params(init: Callable[..., Any], *arguments: Any, seed: int = 0, spread: float = 0.3):
  """Parameters with the shapes of `init(key, *arguments)`.

  Kernels are scaled by their fan-in. Vectors deviate from 0, scales of norms from 1, by `spread`, so that no zero
  initialization hides an error.
  """
  shapes = jax.eval_shape(lambda: init(jax.random.key(0), *arguments))["params"]
  rng = np.random.default_rng(seed)

  def value(path: Any, leaf: Any) -> jax.Array:
    noise = rng.normal(size=leaf.shape)
    if leaf.ndim > 1:
      return jnp.asarray(noise / np.sqrt(np.prod(leaf.shape[:-1])), jnp.float32)
    return jnp.asarray(spread * noise + (path[-1].key == "scale"), jnp.float32)

  return jax.tree_util.tree_map_with_path(value, shapes)
