"""Writes checkpoints asynchronously and atomically, in T5X's Orbax layout (see `engine.checkpoints`)."""

import dataclasses
import os
import time
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from flax import traverse_util
from jax.experimental import multihost_utils

from walt_t5x.engine import array_digests, checkpoints
from walt_t5x.engine.builtin.checkpoint_configs import SaveCheckpointConfig
from walt_t5x.engine.builtin.data_iterator import ShardedIterator
from walt_t5x.engine.builtin.partitioner import DataLayout
from walt_t5x.engine.builtin.train_state import TrainState
from walt_t5x.files import storage


class RowPositionHandler(ocp.CheckpointHandler):
  """Lets Orbax write the position in the training data next to the state, one file per data shard."""

  def save(self, directory: os.PathLike[str], args: "RowPosition") -> None:
    if not args.layout.is_first_host_in_replica_set:
      return
    file = row_position_file(directory, args.layout)
    storage.make_folder(storage.parent(file))
    args.iterator.save(file)

  def restore(self, directory: os.PathLike[str], args: Any = None) -> None:
    raise NotImplementedError("the data position is restored by engine.builtin.restoring")


@ocp.args.register_with_handler(RowPositionHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class RowPosition(ocp.args.CheckpointArgs):
  """The iterator whose position is saved, and the data shard that it reads."""

  iterator: ShardedIterator
  layout: DataLayout


def row_position_file(directory: storage.PathLike, layout: DataLayout) -> str:
  """T5X's name for the position file of this host."""
  if jax.process_count() > 1:
    directory = storage.join(directory, f"process_{jax.process_index()}-of-{jax.process_count()}")
  return storage.join(directory, f"train_ds-{layout.shard_id:03}-of-{layout.num_shards:03}")


class CheckpointManager:
  """Saves the train states of one run.

  Args:
    model_dir: the run's folder.
    config: when and what to save.
    layout: the data shard that this host reads.
    keep_every: as in `RunSettings`.
  """

  def __init__(
    self,
    model_dir: str,
    *,
    config: SaveCheckpointConfig,
    layout: DataLayout,
    keep_every: int | None = None,
  ):
    self._model_dir, self._config, self._layout = model_dir, config, layout
    if config.keep_dataset_checkpoints is not None:
      logging.warning(
        "keep_dataset_checkpoints has no effect with Orbax; `keep` counts complete checkpoints."
      )
    handlers: dict[str, Any] = {"state": ocp.PyTreeCheckpointHandler(use_ocdbt=True)}
    if config.save_dataset:
      handlers["dataset"] = RowPositionHandler()
    self._manager = ocp.CheckpointManager(
      checkpoints.absolute(model_dir),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=config.keep,
        keep_period=keep_every,
        step_prefix="checkpoint",
        # In an object store, Orbax writes to the final folder, and would delete every folder without its commit file,
        # those of TensorBoard and of samples too. `set_incomplete_aside` finds what a kill left there.
        cleanup_tmp_directories=storage.is_local(model_dir),
        async_options=ocp.AsyncOptions(timeout_secs=1800),
      ),
      item_handlers=handlers,
    )

  def save(self, step: int, state: TrainState, iterator: ShardedIterator) -> bool:
    """Starts to write a checkpoint; training may continue immediately. Returns False if the step is already saved."""
    if step in self._manager.all_steps():
      return False
    state_dict = state.state_dict()
    dtype = None if self._config.dtype is None else jnp.dtype(self._config.dtype)

    def save_args(array: Any) -> ocp.SaveArgs:
      floating = jnp.issubdtype(array.dtype, jnp.floating)
      return ocp.SaveArgs(dtype=dtype if floating else None)

    args = jax.tree.map(lambda _: ocp.SaveArgs(), state_dict)
    args["target"] = jax.tree.map(save_args, state_dict["target"])
    items: dict[str, Any] = {"state": ocp.args.PyTreeSave(state_dict, save_args=args)}
    if self._config.save_dataset:
      items["dataset"] = RowPosition(iterator, self._layout)
    arrays: dict[str, Any] = traverse_util.flatten_dict(state_dict, sep="/")
    types: dict[str, Any] = traverse_util.flatten_dict(args, sep="/")
    saved = {name: array.astype(types[name].dtype or array.dtype) for name, array in arrays.items()}
    with checkpoints.writing(self._model_dir):
      return self._manager.save(
        step,
        args=ocp.args.Composite(**items),
        custom_metadata={checkpoints.DIGESTS: array_digests.digests(saved)},
        force=True,
      )

  def delete(self, step: int) -> None:
    """Deletes a checkpoint."""
    self._manager.delete(step)

  def wait(self) -> None:
    """Waits until everything is on disk; raises the error of a failed write."""
    with checkpoints.writing(self._model_dir):
      self._manager.wait_until_finished()

  def close(self) -> None:
    with checkpoints.writing(self._model_dir):
      self._manager.close()


def set_aside(folder: str) -> None:
  """Renames a folder that cannot be restored, so that its step can be saved again; deletes nothing."""
  name = os.path.basename(folder)
  if jax.process_index() == 0 and storage.exists(folder):
    aside = f"incomplete_{name}_{int(time.time())}"
    storage.rename_folder(folder, storage.join(storage.parent(folder), aside))
    logging.warning("%s was renamed to %s.", folder, aside)
  multihost_utils.sync_global_devices(f"set aside {name}")


def set_incomplete_aside(model_dir: str) -> None:
  """Renames every incomplete checkpoint in the folder that a run is about to write to."""
  complete = checkpoints.complete_steps(model_dir)
  incomplete = [step for step in checkpoints.all_steps(model_dir) if step not in complete]
  multihost_utils.sync_global_devices("incomplete checkpoints listed")
  for step in incomplete:
    set_aside(checkpoints.checkpoint_folder(model_dir, step))
