"""What a run starts from: its seed, its data and their provenance, and its state.

The state is that of the run's own newest checkpoint, else of the configured checkpoint, else a new one.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from walt_t5x.engine import checkpoints, run_record
from walt_t5x.engine.builtin import datasets
from walt_t5x.engine.builtin.base_model import BaseModel
from walt_t5x.engine.builtin.checkpoint_configs import RestoreCheckpointConfig
from walt_t5x.engine.builtin.checkpoint_manager import set_incomplete_aside
from walt_t5x.engine.builtin.data_iterator import ShardedIterator
from walt_t5x.engine.builtin.datasets import DatasetConfig
from walt_t5x.engine.builtin.partitioner import DataLayout, PjitPartitioner
from walt_t5x.engine.builtin.restoring import Restorer, restore_row_position
from walt_t5x.engine.builtin.train_state import TrainState
from walt_t5x.files import storage


def drawn_seed(model_dir: str) -> int:
  """A random seed, the same on every host and after every restart of the run."""
  file = epath.Path(model_dir) / "random_seed.json"
  seed = int(np.random.SeedSequence().generate_state(1)[0] >> 1)
  if jax.process_index() == 0:
    if file.exists():
      seed = int(storage.read_json(file)["random_seed"])
    else:
      storage.write(file, json.dumps({"random_seed": seed}) + "\n")
  if jax.process_count() > 1:
    seed = int(multihost_utils.broadcast_one_to_all(np.int32(seed)))
  logging.info("Random seed %d, drawn for this run.", seed)
  return seed


class RowSeeds:
  """The seed that orders the data from each step on, stored in `<model_dir>/row_seeds.json`.

  A run whose data position cannot be restored (other hosts, another batch size, a checkpoint without a position)
  starts a new epoch. With the old seed it would start with the same examples again, and a run that is moved often
  would never see the others. It therefore gets a new seed, derived from the old one and the step, and keeps it.

  Args:
    model_dir: the run's folder.
    first: the seed from step 0 on.
  """

  def __init__(self, model_dir: str, first: int):
    self._file = epath.Path(model_dir) / "row_seeds.json"
    self._seeds = [(0, first)]
    if self._file.exists():
      self._seeds += [(int(step), int(seed)) for step, seed in storage.read_json(self._file)]

  def at(self, step: int) -> int:
    """The seed of a run that resumes from `step`."""
    return self._since(step)[1]

  def position(self, step: int) -> int:
    """Number of batches before `step` in the order of its seed."""
    return step - self._since(step)[0]

  def _since(self, step: int) -> tuple[int, int]:
    return [entry for entry in self._seeds if entry[0] <= step][-1]

  def renew(self, step: int) -> int:
    """Creates a new seed from `step` on; seeds of later steps are dropped."""
    kept = [(start, seed) for start, seed in self._seeds if start < step]
    fresh = int(np.random.SeedSequence([self.at(step), step]).generate_state(1)[0] >> 1)
    self._seeds = [*kept, (step, fresh)]
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices("data seeds read")
    if jax.process_index() == 0:
      storage.write(self._file, json.dumps(self._seeds[1:]) + "\n")
    return fresh


def record_provenance(model_dir: str, cfg: DatasetConfig) -> None:
  """Writes or compares the `walt_provenance` of the task or mixture if it has one (see `engine.run_record`)."""
  given = getattr(datasets.mixture_or_task(cfg), "walt_provenance", None)
  if given is not None:
    run_record.record(model_dir, given, write=jax.process_index() == 0)


def rows(
  cfg: DatasetConfig,
  model: BaseModel,
  *,
  layout: DataLayout,
  seed: int,
  get_dataset_fn: Callable[..., Any],
  partitioner: PjitPartitioner,
) -> ShardedIterator:
  """This host's training data, endless, in the order of `seed`."""
  cfg = dataclasses.replace(cfg, seed=seed)
  make = functools.partial(
    get_dataset_fn, cfg, layout.shard_id, layout.num_shards, model.FEATURE_CONVERTER_CLS
  )
  return ShardedIterator(make, sharding=partitioner.data_sharding, batch_size=layout.batch_size)


def eval_batches(rows: Any, partitioner: PjitPartitioner) -> Iterator[Mapping[str, jax.Array]]:
  """The batches of an evaluation set, once, on the mesh."""
  for batch in rows.as_numpy_iterator():
    yield {
      k: jax.make_array_from_process_local_data(partitioner.data_sharding, np.asarray(v))
      for k, v in batch.items()
    }


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
  set_incomplete_aside(model_dir)
  resumed = restorer.newest(model_dir)
  if resumed is not None:
    state, step = resumed
    logging.info("Resuming from step %d.", step)
    if row_seeds.at(step) != row_seeds.at(0):
      iterator = rows(row_seeds.at(step))
    folder = checkpoints.checkpoint_folder(model_dir, step)
    position = row_seeds.position(step)
    if not restore_row_position(folder, iterator, layout, position=position) and step > 0:
      iterator = rows(row_seeds.renew(step))
    return state, step, iterator
  if restore_cfg is None or not restore_cfg.path:
    return restorer.from_scratch(), 0, iterator
  state = restorer.from_config(restore_cfg)
  if restore_cfg.restore_dataset:
    folder = checkpoints.find_checkpoint(str(restore_cfg.path))
    position = checkpoints.checkpoint_step(folder)
    restore_row_position(folder, iterator, layout, position=position)
  return state, int(jax.device_get(state.step)), iterator
