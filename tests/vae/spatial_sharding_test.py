"""Sharding a clip along the height over eight devices gives the result of one device; each holds an eighth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from tests.random_params import random_params
from walt_t5x.vae.autoencoder import CausalVae
from walt_t5x.vae.spatial_sharding import sharded_decode, sharded_encode

SMALL = {
  "latent_channels": 4,
  "base_channels": 4,
  "channel_multipliers": (1, 2),
  "num_res_blocks": 1,
  "temporal_downsample": (True,),
}


def _mesh():
  devices = jax.devices()
  if len(devices) < 8:
    pytest.skip("needs 8 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
  return Mesh(np.asarray(devices[:8]), ("rows",))


def test_eight_devices_equal_one():
  mesh = _mesh()
  vae = CausalVae(**SMALL)
  params = random_params(vae.init, jnp.zeros((1, 3, 8, 8, 3)))
  video = np.random.default_rng(0).uniform(size=(1, 3, 32, 8, 3)).astype(np.float32)
  complete = jax.jit(lambda x: vae.apply({"params": params}, x, method="encode").mean)(video)
  latents = sharded_encode(vae, mesh, axis="rows")(params, video)
  assert {shard.data.shape for shard in latents.addressable_shards} == {(1, 2, 2, 4, 4)}
  np.testing.assert_allclose(latents, complete, atol=1e-5)

  pixels = jax.jit(lambda z: vae.apply({"params": params}, z, method="decode"))(complete)
  decoded = sharded_decode(vae, mesh, axis="rows")(params, latents)
  assert {shard.data.shape for shard in decoded.addressable_shards} == {(1, 3, 4, 8, 3)}
  np.testing.assert_allclose(decoded, pixels, atol=2e-5)


def test_a_height_that_does_not_divide_raises():
  mesh = _mesh()
  vae = CausalVae(**SMALL)
  with pytest.raises(
    ValueError, match=r"got 12 rows of latents for mesh axis 'rows', expected a mu"
  ):
    sharded_decode(vae, mesh, axis="rows")({}, np.zeros((1, 1, 12, 4, 4)))
  with pytest.raises(
    ValueError, match=r"got 40 rows of pixels for mesh axis 'rows', expected .* 16"
  ):
    sharded_encode(vae, mesh, axis="rows")({}, np.zeros((1, 1, 40, 16, 3)))
