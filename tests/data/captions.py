"""A record's caption, read inside tf.data; training reads captions packed (`schema.packed_captions`)."""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from data import packed_text


def parse_caption(example: Mapping[str, Any], *, index: int, embedding_dim: int) -> dict[str, Any]:
  """One caption of a record: its `caption`, `text_ids` (n,) and float32 `text_embedding` (n, E).

  Args:
    example: features of one record that seqio has read, tensors.
    index: which caption, in [0, k).
    embedding_dim: E.
  """
  end = tf.cumsum(example["caption_lengths"])[index]
  start = end - example["caption_lengths"][index]
  size, blocks = packed_text.token_bytes(embedding_dim), packed_text.blocks_of(embedding_dim)
  tokens = tf.reshape(tf.io.decode_raw(example["text_embedding"], tf.uint8), (-1, size))[start:end]
  step = tf.gather(packed_text.steps(), tf.cast(tokens[:, 4 : 4 + blocks], tf.int32))
  step *= tf.bitcast(tokens[:, :4], tf.float32)[:, None]
  values = tf.cast(tf.bitcast(tokens[:, 4 + blocks :], tf.int8), tf.float32)
  return {
    "caption": example["captions"][index],
    "text_ids": example["text_ids"][start:end],
    "text_embedding": values * tf.repeat(step, packed_text.BLOCK, axis=1)[:, :embedding_dim],
  }
