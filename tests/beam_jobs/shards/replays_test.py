"""Replays of dead letters: what they take, and the account after them."""

import json

import pytest

from beam_jobs.shards import quality, replays
from beam_jobs.shards.shard_files import LedgerError
from data import provenance
from tests.beam_jobs.shards import examples


def test_a_replay_takes_the_given_reasons_and_no_invalid_row():
  some, every = examples.replay(reasons=("missing", "bad_uri")), examples.replay(reasons=None)
  dead = {"missing": 2, "x": 3, "bad_uri": 1}
  assert some.taken(dead) == {"missing": 2} and every.taken(dead) == {"missing": 2, "x": 3}
  history = [examples.replay(1, ("missing",)), examples.replay(2, ("x",))]
  for reason, written_by, current in (
    ("missing", 0, False),
    ("missing", 1, True),
    ("x", 0, False),
    ("x", 1, False),
    ("x", 2, True),
    ("y", 0, True),
  ):
    assert replays.is_current(reason, written_by, history) == current, (reason, written_by)


def test_replays_are_read_in_order_and_only_complete(tmp_path):
  assert replays.read_all(str(tmp_path), "toy") == []
  replays.reject_replayed(str(tmp_path), "toy")
  first, second = examples.replay(1, None), examples.replay(2, ("x",), finished=False)
  for replay in (second, first):
    replay.write(str(tmp_path), "toy")
  examples.replay(1).write(str(tmp_path), "toy_too")
  assert replays.read_all(str(tmp_path), "toy") == [first, second]
  with pytest.raises(ValueError, match=r"holds replays \['01', '02'\]"):
    replays.reject_replayed(str(tmp_path), "toy")
  third = examples.replay(3)
  third.write(str(tmp_path), "toy")
  with pytest.raises(
    LedgerError, match=r"got the replays \[1, 2, 3\] .* all but the last finished"
  ):
    replays.read_all(str(tmp_path), "toy")
  (tmp_path / "toy.replay02.json").unlink()
  with pytest.raises(LedgerError, match=r"got the replays \[1, 3\]"):
    replays.read_all(str(tmp_path), "toy")


def test_a_hundredth_replay_comes_after_the_others(tmp_path):
  for number in range(1, 102):
    examples.replay(number).write(str(tmp_path), "toy")
  found = replays.read_all(str(tmp_path), "toy")
  assert [replay.number for replay in found] == list(range(1, 102))


def test_everything_that_decides_a_replay_is_in_its_digest():
  kept = examples.replay()
  others = [
    examples.replay(2),
    examples.replay(reasons=None),
    replays.Replay(number=1, reasons=("missing",), buckets={"train": 2}, settings=examples.NOTED),
    replays.Replay(number=1, reasons=("missing",), buckets={"train": 1}, settings={}),
  ]
  assert len({replay.digest for replay in (kept, *others)}) == 5
  assert examples.replay(finished=False).digest == kept.digest
  assert not others[-1].finished, "a replay that has just started"


