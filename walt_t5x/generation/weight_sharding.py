"""How the devices of a mesh hold a stage's weights while it samples: all of them on each, or a part on each."""

import os
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from walt_t5x.generation.stage import StageConfig
from walt_t5x.sharding import partitioning
from walt_t5x.sharding.constraints import sharding_of

AUTO, SHARDED, REPLICATED = "auto", "sharded", "replicated"
SETTINGS = (AUTO, SHARDED, REPLICATED)
# Weights of at most this share of a device's memory are replicated by "auto": sampling then gathers nothing. The
# published cascade, 8.7 GiB in bfloat16, is sharded on every chip of `engine.chips`.
REPLICATED_SHARE = 0.05


def check_setting(setting: str) -> None:
  """Raises ValueError unless the setting is one of `SETTINGS`."""
  if setting not in SETTINGS:
    raise ValueError(f"stage_weights={setting!r}: expected one of {', '.join(SETTINGS)}")


def is_sharded(setting: str, *, weight_bytes: int, device_bytes: int) -> bool:
  """Whether several devices split the weights, by the setting and, for "auto", the sizes.

  Args:
    setting: one of `SETTINGS`.
    weight_bytes: size of all weights that are held at a time.
    device_bytes: memory of a device, see `memory_of`.
  """
  check_setting(setting)
  if setting == AUTO:
    return weight_bytes > REPLICATED_SHARE * device_bytes
  return setting == SHARDED


def memory_of(device: Any) -> int:
  """Bytes that a device reports as its limit; of a CPU, the machine's memory divided by its devices."""
  limit = (device.memory_stats() or {}).get("bytes_limit")
  if limit is None:
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = machine // jax.local_device_count()
  return limit


def sampling_rules(*, sharded: bool) -> partitioning.Rules:
  """Logical axis rules of a sampling mesh, whose axis 'model' splits the height of the token grid."""
  return partitioning.rules(model_axis="sequence", fully_sharded=sharded)


def weight_shardings(config: StageConfig, mesh: Mesh, *, sharded: bool) -> Any:
  """The sharding of every parameter by the rules of training, as nested dicts, or one sharding for all of them.

  Fully sharded weights are split along the width over all devices of the mesh. Parameters without such an axis
  (vectors, tables of relative positions) are replicated, and so are those whose width the devices do not divide.
  """
  if not sharded:
    return NamedSharding(mesh, PartitionSpec())
  rules = sampling_rules(sharded=True)
  return jax.tree.map(
    lambda leaf, names: sharding_of(mesh, leaf.shape, tuple(names), rules=rules),
    config.parameter_shapes(),
    config.parameter_axes(),
  )
