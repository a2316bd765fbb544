"""SeqIO sources of the serialized records of a cache: which files are read, and in which order.

TensorFlow reads the shards on local disks. Those at addresses are read through the file layer, block by block.
"""

import fnmatch
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
from seqio import utils

from data import schema, tfrecord
from walt_t5x.files import storage

# Of one request to an object store. A saved position contains the blocks that are being read.
BLOCK_BYTES = 1 << 20
# The newest ones of a process stay in memory, so that a small cache is read once and not in every epoch.
KEPT_BLOCKS = 64


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
  present = storage.names(cache_dir)
  if missing := sorted(names.difference(present)):
    # SeqIO reads the files that match and would not notice missing ones.
    raise FileNotFoundError(
      f"{cache_dir} has no {missing[0]}: {len(missing)} of the {len(names)} shards of its info.{split}.json are "
      "missing; copy them again, or run `python -m beam_jobs.preprocess` as before (`python -m beam_jobs.verify` "
      "checks all)"
    )

  def source(*beginnings: str) -> seqio.FileDataSource:
    patterns = [f"{split}.tfrecord-{name}*-of-*{shards}" for name in beginnings]
    files = [name for name in present if any(fnmatch.fnmatchcase(name, p) for p in patterns)]
    local = storage.is_local(cache_dir)
    return (_Shards if local else _RemoteShards)(
      read_file_fn=tf.data.TFRecordDataset if local else remote_records,
      split_to_filepattern={split: [storage.join(cache_dir, name) for name in sorted(files)]},
      num_input_examples={split: examples},
    )

  if clips == 1:
    return source("")
  first = source("[0-9]", "replay")
  return Passes([first, *map(source, prefixes[1:])], split, shuffle_buffer_size)


class _Shards(seqio.FileDataSource):
  """A source whose files are listed already, without patterns."""

  def list_shards(self, split: str) -> Sequence[str]:
    return list(self._split_to_filepattern[split])


class _RemoteShards(_Shards):
  """Files at addresses, in the order in which SeqIO reads local ones; each file reads ahead."""

  def get_dataset(
    self,
    split: str = "train",
    shuffle: bool = True,
    seed: int | None = None,
    shard_info: seqio.ShardInfo | None = None,
    **unused: Any,
  ) -> tf.data.Dataset:
    """Records of all files, 16 of each in turn."""
    del unused
    files = self.list_shards(split)
    if shard_info and len(files) < shard_info.num_shards:
      raise ValueError(f"got {len(files)} files for {shard_info.num_shards} shares of the data")
    found = tf.data.Dataset.from_tensor_slices(np.array(files, dtype=str))
    if shard_info:
      found = found.shard(shard_info.num_shards, shard_info.index)
    if shuffle:
      found = found.shuffle(len(files), seed=seed)
    return found.interleave(
      self._reader, cycle_length=self._cycle_length, block_length=self._block_length
    )


def remote_records(path: tf.Tensor) -> tf.data.Dataset:
  """Records of a TFRecord file at an address, in order, as `tf.data.TFRecordDataset` has them for local files.

  The position of an iterator is an offset, so that it can be saved.
  """

  def read(path: bytes, start: np.int64) -> tuple[np.ndarray, np.int64]:
    records, end = _block(path.decode(), int(start))
    return np.array(records, dtype=object), np.int64(end)

  def step(start: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    # Not stateful: the same block every time. TensorFlow saves no iterator over functions with a state.
    records, end = tf.numpy_function(read, [path, start], (tf.string, tf.int64), stateful=False)
    return tf.ensure_shape(end, []), tf.ensure_shape(records, [None])

  blocks = tf.data.Dataset.counter().scan(tf.constant(0, tf.int64), step)
  blocks = blocks.take_while(lambda records: tf.size(records) > 0).prefetch(1)
  return blocks.flat_map(tf.data.Dataset.from_tensor_slices)


@functools.lru_cache(maxsize=4096)
def _size(path: str) -> int:
  return storage.size(path)


@functools.lru_cache(maxsize=KEPT_BLOCKS)
def _block(path: str, start: int) -> tuple[list[bytes], int]:
  """The complete records in a block of a file from `start`, and where they end; no records at the end of the file."""
  end = _size(path)
  wanted = BLOCK_BYTES
  while start < end:
    content = storage.read_range(path, start, min(end, start + wanted))
    records, length = tfrecord.complete_records(content, name=path)
    if not records and start + wanted < end:
      wanted *= 2
      continue
    if start + len(content) == end and length < len(content):
      raise tfrecord.CorruptRecord(f"{path}: ends inside a record")
    return records, start + length
  return [], start


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
