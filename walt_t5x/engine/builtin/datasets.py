"""SeqIO datasets, sharded over hosts."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging

from walt_t5x.engine.builtin import seeds


@dataclasses.dataclass
class DatasetConfig:
  """The data to read, in SeqIO's terms.

  Args:
    mixture_or_task_name: a registered name, or a `seqio.Task` or `seqio.Mixture`.
    task_feature_lengths: feature -> length, for the task and the feature converter.
    split: for example 'train'.
    batch_size: size of the global batch, over all hosts.
    shuffle, seed: whether to shuffle files and examples, and the seed; None takes the run's seed.
    use_cached: read the cached task.
    pack, use_custom_packing_ops: passed to the feature converter.
    module: a module to import first that registers the task.
    use_memory_cache: keep evaluation batches in memory.
    trim_output_features: trim features to their lengths.
    runtime_preprocessors, num_prefetch_threads, num_workers: T5X with AirIO only, must be None or 0.
  """

  mixture_or_task_name: Any
  task_feature_lengths: Mapping[str, int]
  split: str
  batch_size: int
  shuffle: bool
  seed: int | None
  use_cached: bool = False
  pack: bool = False
  use_custom_packing_ops: bool = False
  module: str | None = None
  use_memory_cache: bool = True
  trim_output_features: bool = True
  runtime_preprocessors: Sequence[Any] | None = None
  num_prefetch_threads: int | None = None
  num_workers: int | None = 0

  def __post_init__(self) -> None:
    if self.runtime_preprocessors or self.num_prefetch_threads or self.num_workers:
      raise ValueError(
        "DatasetConfig: runtime_preprocessors, num_prefetch_threads and num_workers are for AirIO under T5X; the "
        "built-in engine reads SeqIO only. Remove the bindings."
      )
    if self.batch_size < 1:
      raise ValueError(f"DatasetConfig.batch_size: got {self.batch_size}, expected at least 1.")


def mixture_or_task(cfg: DatasetConfig) -> Any:
  """The SeqIO object that a config refers to."""
  import seqio

  if cfg.module:
    importlib.import_module(cfg.module)
  if isinstance(cfg.mixture_or_task_name, seqio.DatasetProviderBase):
    return cfg.mixture_or_task_name
  return seqio.get_mixture_or_task(cfg.mixture_or_task_name)


def get_dataset(
  cfg: DatasetConfig,
  shard_id: int,
  num_shards: int,
  feature_converter_cls: Callable[..., Any],
  num_epochs: int | None = None,
  continue_from_last_checkpoint: bool = False,
) -> Any:
  """Batches of one host's share of the data, as a `tf.data.Dataset`.

  Small cached tasks are read from their files like large ones: `seqio.get_dataset` would load a task of less than
  10,000 examples into RAM, regardless of their size.

  Args:
    cfg: the data to read.
    shard_id, num_shards: this host's share, in [0, num_shards), and the number of shares.
    feature_converter_cls: the model's converter class. If it has `batches(dataset, lengths, batch_size=)`, that
      method makes the batches.
    num_epochs: number of epochs; None for endless.
    continue_from_last_checkpoint: T5X's deterministic pipelines only, must be False.

  Raises:
    ValueError: the batch size is not divisible by the number of shares, or an option is not supported.
  """
  import seqio

  if continue_from_last_checkpoint:
    raise ValueError(
      "get_dataset: continue_from_last_checkpoint is not supported; set SaveCheckpointConfig.save_dataset=True."
    )
  size = _share(cfg.batch_size, num_shards)
  # T5X passes on a config without a seed; the built-in engine sets its own.
  if cfg.seed is None and cfg.shuffle:
    cfg = dataclasses.replace(cfg, seed=seeds.fresh_seed())
  source = mixture_or_task(cfg)
  shard = seqio.ShardInfo(index=shard_id, num_shards=num_shards)
  logging.debug("Reading %s of %s: %s, seed %s.", cfg.split, source.name, shard, cfg.seed)
  dataset = source.get_dataset(
    sequence_length=cfg.task_feature_lengths,
    split=cfg.split,
    use_cached=cfg.use_cached,
    shuffle=cfg.shuffle,
    seed=cfg.seed,
    shard_info=shard,
    num_epochs=num_epochs,
    trim_output_features=cfg.trim_output_features,
    try_in_mem_cache=False,
  )
  converter = feature_converter_cls(
    pack=cfg.pack, use_custom_packing_ops=cfg.use_custom_packing_ops
  )
  if hasattr(converter, "batches"):
    return converter.batches(dataset, cfg.task_feature_lengths, batch_size=size)
  dataset = converter(dataset, task_feature_lengths=cfg.task_feature_lengths)
  # tf.data prefetches the last step of a pipeline automatically; T5X relies on that too, and positions can only be
  # exchanged between equal pipelines.
  return dataset.batch(size, drop_remainder=True)


def _share(batch_size: int, num_shards: int) -> int:
  if batch_size % num_shards:
    raise ValueError(
      f"DatasetConfig.batch_size: got {batch_size}, expected a multiple of the {num_shards} data shards."
    )
  return batch_size // num_shards


def _has_examples(task: Any, cfg: DatasetConfig) -> bool:
  """Whether a task has examples of the split; True if that is not known without reading it."""
  if cfg.split not in task.splits:
    return False
  return not cfg.use_cached or task.get_cached_stats(cfg.split).get("examples", 1) > 0


def get_training_eval_datasets(
  cfg: DatasetConfig,
  shard_id: int,
  num_shards: int,
  eval_steps: int,
  feature_converter_cls: Callable[..., Any],
) -> dict[str, Any]:
  """`eval_steps` batches for each task of a mixture that has the split, and for the mixture itself if one has.

  Examples are split over hosts after conversion, so every host gets the same number of batches for any number of files.
  """
  import seqio

  source = mixture_or_task(cfg)
  size = _share(cfg.batch_size, num_shards)

  def batches(provider: Any) -> Any:
    one = dataclasses.replace(cfg, mixture_or_task_name=provider, batch_size=1)
    rows = get_dataset(one, 0, 1, feature_converter_cls, num_epochs=eval_steps * cfg.batch_size)
    rows = rows.unbatch().shard(num_shards, shard_id)
    rows = rows.batch(size, drop_remainder=True).take(eval_steps)
    return rows.cache() if cfg.use_memory_cache else rows

  tasks = seqio.get_subtasks(source)
  empty = [task for task in tasks if not _has_examples(task, cfg)]
  if empty:
    names = ", ".join(task.name for task in empty)
    logging.warning("%s without examples of the split %r: not evaluated.", names, cfg.split)
  datasets = {task.name: batches(task) for task in tasks if task not in empty}
  # A mixture leaves out a task without the split, but has no examples if one is empty.
  mixed = not any(cfg.split in task.splits for task in empty)
  if isinstance(source, seqio.Mixture) and datasets and mixed:
    datasets[source.name] = batches(source)
  return datasets
