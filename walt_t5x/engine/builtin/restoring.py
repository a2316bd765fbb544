"""Restores train states from checkpoints onto any mesh."""

import collections
import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from flax import traverse_util
from jax.experimental import multihost_utils

from walt_t5x.engine import checkpoints
from walt_t5x.engine.builtin.checkpoint_configs import RestoreCheckpointConfig
from walt_t5x.engine.builtin.checkpoint_manager import row_position_file, set_aside
from walt_t5x.engine.builtin.data_iterator import ShardedIterator
from walt_t5x.engine.builtin.partitioner import DataLayout
from walt_t5x.engine.builtin.train_state import StateInitializer, TrainState
from walt_t5x.files import storage
from walt_t5x.files.damage import Damaged
from walt_t5x.files.mismatch import Mismatch

Name = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Restorer:
  """Restores states of one model; `rng` is used only if something must be filled in."""

  initializer: StateInitializer
  rng: jax.Array

  def newest(self, model_dir: str) -> tuple[TrainState, int] | None:
    """The state of a run's newest readable checkpoint and its step; None if the run has no checkpoint.

    A checkpoint that is damaged is renamed with a warning and the previous one is tried; a readable one of another
    model is an error, and so is a failure to read that may pass.

    Raises:
      RuntimeError: there are checkpoints, and none can be read.
    """
    steps = checkpoints.complete_steps(model_dir)
    failures = []
    for step in reversed(steps):
      folder = checkpoints.checkpoint_folder(model_dir, step)
      try:
        config = RestoreCheckpointConfig(path=folder, mode="specific")
        return self.from_config(config), step
      except (Damaged, FileNotFoundError) as error:
        failures.append(str(error)[:400])
        logging.warning(
          "%s cannot be read (%s); trying the previous checkpoint.", folder, str(error)[:400]
        )
        set_aside(folder)
    if failures:
      raise RuntimeError(
        "no checkpoint of this run can be read: they were renamed to incomplete_*. Restore one by hand, or run the "
        "same command again to start from scratch.\n  " + "\n  ".join(failures)
      )
    return None

  def from_config(self, config: RestoreCheckpointConfig) -> TrainState:
    """The state that a config refers to.

    Raises:
      FileNotFoundError: no complete checkpoint exists.
      Mismatch: names or shapes differ from this model's.
    """
    checkpoint = checkpoints.find_checkpoint(str(config.path))
    logging.info("Restoring %s.", checkpoint)
    wanted: dict[Name, Any] = traverse_util.flatten_dict(self.initializer.shapes.state_dict())
    shardings = traverse_util.flatten_dict(self.initializer.shardings.state_dict())
    metadata = checkpoints.state_metadata(checkpoint)
    sources = _sources(wanted, metadata, config.assignment_map or ())
    if config.state_transformation_fns:
      found = self._transformed(
        checkpoint, config, wanted=wanted, sources=sources, metadata=metadata
      )
      _check_shapes(checkpoint, {k: (k, np.shape(v)) for k, v in found.items()}, wanted)
      found = {k: _placed(v, wanted[k].dtype, shardings[k]) for k, v in found.items()}
    else:
      _check_shapes(checkpoint, {k: (s, metadata[s].shape) for k, s in sources.items()}, wanted)
      # Each host reads only what its devices hold.
      restore_args = {
        source: ocp.ArrayRestoreArgs(
          sharding=shardings[name], global_shape=wanted[name].shape, dtype=wanted[name].dtype
        )
        for name, source in sources.items()
      }
      arrays = checkpoints.read_arrays(
        checkpoint, {source: metadata[source] for source in restore_args}, restore_args
      )
      # Names may share a source (an average initialized by the parameters); the step donates each buffer once.
      uses = collections.Counter(sources.values())
      found = {}
      for name, source in sources.items():
        uses[source] -= 1
        found[name] = arrays[source]
        if uses[source]:
          found[name] = jax.device_put(jnp.copy(arrays[source]), shardings[name])
    missing = sorted("/".join(k) for k in wanted if k not in found)
    if missing and not config.fallback_to_scratch:
      raise Mismatch(
        f"{checkpoint} lacks {len(missing)} of the {len(wanted)} arrays of this model and optimizer, first "
        f"{missing[:3]}; it has {len(metadata)}, first {['/'.join(k) for k in list(metadata)[:3]]}. Train the model "
        "that wrote it, or set RestoreCheckpointConfig.assignment_map with fallback_to_scratch=True."
      )
    if missing:
      logging.info("%d arrays start from scratch, first %s.", len(missing), missing[:3])
      fresh = traverse_util.flatten_dict(self.initializer.from_scratch(self.rng).state_dict())
      found |= {k: fresh[k] for k in wanted if k not in found}
    state = self.initializer.shapes.restore_state(traverse_util.unflatten_dict(found))
    if config.dtype is not None and jnp.dtype(config.dtype) != jnp.float32:
      cast = jax.tree.map(lambda p: p.astype(config.dtype), state.params)
      state = state.replace(params=cast)
    return state

  def _transformed(
    self,
    checkpoint: str,
    config: RestoreCheckpointConfig,
    *,
    wanted: dict[Name, Any],
    sources: dict[Name, Name],
    metadata: dict[Name, Any],
  ) -> dict[Name, Any]:
    """The transformed arrays, on the host. Arrays that no name of this model maps to are transformed too."""
    arrays = checkpoints.read_arrays(checkpoint, metadata)
    dropped = set(sources.values()) | (set(wanted) - set(sources))
    renamed = {k: v for k, v in arrays.items() if k not in dropped}
    renamed |= {name: arrays[source] for name, source in sources.items()}
    state_dict = traverse_util.unflatten_dict(renamed)
    target = self.initializer.shapes.state_dict()
    for fn in config.state_transformation_fns:
      state_dict = fn(state_dict, target, is_resuming=False)
    flat = traverse_util.flatten_dict(state_dict)
    return {k: v for k, v in flat.items() if k in wanted}