def test_the_account_after_replays_has_each_row_once(tmp_path):
  examples.job(tmp_path)
  examples.finalize(tmp_path)
  first, second = examples.replay(1), examples.replay(2, ("y",), finished=False)
  examples.replayed(tmp_path, first, dead=["y"])
  examples.replayed(tmp_path, second, [examples.record(5)], index=1)
  summary = replays.finalize(str(tmp_path), "toy", [first, second])
  # The job's dead letter of the training split fails for another reason, and is then written.
  train = summary.splits["toy_videos", "train"]
  assert (train.rows, train.written, train.dead) == (5, 4, {})
  assert train.captions == 7 and train.psnr[examples.VIDEOS] == (4, 87.0)
  assert summary.splits["toy_videos", "validation"].dead == {"x": 1}
  assert summary.all.rows == 8 and summary.completed == ("toy_images", "toy_videos")
  assert replays.read_all(str(tmp_path), "toy")[-1].finished
  stats = json.loads((tmp_path / "toy_videos" / "stats.train.json").read_text())
  assert (stats["examples"], stats["rows"], stats["dead"]) == (4, 5, 0)
  alone = replays.account(str(tmp_path), "toy", [first, second], folder="toy_images")
  assert set(alone.splits) == {("toy_images", "train")} and alone.all.rows == 1
  found = replays.dead_ledgers(str(tmp_path), "toy", [first, second])
  names = [(path.rpartition("/")[2], number) for path, number, _ in found]
  assert names == [
    ("train.tfrecord-00000-of-00002.dead.jsonl", 0),
    ("validation.tfrecord-00000-of-00001.dead.jsonl", 0),
    ("train.tfrecord-replay01.00000-of-00002.dead.jsonl", 1),
  ]
  taken = [
    json.loads(line)
    for source in found
    for _, line in replays._taken_of(source, replay=examples.replay(3, None), history=[first])
  ]
  # The job's 'missing' is gone.
  assert taken == [{"uri": "d0"}] * 2
  assert list(replays._taken_of(found[0], replay=examples.replay(3, ("y",)), history=[])) == []
  # A folder without COMPLETED gets it back; an incomplete folder does not.
  (tmp_path / "toy_images" / provenance.FILE_NAME).unlink()
  for folder in ("toy_images", "toy_videos"):
    (tmp_path / folder / "COMPLETED").unlink()
  again = replays.finalize(str(tmp_path), "toy", [first, second])
  assert again.completed == ("toy_videos",)
  assert [path.parent.name for path in tmp_path.glob("*/COMPLETED")] == ["toy_videos"]
  (tmp_path / "toy_videos" / examples.shard(1, 2, replay=3).file_name).write_text("")
  with pytest.raises(LedgerError, match="is not a shard of this run"):
    replays.finalize(str(tmp_path), "toy", [first, second])


def test_a_replay_that_accounts_for_more_or_fewer_rows_than_it_takes_is_rejected(tmp_path):
  examples.job(tmp_path)
  examples.finalize(tmp_path)
  for dead, rows in ((["y", "y"], 2), ([], 0)):
    examples.replayed(tmp_path, examples.replay(1), dead=dead)
    with pytest.raises(
      LedgerError, match=f"replay 1 accounts for {rows} rows, expected 1 dead letters"
    ):
      replays.account(str(tmp_path), "toy", [examples.replay(1)])


def test_missing_and_unknown_rows_of_a_replay_are_rejected(tmp_path):
  examples.job(tmp_path)
  examples.finalize(tmp_path)
  replay = examples.replay(1)
  examples.plan(tmp_path, {}, replay=".replay01")
  with pytest.raises(
    LedgerError, match="toy_videos/train: replay 1 accounts for 0 rows, expected 1 dead"
  ):
    replays.account(str(tmp_path), "toy", [replay])
  shards_of = [examples.shard(0, 2, replay=1), examples.shard(0, 2, split="test", replay=1)]
  for shard in shards_of:
    examples.write(tmp_path, shard, dead=["y"], digest=replay.digest)
  examples.plan(tmp_path, dict.fromkeys(shards_of, 1), replay=".replay01")
  with pytest.raises(
    LedgerError, match="toy_videos/test: replay 1 accounts for 1 rows, expected 0 dead"
  ):
    replays.account(str(tmp_path), "toy", [replay])


def test_a_quarantined_shard_of_a_replay_is_named(tmp_path):
  examples.job(tmp_path)
  examples.finalize(tmp_path)
  replay = examples.replay(1)
  shard, _ = examples.replayed(tmp_path, replay, dead=["y"])
  held = examples.write(
    tmp_path, shard, [examples.record(5)], digest=replay.digest, band=quality.Band(min_psnr=99)
  )
  summary = replays.account(str(tmp_path), "toy", [replay])
  assert summary.quarantine == {str(shard): held["quarantine"]["violations"]}
  assert summary.all.quarantined == 1 and summary.all.rows == 8
