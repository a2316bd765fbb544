"""Takedown: record ids that tasks skip, without preprocessing again."""

import re
from collections.abc import Sequence

import tensorflow as tf

from data import schema
from walt_t5x.files import storage

_RECORD_ID = re.compile(r"[0-9a-f]{64}")


def read(path: str) -> list[str]:
  """Sorted distinct record ids of a deny list.

  Raises:
    FileNotFoundError: if the file does not exist.
    ValueError: if a line is not a record id, with its line number.
  """
  if not storage.exists(path):
    raise FileNotFoundError(f"RowFormat.deny_list: no file at {path}")
  ids = set()
  with storage.open_text(path) as lines:
    for number, line in enumerate(lines, start=1):
      line = line.strip()
      if not line or line.startswith("#"):
        continue
      if not _RECORD_ID.fullmatch(line):
        raise ValueError(
          f"{path}:{number}: got {line[:80]!r}, expected a record id (64 hex digits; `id` of a record, as "
          "`python -m walt_t5x.inspect_data` shows it)"
        )
      ids.add(line)
  return sorted(ids)


def without(dataset: tf.data.Dataset, ids: Sequence[str]) -> tf.data.Dataset:
  """The records whose id is not on the list; one hash table lookup per record."""
  table = tf.lookup.StaticHashTable(
    tf.lookup.KeyValueTensorInitializer(tf.constant(ids), tf.ones(len(ids), tf.int64)),
    default_value=0,
  )
  return dataset.filter(
    lambda record: table.lookup(schema.parse_records(record[None], ["id"])["id"][0]) == 0
  )
