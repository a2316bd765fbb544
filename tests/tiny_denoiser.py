"""The smallest denoiser in which every layer has an effect; tests list their changes to it."""

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
