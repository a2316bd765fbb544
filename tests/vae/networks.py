"""A tiny autoencoder for tests."""

TINY = {
  "latent_channels": 4,
  "base_channels": 8,
  "channel_multipliers": (1, 2, 4),
  "num_res_blocks": 1,
  "temporal_downsample": (True, True),
}
