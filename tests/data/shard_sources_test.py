"""The order in which the records of a cache are read, if videos have several clips."""

import dataclasses
import itertools
import json
import uuid

import pytest
import seqio

from data import schema, shard_sources, tasks, tfrecord
from tests.data.toy_cache import cache_dirs, rows_of, toy_provenance, toy_record, write_task
from walt_t5x.files import storage


def _clips_cache(folder, *, videos, clips, shards):
  """A cache of several clips per video; the label of a record is its video, its uri says which clip it is."""
  task = folder / "toy_videos"
  records = [toy_record("video", i) for i in range(videos)]
  write_task(task, records, toy_provenance(records[0].latents))
  (task / "train.tfrecord-00000-of-00001").unlink()
  for clip in range(clips):
    prefix = f"clip{clip:02d}." if clip else ""
    for shard in range(shards):
      mine = [dataclasses.replace(r, uri=f"{clip}") for r in records[shard::shards]]
      path = task / f"train.tfrecord-{prefix}{shard:05d}-of-{shards:05d}"
      path.write_bytes(b"".join(tfrecord.frame(schema.encode(record)) for record in mine))
  info = json.loads((task / "info.train.json").read_text())
  info |= {"num_shards": shards, "clips_per_video": clips}
  (task / "info.train.json").write_text(json.dumps(info))
  (task / "stats.train.json").write_text(json.dumps({"examples": videos * clips}))


@pytest.mark.parametrize("hosts", [1, 2])
@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_visits_each_video_once_per_pass(tmp_path, hosts, shuffle):
  videos, clips, epochs = 37, 3, 2
  _clips_cache(tmp_path, videos=videos, clips=clips, shards=4)
  row = tasks.RowFormat(text_length=0, label=True)
  task = tasks.video_task(task="toy", latents="latents/3x4x4", row=row)
  assert len(list(tmp_path.glob("*/*.tfrecord-*"))) == 12
  with cache_dirs(str(tmp_path)):
    labels = [
      [
        int(row["label"][0])
        for row in rows_of(
          task,
          shuffle=shuffle,
          num_epochs=epochs,
          try_in_mem_cache=True,
          shard_info=seqio.ShardInfo(index=host, num_shards=hosts),
        )
      ]
      for host in range(hosts)
    ]
  mine = [len(set(host)) for host in labels]
  assert sum(mine) == videos
  passes = [
    [host[k * count : (k + 1) * count] for host, count in zip(labels, mine)]
    for k in range(clips * epochs)
  ]
  for found in passes:
    assert sorted(itertools.chain(*found)) == list(range(videos))
  # Another order in every pass and epoch, or the order of the files.
  assert len({str(found) for found in passes}) == (len(passes) if shuffle else 1)


def test_clips_of_one_pass_are_of_one_number(tmp_path):
  _clips_cache(tmp_path, videos=20, clips=12, shards=2)
  source = shard_sources.raw_shards(str(tmp_path / "toy_videos"), "train", shuffle_buffer_size=9)
  records = [schema.decode(r) for r in source.get_dataset("train", seed=1).as_numpy_iterator()]
  assert [int(record.uri) for record in records] == sorted([*range(12)] * 20)
  (tmp_path / "toy_videos/train.tfrecord-clip11.00001-of-00002").unlink()
  with pytest.raises(FileNotFoundError, match=r"no train\.tfrecord-clip11\.00001.*: 1 of the 24"):
    shard_sources.raw_shards(str(tmp_path / "toy_videos"), "train")


def test_hosts_share_every_pass_if_a_replay_added_a_file_to_one(tmp_path):
  _clips_cache(tmp_path, videos=20, clips=2, shards=2)
  # The first pass has enough files for three hosts.
  first = tmp_path / "toy_videos/train.tfrecord-00000-of-00002"
  replayed = first.with_name("train.tfrecord-replay01.00000-of-00002")
  first.rename(replayed)
  first.write_bytes(b"")
  row = tasks.RowFormat(text_length=0, label=True)
  task = tasks.video_task(task="toy", latents="latents/3x4x4", row=row)
  with cache_dirs(str(tmp_path)):
    hosts = [seqio.ShardInfo(index=i, num_shards=3) for i in range(3)]
    found = [int(r["label"][0]) for host in hosts for r in rows_of(task, shard_info=host)]
  assert sorted(found) == sorted([*range(20)] * 2)


@pytest.fixture
def at_an_address(tmp_path):
  """A cache on the local disk, and the same cache at an address."""
  _clips_cache(tmp_path, videos=29, clips=2, shards=3)
  local, address = tmp_path / "toy_videos", f"memory://{uuid.uuid4().hex}/toy_videos"
  for file in local.iterdir():
    storage.write(storage.join(address, file.name), file.read_bytes())
  return str(local), address


# A record is longer than the smallest block.
@pytest.mark.parametrize("block", [64, 5000, 1 << 20])
def test_records_at_an_address_are_those_of_the_disk_in_the_same_order(
  at_an_address, block, monkeypatch
):
  monkeypatch.setattr(shard_sources, "BLOCK_BYTES", block)
  both = [
    [
      *shard_sources.raw_shards(folder, "train", shuffle_buffer_size=5)
      .get_dataset("train", seed=3)
      .as_numpy_iterator()
    ]
    for folder in at_an_address
  ]
  assert len(both[0]) == 58 and both[0] == both[1]


def test_a_position_at_an_address_can_be_saved(at_an_address, tmp_path, monkeypatch):
  import tensorflow as tf

  monkeypatch.setattr(shard_sources, "BLOCK_BYTES", 2000)
  source = shard_sources.raw_shards(at_an_address[1], "train")
  undisturbed = iter(source.get_dataset("train", seed=3))
  for _ in range(23):
    next(undisturbed)
  saved = tf.train.Checkpoint(ds=undisturbed).write(str(tmp_path / "position"))
  # Not of the same dataset: the second iterator of one shuffles otherwise.
  resumed = iter(source.get_dataset("train", seed=3))
  tf.train.Checkpoint(ds=resumed).read(saved).assert_consumed()
  left = [record.numpy() for record in undisturbed]
  assert left == [record.numpy() for record in resumed] and len(left) == 58 - 23


@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_a_damaged_shard_at_an_address_is_named(at_an_address, damage):
  import tensorflow as tf

  path = storage.join(at_an_address[1], "train.tfrecord-00001-of-00003")
  content = bytearray(storage.read(path))
  content[len(content) // 2] ^= 1
  storage.write(path, bytes(content if damage == "flipped" else content[:-3]))
  records = shard_sources.raw_shards(at_an_address[1], "train").get_dataset("train")
  with pytest.raises(tf.errors.InvalidArgumentError, match=r"CorruptRecord: .*00001-of-00003"):
    list(records)


def test_a_small_cache_at_an_address_is_read_once(at_an_address, monkeypatch):
  reads = []
  read_range = storage.read_range

  def counted(path, begin, end):
    if "tfrecord" in path:
      reads.append((path, begin))
    return read_range(path, begin, end)

  monkeypatch.setattr(storage, "read_range", counted)
  records = shard_sources.raw_shards(at_an_address[1], "train").get_dataset("train").repeat(3)
  assert len(list(records)) == 3 * 58
  assert len(reads) == len(set(reads)) == 6
