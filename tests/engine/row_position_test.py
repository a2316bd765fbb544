"""The position among the rows: what a restored iterator continues with, and what is damaged is named."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from tests.engine import runs
from walt_t5x.engine.builtin.data_iterator import ShardedIterator, eval_batches
from walt_t5x.files.damage import Damaged


@pytest.mark.parametrize("buffered", [False, True])
def test_a_position_of_another_batch_size_is_not_continued_with_its_batches(buffered, tmp_path):
  def batches(size):
    def make():
      rows = (
        tf.data.Dataset.range(48).map(lambda n: {"n": n[None]}).batch(size, drop_remainder=True)
      )
      return (rows.shuffle(4, seed=0) if buffered else rows).repeat()

    sharding = runs.one_device().data_sharding
    return ShardedIterator(make, sharding=sharding, batch_size=size)

  before = batches(4)
  for _ in range(3):
    next(before)
  before.save(str(tmp_path / "position"))
  same, other, fresh = batches(4), batches(2), batches(2)
  assert same.restore(str(tmp_path / "position"), position=3)
  for _ in range(20):
    np.testing.assert_array_equal(next(same)["n"], next(before)["n"])
  other.restore(str(tmp_path / "position"), position=3)
  expected = [np.asarray(next(fresh)["n"]).shape for _ in range(30)]
  assert [np.asarray(next(other)["n"]).shape for _ in range(30)] == expected


@pytest.mark.parametrize("message, read", [("Incompatible shapes at 0", True), ("other", False)])
def test_batches_of_another_shape_are_read_again_whatever_the_error_is(message, read):
  rows = tf.data.Dataset.range(8).map(lambda n: {"n": n[None]}).batch(2, True).repeat()

  def batches():
    return ShardedIterator(lambda: rows, sharding=runs.one_device().data_sharding, batch_size=2)

  class Restored:
    def __next__(self):
      raise tf.errors.InvalidArgumentError(None, None, message)

  other, fresh = batches(), batches()
  next(other), next(fresh)
  other._iterator = Restored()
  if read:
    np.testing.assert_array_equal(next(other)["n"], next(fresh)["n"])
  else:
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
      next(other)


def test_the_position_before_the_first_batch_is_the_beginning(tmp_path):
  """Whatever state was saved for it: tf.data does not rewind every pipeline to such a state."""

  def batches():
    rows = tf.data.Dataset.range(8).map(lambda n: {"n": n[None]}).batch(2, True).repeat()
    return ShardedIterator(lambda: rows, sharding=runs.one_device().data_sharding, batch_size=2)

  advanced, fresh = batches(), batches()
  for _ in range(3):
    next(advanced)
  advanced.save(str(tmp_path / "position"))
  assert advanced.restore(str(tmp_path / "position"), position=0)
  for _ in range(6):
    np.testing.assert_array_equal(next(advanced)["n"], next(fresh)["n"])


def test_a_damaged_record_and_a_damaged_position_are_named(tmp_path, caplog):
  records = tmp_path / "train.tfrecord-00000-of-00001"
  with tf.io.TFRecordWriter(str(records)) as writer:
    for _ in range(8):
      writer.write(bytes(40))

  def batches():
    rows = tf.data.TFRecordDataset(str(records)).map(lambda r: {"n": tf.io.decode_raw(r, "uint8")})
    fixed = rows.map(lambda row: {"n": tf.ensure_shape(row["n"], [40])}).batch(2, True).repeat()
    sharding = runs.one_device().data_sharding
    return ShardedIterator(lambda: fixed, sharding=sharding, batch_size=2, folders=["caches/x"])

  def flip(file, place):
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)

  before = batches()
  next(before)
  before.save(str(tmp_path / "position"))
  (data,) = tmp_path.glob("position.data-*")
  flip(data, data.stat().st_size // 2)
  with caplog.at_level("WARNING"):
    again = batches()
    assert not again.restore(str(tmp_path / "position"), position=1)
  assert f"The position {tmp_path / 'position'} is damaged" in caplog.text
  np.testing.assert_array_equal(next(again)["n"], np.zeros((2, 40)))
  flip(records, -20)
  named = r"training data caches/x is damaged.*beam_jobs\.verify"
  with pytest.raises(Damaged, match=named):
    list(itertools.islice(batches(), 4))
  with pytest.raises(Damaged, match="evaluation data x is damaged"):
    rows = tf.data.TFRecordDataset(str(records)).map(lambda r: tf.io.decode_raw(r, "uint8"))
    list(eval_batches(rows.batch(2), runs.one_device().data_sharding, name="x"))
