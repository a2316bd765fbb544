"""Where a run starts: its own newest checkpoint, else the one it is told to start from, else scratch."""

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
  """The state, its step, and the rows that come next. Torn checkpoints of the run are set aside.

  Args:
    model_dir: the run's folder.
    restorer: makes states of the model.
    restore_cfg: what to start from where the run has no checkpoint, or None.
    iterator: the training rows of step 0, from their beginning.
    rows: seed -> other ones.
    row_seeds: which seed orders the rows from which step on; renewed where the rows cannot go on where they were.
    layout: which rows this host reads.
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
