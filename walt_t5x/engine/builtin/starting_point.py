"""Where a run starts: its own newest checkpoint, else the configured checkpoint, else scratch."""

from collections.abc import Callable

import jax
from absl import logging

from walt_t5x.engine import checkpoints
from walt_t5x.engine.builtin.checkpoint_configs import RestoreCheckpointConfig
from walt_t5x.engine.builtin.checkpoint_manager import set_torn_aside
from walt_t5x.engine.builtin.data_iterator import ShardedIterator
from walt_t5x.engine.builtin.partitioner import DataLayout
from walt_t5x.engine.builtin.restoring import Restorer, restore_row_position
from walt_t5x.engine.builtin.run_inputs import RowSeeds
from walt_t5x.engine.builtin.train_state import TrainState


def starting_point(
  model_dir: str,
  *,
  restorer: Restorer,
  restore_cfg: RestoreCheckpointConfig | None,
  iterator: ShardedIterator,
  rows: Callable[[int], ShardedIterator],
  row_seeds: RowSeeds,
  layout: DataLayout,
) -> tuple[TrainState, int, ShardedIterator]:
  """The state, its step, and the data from there on. Incomplete checkpoints of the run are renamed.

  Args:
    model_dir: the run's folder.
    restorer: restores or creates states of the model.
    restore_cfg: what to start from if the run has no checkpoint, or None.
    iterator: the training data of step 0, from the beginning.
    rows: seed -> data in another order.
    row_seeds: the seed that orders the data from each step on; renewed if the data position cannot be restored.
    layout: the data shard that this host reads.
  """
  set_torn_aside(model_dir)
  resumed = restorer.newest(model_dir)
  if resumed is not None:
    state, step = resumed
    logging.info("Resuming from step %d.", step)
    if row_seeds.at(step) != row_seeds.at(0):
      iterator = rows(row_seeds.at(step))
    folder = checkpoints.checkpoint_folder(model_dir, step)
    if not restore_row_position(folder, iterator, layout) and step > 0:
      iterator = rows(row_seeds.renew(step))
    return state, step, iterator
  if restore_cfg is None or not restore_cfg.path:
    return restorer.from_scratch(), 0, iterator
  state = restorer.from_config(restore_cfg)
  if restore_cfg.restore_dataset:
    restore_row_position(checkpoints.find_checkpoint(str(restore_cfg.path)), iterator, layout)
  return state, int(jax.device_get(state.step)), iterator
