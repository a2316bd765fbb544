"""What a run starts from besides its parameters: its seed, its rows, and where those rows come from."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from walt_t5x.engine import provenance
from walt_t5x.engine.builtin import datasets
from walt_t5x.engine.builtin.base_model import BaseModel
from walt_t5x.engine.builtin.data_iterator import ShardedIterator
from walt_t5x.engine.builtin.datasets import DatasetConfig
from walt_t5x.engine.builtin.partitioner import DataLayout, PjitPartitioner


def drawn_seed(model_dir: str) -> int:
  """A random seed, the same on every host and after every restart of the run."""
  file = epath.Path(model_dir) / "random_seed.json"
  seed = int(np.random.SeedSequence().generate_state(1)[0] >> 1)
  if jax.process_index() == 0:
    if file.exists():
      seed = int(json.loads(file.read_text())["random_seed"])
    else:
      file.write_text(json.dumps({"random_seed": seed}) + "\n")
  if jax.process_count() > 1:
    seed = int(multihost_utils.broadcast_one_to_all(np.int32(seed)))
  logging.info("Random seed %d, drawn for this run.", seed)
  return seed


def record_provenance(model_dir: str, cfg: DatasetConfig) -> None:
  """Writes or compares the `walt_provenance` of the task or mixture, if it has one (see `engine.provenance`)."""
  given = getattr(datasets.mixture_or_task(cfg), "walt_provenance", None)
  if given is not None:
    provenance.record(model_dir, given, write=jax.process_index() == 0)


def rows(
  cfg: DatasetConfig,
  model: BaseModel,
  *,
  layout: DataLayout,
  seed: int,
  get_dataset_fn: Callable[..., Any],
  partitioner: PjitPartitioner,
) -> ShardedIterator:
  """This host's training rows, endless; a config without a seed takes the run's."""
  if cfg.seed is None:
    cfg = dataclasses.replace(cfg, seed=seed)
  rows = get_dataset_fn(cfg, layout.shard_id, layout.num_shards, model.FEATURE_CONVERTER_CLS)
  return ShardedIterator(rows, sharding=partitioner.data_sharding, batch_size=layout.batch_size)


def eval_batches(rows: Any, partitioner: PjitPartitioner) -> Iterator[Mapping[str, jax.Array]]:
  """One pass over an evaluation set, on the mesh."""
  for batch in rows.as_numpy_iterator():
    yield {
      k: jax.make_array_from_process_local_data(partitioner.data_sharding, np.asarray(v))
      for k, v in batch.items()
    }
