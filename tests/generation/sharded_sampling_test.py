"""Weights that the devices of a mesh split: the samples of one device, and the memory that each device needs."""

import functools
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from tests.generation import cascades, random_cascade
from tests.generation.lossless_cascade import (
  make_batch,
  make_cascade,
  make_clip,
  make_media,
  samples_of,
)
from walt_t5x.engine.chips import TPUS
from walt_t5x.generation import weight_sharding
from walt_t5x.generation.stage import StageConfig
from walt_t5x.generation.stage_sampler import StageSampler, mesh_for

# Wide enough for the matrices to outweigh the tables of relative positions, which are not split.
WIDE = {"width": 64, "mlp_dim": 256, "num_heads": 4, "num_layers": 4, "scan_layers": True}


@functools.cache
def _stages():
  model = functools.partial(cascades.model, steps=2, latent_channels=12, **WIDE)
  sr = model(patch_size=2, low_resolution_scale=2, pooled_text=False)
  return cascades.config(Path("/nowhere"), base=model(), sr=sr).stages


@functools.cache
def _params(name):
  (config,) = [c for c in _stages() if c.name == name]
  return random_cascade.random_params(config, text_length=8, seed=ord(name[0]), spread=0.1)


def _cascade(**options):
  load = lambda info: (_params(info.config.name), "f")  # noqa: E731
  return make_cascade(configs=_stages(), load=load, **options)


def _of_device(params, device):
  """Bytes of the weights on a device."""
  shards = [shard for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards]
  return sum(shard.data.nbytes for shard in shards if shard.device == device)


def _total(tree):
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def test_sharded_sampling_equals_that_of_one_device_and_no_device_holds_a_quarter_of_the_weights():
  """Both stages with guidance, text and frames, the second one with a low resolution."""
  batch = make_batch(0, 1, media=make_media(make_clip(5), 5))
  expected = samples_of(_cascade(), batch)
  split = _cascade(mesh=mesh_for(2, jax.devices()), sharded=True)
  for one, eight in zip(expected, samples_of(split, batch)):
    for name in ("base", "sr1"):
      assert one.latents[name].std() > 0.1
      np.testing.assert_allclose(eight.latents[name], one.latents[name], atol=1e-5)
  for info in split.infos:
    weights, sampler = split._weights(info), split._samplers[info.config.name]
    for device in jax.devices():
      held = _of_device(weights, device)
      assert held == sampler.device_bytes(weights) <= _total(weights) / 4
    kernel = weights["pairs"]["spatial"]["mlp"]["wi"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(2, 8, 256)}


def test_a_program_needs_a_part_of_the_weights_and_gathers_one_pair_of_layers_at_a_time():
  """Memory of the compiled chain; its workspace is that of the program whose weights are complete arguments."""
  deep = cascades.model(steps=2, **WIDE | {"num_layers": 16})
  config = StageConfig(name="base", model=deep, checkpoint="", latents=cascades.BASE)
  params = config.parameter_shapes()

  def spec(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct((2, *shape), dtype)

  noise = spec(5, 4, 4, 4)
  fields = {"text": spec(1, 8, 8), "text_mask": spec(1, 8, dtype=jnp.bool_)}
  inputs = noise, None, fields | {"frames": noise, "frame_mask": spec(5)}, spec(1, 8)

  def memory(*, sharded):
    sampler = StageSampler(config, mesh=mesh_for(2, jax.devices()), sharded=sharded)
    lowered = sampler.lower(params, *inputs, devices=jax.devices())
    return lowered.compile().memory_analysis(), sampler.device_bytes(params)

  (complete, every), (split, part) = memory(sharded=False), memory(sharded=True)
  weights = _total(params)
  assert every == weights and part <= weights / 4
  # Inputs are split over the clips, and padded to the alignment of the buffers.
  assert split.argument_size_in_bytes <= part + _total(inputs) + 64 * len(jax.tree.leaves(inputs))
  needed = split.argument_size_in_bytes + split.temp_size_in_bytes
  assert needed <= weights / 4 + _total(inputs) + complete.temp_size_in_bytes
  assert split.temp_size_in_bytes < weights / 2


def test_a_width_that_the_devices_do_not_divide_is_not_split():
  model = cascades.model(**WIDE | {"width": 60})
  config = StageConfig(name="base", model=model, checkpoint="", latents=cascades.BASE)
  mesh = mesh_for(2, jax.devices())
  found = weight_sharding.weight_shardings(config, mesh, sharded=True)
  assert all(sharding.is_fully_replicated for sharding in jax.tree.leaves(found))


def test_auto_splits_weights_of_more_than_a_twentieth_of_a_devices_memory():
  def split(weight_bytes, chip):
    memory = TPUS[chip].hbm_bytes
    return weight_sharding.is_sharded("auto", weight_bytes=weight_bytes, device_bytes=memory)

  # The published cascade in bfloat16, the base stage of W.A.L.T-L, and a tiny one.
  assert [split(size, "v5p") for size in (9.3e9, 0.6e9, 1e6)] == [True, False, False]
  assert [split(size, "v5e") for size in (9.3e9, 0.9e9, 1e6)] == [True, True, False]
  for setting in ("sharded", "replicated"):
    for size in (1, 10**12):
      found = weight_sharding.is_sharded(setting, weight_bytes=size, device_bytes=2**30)
      assert found == (setting == "sharded")
  reports = types.SimpleNamespace(memory_stats=lambda: {"bytes_limit": 7})
  assert weight_sharding.memory_of(reports) == 7
  # A CPU's devices share the machine's memory.
  assert 2**27 < weight_sharding.memory_of(jax.devices()[0]) < 2**40
