"""The smallest denoiser whose layers all do something; tests state what they change of it."""

import jax.numpy as jnp

# Fields of `WaltDenoiser`.
FIELDS = {
  "num_layers": 2,
  "width": 16,
  "num_heads": 2,
  "mlp_dim": 32,
  "latent_channels": 4,
  "spatial_window": (1, 4, 4),
  "spatiotemporal_window": (3, 2, 2),
  "dtype": jnp.float32,
}