def restore_row_position(
  checkpoint: str, iterator: ShardedIterator, layout: DataLayout, *, position: int
) -> bool:
  """Continues with the next examples. Returns False on all hosts, with a warning, if their position is unknown.

  Args:
    checkpoint: the checkpoint that the run continues.
    iterator: the data from its beginning, in the checkpoint's order; this host reads the shard `layout`.
    position: number of batches before the checkpoint's.
  """
  file = row_position_file(storage.join(checkpoint, "dataset"), layout)
  if not storage.exists(f"{file}.index"):
    restored = False
    logging.warning(
      "%s has no position for data shard %d of %d (it was saved without save_dataset, or on another number of hosts); "
      "a new epoch starts, in another order.",
      checkpoint,
      layout.shard_id,
      layout.num_shards,
    )
  else:
    restored = iterator.restore(file, position=position)
    if not restored:
      logging.warning(
        "A new epoch starts, in another order: %s was saved with another task, batch size or pipeline (T5X, without "
        "get_dataset_fn = @engine.get_dataset, keeps small tasks in RAM; this engine does not).",
        checkpoint,
      )
  return bool(np.all(multihost_utils.process_allgather(np.bool_(restored))))


def _sources(
  wanted: dict[Name, Any],
  metadata: dict[Name, Any],
  assignment_map: Sequence[tuple[str, str | None]],
) -> dict[Name, Name]:
  """Name in this model -> name in the checkpoint, for names that are in both."""
  sources = {}
  for name in wanted:
    text: str | None = "/".join(name)
    for pattern, replacement in assignment_map:
      if match := re.fullmatch(pattern, "/".join(name)):
        text = None if replacement is None else match.expand(replacement)
        break
    source = tuple((text or "").split("/"))
    if source not in metadata and source[:2] == ("flax_mutables", "running"):
      # Until version 0.2 the tokenizer's running state was among its parameters.
      source = ("target", "running", "step" if source[2] == "count" else source[2])
    if source in metadata:
      sources[name] = source
  return sources


def _check_shapes(
  checkpoint: str, found: dict[Name, tuple[Name, tuple[int, ...]]], wanted: dict[Name, Any]
) -> None:
  for name, (source, shape) in found.items():
    if tuple(shape) != tuple(wanted[name].shape):
      raise Mismatch(
        f"{checkpoint}: {'/'.join(source)} has shape {tuple(shape)}, expected {tuple(wanted[name].shape)} for "
        f"{'/'.join(name)}. Train the model that wrote it, or drop the name in RestoreCheckpointConfig.assignment_map."
      )


def _placed(value: Any, dtype: Any, sharding: Any) -> jax.Array:
  """Places a host array on the mesh; every host provides the parts that its devices hold."""
  array = np.asarray(value).astype(dtype)
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
