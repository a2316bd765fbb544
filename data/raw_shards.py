"""SeqIO source of the serialized records of a cached task, which the task's preprocessors parse.

SeqIO's own cache reader parses every feature of each record separately before the preprocessors run. Examples here need
four or five of fifteen features and are parsed in blocks, which takes a third of the time
(`benchmarks/input_pipeline.py`). Order, sharding over hosts and shuffling of files are SeqIO's.
"""

import json
import os

import seqio
import tensorflow as tf
from seqio import utils


def raw_shards(
  cache_dir: str, split: str, *, file_shuffle_buffer_size: int | None = None
) -> seqio.FileDataSource:
  """Source of scalar strings, one per record.

  Args:
    cache_dir: folder of the cached task.
    split: for example 'train'.
    file_shuffle_buffer_size: number of files in the shuffle buffer; None for all.

  Raises:
    FileNotFoundError: if a shard is missing.
  """
  with tf.io.gfile.GFile(utils.get_cached_info_path(cache_dir, split)) as file:
    shards = json.load(file)["num_shards"]
  with tf.io.gfile.GFile(utils.get_cached_stats_path(cache_dir, split)) as file:
    examples = json.load(file)["examples"]
  prefix = utils.get_cached_tfrecord_prefix(cache_dir, split)
  found = {os.path.basename(path) for path in tf.io.gfile.glob(f"{prefix}-*-of-*{shards}")}
  names = [f"{split}.tfrecord-{i:05d}-of-{shards:05d}" for i in range(shards)]
  if missing := [name for name in names if name not in found]:
    # SeqIO reads the files that match and would not notice missing ones.
    raise FileNotFoundError(
      f"{cache_dir} has no {missing[0]}: {len(missing)} of the {shards} shards of its info.{split}.json are missing; "
      "copy them again, or run `python -m beam_jobs.preprocess` as before (`python -m beam_jobs.verify` checks all)"
    )
  return seqio.FileDataSource(
    read_file_fn=tf.data.TFRecordDataset,
    split_to_filepattern={split: f"{prefix}-*-of-*{shards}"},
    num_input_examples={split: examples},
    file_shuffle_buffer_size=file_shuffle_buffer_size,
  )
