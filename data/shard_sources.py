"""SeqIO sources of the serialized records of a cache: which files are read, and in which order."""

import functools
from collections.abc import Sequence
from typing import Any

import seqio
import tensorflow as tf
from seqio import utils

from data import schema
from walt_t5x.files import storage


def cached_splits(cache_dir: str) -> list[str]:
  """The splits of a cached task."""
  names = set(storage.names(cache_dir))
  return [split for split in schema.SPLITS if f"info.{split}.json" in names]


def clips_per_video(cache_dir: str, split: str) -> int:
  """Number of clips of each video, `--clips_per_video` of preprocessing."""
  info = utils.get_cached_info_path(cache_dir, split)
  return storage.read_json(info).get("clips_per_video", 1) if storage.exists(info) else 1


def raw_shards(
  cache_dir: str, split: str, *, shuffle_buffer_size: int | None = None
) -> seqio.DataSource:
  """Source of the serialized records of a cached task, scalar strings, which the task's preprocessors parse.

  SeqIO's own cache reader parses every feature of each record separately before the preprocessors run. Examples here
  need four or five of fifteen features and are parsed in blocks, which takes a third of the time
  (`benchmarks/input_pipeline.py`). Sharding over hosts and shuffling of files are SeqIO's.

  Args:
    cache_dir: folder of the task.
    split: 'train' or 'validation'.
    shuffle_buffer_size: see `Passes`.

  Raises:
    FileNotFoundError: if the split or a shard is missing.
  """
  if split not in (found := cached_splits(cache_dir)):
    raise FileNotFoundError(
      f"{cache_dir} has no split {split!r}, only {found}; preprocess with --validation_percent or --validation_list"
    )
  shards = storage.read_json(utils.get_cached_info_path(cache_dir, split))["num_shards"]
  examples = storage.read_json(utils.get_cached_stats_path(cache_dir, split))["examples"]
  clips = clips_per_video(cache_dir, split)
  prefixes = ["", *(f"clip{clip:02d}." for clip in range(1, clips))]
  names = {
    f"{split}.tfrecord-{prefix}{i:05d}-of-{shards:05d}"
    for prefix in prefixes
    for i in range(shards)
  }
  if missing := sorted(names.difference(storage.names(cache_dir))):
    # SeqIO reads the files that match and would not notice missing ones.
    raise FileNotFoundError(
      f"{cache_dir} has no {missing[0]}: {len(missing)} of the {len(names)} shards of its info.{split}.json are "
      "missing; copy them again, or run `python -m beam_jobs.preprocess` as before (`python -m beam_jobs.verify` "
      "checks all)"
    )
  start = utils.get_cached_tfrecord_prefix(cache_dir, split) + "-"

  def source(*beginnings: str) -> seqio.FileDataSource:
    return seqio.FileDataSource(
      read_file_fn=tf.data.TFRecordDataset,
      split_to_filepattern={split: [f"{start}{name}*-of-*{shards}" for name in beginnings]},
      num_input_examples={split: examples},
    )

  if clips == 1:
    return source("")
  first = source("[0-9]", "replay")
  return Passes([first, *map(source, prefixes[1:])], split, shuffle_buffer_size)


class Passes(seqio.DataSource):
  """Clip k of every video before clip k + 1 of any: an epoch visits each video once per pass.

  SeqIO's own shuffle comes after all passes and would mix them, so records are shuffled here, within each pass.

  Args:
    sources: the clips of each pass.
    split: the only split.
    shuffle_buffer_size: number of records in the shuffle buffer.
  """

  def __init__(
    self,
    sources: Sequence[seqio.FileDataSource],
    split: str,
    shuffle_buffer_size: int | None,
  ):
    super().__init__(splits=[split], num_input_examples=None)
    self._sources, self._shuffle_buffer_size = sources, shuffle_buffer_size

  @property
  def supports_arbitrary_sharding(self) -> bool:
    """Files are the smallest share of a host."""
    return False

  def list_shards(self, split: str) -> Sequence[str]:
    """Files of the pass that has the fewest: if they suffice for the hosts, those of each pass do."""
    return min((source.list_shards(split) for source in self._sources), key=len)

  def get_dataset(
    self,
    split: str = "train",
    shuffle: bool = True,
    seed: int | None = None,
    shard_info: seqio.ShardInfo | None = None,
    **unused: Any,
  ) -> tf.data.Dataset:
    """Records of all passes; with `shuffle`, files and records are in another order in every pass and epoch."""
    del unused
    passes = []
    for number, source in enumerate(self._sources):
      mine = None if seed is None else seed + number
      records = source.get_dataset(split, shuffle=shuffle, seed=mine, shard_info=shard_info)
      if shuffle and self._shuffle_buffer_size:
        records = records.shuffle(self._shuffle_buffer_size, seed=mine)
      passes.append(records)
    return functools.reduce(lambda before, after: before.concatenate(after), passes)
