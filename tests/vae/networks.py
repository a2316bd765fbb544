"""A tiny autoencoder and parameters for it, for tests."""

import jax
import jax.numpy as jnp
import numpy as np

TINY = {
  "latent_channels": 4,
  "base_channels": 8,
  "channel_multipliers": (1, 2, 4),
  "num_res_blocks": 1,
  "temporal_downsample": (True, True),
}


def random_params(module, shape, seed=0):
  """Every parameter random, kernels scaled by fan-in: nothing that starts at zero may hide a leak."""
  shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(shape))["params"]
  leaves, tree = jax.tree.flatten(shapes)
  rng = np.random.default_rng(seed)
  scaled = [rng.normal(size=s.shape) / np.sqrt(np.prod(s.shape[:-1])) for s in leaves]
  return jax.tree.unflatten(tree, [jnp.asarray(v, jnp.float32) for v in scaled])
