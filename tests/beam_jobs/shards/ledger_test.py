"""Ledger: every row of a shard is in its sidecar, every shard of a plan in the totals, and missing rows are rejected.

Shards are written row by row, without media and encoders.
"""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from beam_jobs.shards import ledger, quality, replays, settings, shard_files
from beam_jobs.shards.moments import Moments
from beam_jobs.shards.shard_files import LedgerError, ShardName
from beam_jobs.sources import Row
from data import provenance, schema, tfrecord
from walt_t5x.files import storage

NOTED = {"schema_version": schema.SCHEMA_VERSION, "any": "settings"}
DIGEST = settings.settings_digest(NOTED)
ORIGIN = {"vae": {"fingerprint": "v"}, "text_encoder": {}, "fps": 8.0, "num_frames": 9}
VIDEOS, IMAGES = "latents/3x2x2", "latents/1x2x2"


def _row(name):
  return Row(
    uri=name,
    path=name,
    captions=("c",),
    caption_weights=(1.0,),
    label=-1,
    split="train",
    modality="video",
    start_seconds=None,
    end_seconds=None,
    raw={"uri": name},
  )


def _record(seed, field=VIDEOS, tokens=(2, 3)):
  random = np.random.default_rng(seed)
  shape = (*schema.latents_shape(field), 4)
  return schema.Record(
    id=f"{seed:064x}",
    uri=str(seed),
    modality="video" if field == VIDEOS else "image",
    latents={field: random.normal(seed, 1 + seed, shape).astype(np.float32)},
    captions=["c"] * len(tokens),
    caption_weights=[1.0] * len(tokens),
    text_ids=[np.ones(n, np.int32) for n in tokens],
    text_embedding=[random.normal(size=(n, 8)).astype(np.float32) for n in tokens],
  )


def _write(output, shard, records=(), *, dead=(), rejected=(), band=None, rows="r", digest=DIGEST):
  options = {"settings_digest": digest, "rows_digest": rows, "band": band}
  with shard_files.ShardWriter(str(output), shard, **options) as writer:
    for record in records:
      writer.write(record)
      for name in record.latents:
        writer.measure(name, 20.0 + len(record.captions))
    for number, reason in enumerate(dead):
      writer.dead_letter(_row(f"d{number}"), stage="decode", reason=reason, message="why")
    for number, reason in enumerate(rejected):
      writer.reject(_row(f"r{number}"), reason, "why")
  return writer.sidecar


def _plan(output, plan, task="toy", replay=""):
  text = json.dumps({str(shard): rows for shard, rows in plan.items()})
  (output / f"{task}{replay}.plan.json").write_text(text)
  (output / f"{task}.settings.json").write_text(json.dumps(NOTED))


def _shard(index=0, count=2, *, task="toy_videos", split="train", replay=0):
  return ShardName(task=task, split=split, index=index, count=count, replay=replay)


# --- one shard ------------------------------------------------------------------------------------


def test_moments_of_parts_add_up():
  values = np.random.default_rng(0).normal([1.0, -5.0], [0.1, 3.0], (60, 3, 2))
  parts = [Moments.of(part) for part in np.split(values, [7, 8])]
  total = sum(parts, Moments())
  mean, std = Moments.from_json(json.loads(json.dumps(total.to_json()))).mean_std()
  np.testing.assert_allclose(mean, values.mean((0, 1)), rtol=1e-12)
  np.testing.assert_allclose(std, values.std((0, 1)), rtol=1e-9)
  assert total.count == 180
  # Rounding makes some of these variances negative; the variance of a constant channel is 0.
  never = np.tile(np.linspace(0.1, 9, 50), (7, 1))
  assert Moments.of(never).mean_std()[1] == pytest.approx([0] * 50, abs=1e-6)


def test_a_sidecar_counts_the_contents_of_the_files(tmp_path):
  records = [_record(0), _record(1, tokens=(4,)), _record(2)]
  shard = _shard()
  sidecar = _write(tmp_path, shard, records, dead=["missing", "missing", "x"], rejected=["small"])
  assert shard_files.read_sidecar(str(tmp_path), shard) == json.loads(json.dumps(sidecar))
  content = (tmp_path / "toy_videos" / "train.tfrecord-00000-of-00002").read_bytes()
  with open(tmp_path / "toy_videos" / "train.tfrecord-00000-of-00002", "rb") as stream:
    assert list(tfrecord.read_records(stream)) == [schema.encode(record) for record in records]
  for name, wanted in {
    "schema_version": schema.SCHEMA_VERSION,
    "shard": "toy_videos/train.tfrecord-00000-of-00002",
    "settings": DIGEST,
    "manifest_rows": "r",
    "rows": 7,
    "written": 3,
    "dead": 3,
    "rejected": 1,
    "quarantined": 0,
    "dead_by_reason": {"missing": 2, "x": 1},
    "rejected_by_reason": {"small": 1},
    "bytes": len(content),
    "sha256": hashlib.sha256(content).hexdigest(),
    "captions": 5,
    "tokens": 14,
    "fields": [VIDEOS],
    "psnr": {VIDEOS: {"count": 3, "sum": 65.0}},
  }.items():
    assert sidecar[name] == wanted, name
  latents = np.concatenate([record.latents[VIDEOS] for record in records]).astype(np.float64)
  moments = sidecar["moments"][VIDEOS]
  assert moments["count"] == 36
  np.testing.assert_allclose(moments["sum"], latents.sum((0, 1, 2)), rtol=1e-12)
  lines = (tmp_path / "toy_videos" / f"{shard.file_name}.dead.jsonl").read_text().splitlines()
  assert [json.loads(line)["reason"] for line in lines] == ["missing", "missing", "x"]
  assert json.loads(lines[2]) == {
    **{"uri": "d2", "id": _row("d2").key, "stage": "decode", "reason": "x", "error": "why"},
    "row": {"uri": "d2"},
  }
  (line,) = (tmp_path / "toy_videos" / f"{shard.file_name}.rejected.jsonl").read_text().splitlines()
  assert json.loads(line)["stage"] == "filter"


def test_bytes_do_not_depend_on_the_order_of_rows_or_of_their_fields(tmp_path):
  texts = []
  for reasons, raw in ((["b", "a"], {"uri": "u", "x": 1}), (["a", "b"], {"x": 1, "uri": "u"})):
    _write(tmp_path, _shard(), dead=reasons, rejected=reasons)
    with shard_files.ShardWriter(
      str(tmp_path), _shard(1), settings_digest="", rows_digest=""
    ) as writer:
      writer.dead_letter(
        dataclasses.replace(_row("u"), raw=raw), stage="decode", reason="a", message="why"
      )
    names = (f"{_shard().file_name}.sidecar.json", f"{_shard(1).file_name}.dead.jsonl")
    texts.append([(tmp_path / "toy_videos" / name).read_text() for name in names])
  assert texts[0] == texts[1]


def test_a_shard_that_is_made_again_leaves_nothing_of_the_old_one(tmp_path):
  band = quality.Band(min_psnr=99.0)
  _write(tmp_path, _shard(), [_record(0)], dead=["missing"], rejected=["small"], band=band)
  folder = tmp_path / "toy_videos"
  (folder / "COMPLETED").write_text("")
  assert len(list(folder.iterdir())) == 6
  _write(tmp_path, _shard())
  name = _shard().file_name
  assert {path.name for path in folder.iterdir()} == {name, f"{name}.sidecar.json"}
  # An interrupted one leaves no shard, even if there was one before.
  with pytest.raises(RuntimeError):
    with shard_files.ShardWriter(
      str(tmp_path), _shard(1), settings_digest="", rows_digest=""
    ) as writer:
      writer.write(_record(0))
      raise RuntimeError
  assert {path.name for path in folder.iterdir()} == {name, f"{name}.sidecar.json"}


def test_a_shard_outside_the_band_is_empty_for_readers_and_quarantined(tmp_path):
  records = [_record(0), _record(1)]
  complete = _write(tmp_path / "complete", _shard(), records)
  held = _write(tmp_path, _shard(), records, dead=["missing"], band=quality.Band(min_psnr=99.0))
  folder = tmp_path / "toy_videos"
  assert (folder / _shard().file_name).read_bytes() == b""
  kept = folder / f"quarantine.{_shard().file_name}"
  assert hashlib.sha256(kept.read_bytes()).hexdigest() == complete["sha256"]
  assert shard_files.parse_shard(f"toy_videos/{kept.name}") is None
  assert (held["rows"], held["dead"], held["quarantined"], held["written"]) == (3, 1, 2, 0)
  assert [held[name] for name in ("bytes", "captions", "tokens")] == [0, 0, 0]
  assert held["sha256"] == hashlib.sha256(b"").hexdigest()
  (violation,) = held["quarantine"]["violations"]
  assert "mean PSNR is 22.00 dB" in violation
  for name in ("written", "bytes", "sha256", "captions", "tokens"):
    assert held["quarantine"][name] == complete[name]
  assert held["moments"] == complete["moments"]
  # A shard with only dead letters has nothing that the band could apply to.
  alone = _write(tmp_path, _shard(1), dead=["missing"], band=quality.Band(min_psnr=99.0))
  assert alone["quarantined"] == 0


def test_a_sidecar_keeps_a_shard_only_if_nothing_changed(tmp_path):
  wanted = {"settings_digest": DIGEST, "rows_digest": "r"}

  def complete(**changed):
    return shard_files.whole_sidecar(str(tmp_path), _shard(), **wanted | changed)

  assert complete() is None
  sidecar = _write(tmp_path, _shard(), [_record(0)])
  assert complete() == json.loads(json.dumps(sidecar))
  assert complete(settings_digest="other") is None and complete(rows_digest="other") is None
  path = tmp_path / "toy_videos" / _shard().file_name
  noted = path.with_name(f"{path.name}.sidecar.json")
  for broken in ("", "{", json.dumps(sidecar | {"schema_version": 1})):
    noted.write_text(broken)
    assert complete() is None
  noted.write_text(json.dumps(sidecar))
  content = path.read_bytes()
  for other in (content[:-1], content + b"x"):
    path.write_bytes(other)
    assert complete() is None
  path.unlink()
  assert complete() is None


def test_the_digest_of_rows_depends_on_lines_and_not_on_order():
  assert shard_files.rows_digest(["a", "b"]) == shard_files.rows_digest(["b", "a"])
  found = {
    shard_files.rows_digest(lines) for lines in ([], ["ab"], ["a", "b"], ["a", "b", "b"], ["b"])
  }
  assert len(found) == 5
  assert shard_files.rows_digest(["bc", "a"]) == hashlib.sha256(b"1:a\n2:bc\n").hexdigest()


def test_names_of_shards():
  job = ShardName(task="t", split="train", index=0, count=1)
  assert str(job) == "t/train.tfrecord-00000-of-00001"
  assert str(_shard(3, 64)) == "toy_videos/train.tfrecord-00003-of-00064"
  assert str(_shard(3, 64, replay=2)) == "toy_videos/train.tfrecord-replay02.00003-of-00064"
  assert _shard().path("/out", ".x") == "/out/toy_videos/train.tfrecord-00000-of-00002.x"
  names = [
    _shard(10, 20),
    _shard(9, 20),
    _shard(task="a"),
    _shard(split="a"),
    _shard(9, 20, replay=1),
  ]
  assert sorted(names) == [names[i] for i in (2, 3, 1, 4, 0)]


# --- the job --------------------------------------------------------------------------------------


def _job(output):
  """Three shards of two folders: 8 rows, 5 of them written, one folder with a second split."""
  output.mkdir(exist_ok=True)
  made = {
    _shard(0): _write(output, _shard(0), [_record(0), _record(1)], dead=["missing"]),
    _shard(1): _write(output, _shard(1), [_record(2, tokens=(1,))], rejected=["small"]),
    _shard(0, 1, split="validation"): _write(
      output, _shard(0, 1, split="validation"), [_record(3)], dead=["x"]
    ),
    _shard(0, 1, task="toy_images"): _write(
      output, _shard(0, 1, task="toy_images"), [_record(4, IMAGES)]
    ),
  }
  _plan(output, {shard: sidecar["rows"] for shard, sidecar in made.items()})
  return made


def _finalise(output):
  return ledger.finalise(str(output), "toy", settings_digest=DIGEST, origin=ORIGIN)


def test_a_finished_job_adds_up(tmp_path):
  made = _job(tmp_path)
  summary = _finalise(tmp_path)
  assert summary.completed == ("toy_images", "toy_videos") and summary.quarantine == {}
  assert summary.all.to_json() == {
    "rows": 8,
    "written": 5,
    "rejected": 1,
    "dead": 2,
    "quarantined": 0,
    "rejected_by_reason": {"small": 1},
    "dead_by_reason": {"missing": 1, "x": 1},
    "bytes": sum(sidecar["bytes"] for sidecar in made.values()),
    "captions": 9,
    "tokens": 21,
    "psnr": {IMAGES: 22.0, VIDEOS: (22 * 3 + 21) / 4},
  }
  folder = tmp_path / "toy_videos"
  train = json.loads((folder / "stats.train.json").read_text())
  assert train == {
    **{"examples": 3, "rows": 5, "written": 3, "rejected": 1, "dead": 1, "quarantined": 0},
    **{"rejected_by_reason": {"small": 1}, "dead_by_reason": {"missing": 1}},
    **{"captions": 5, "tokens": 11, "psnr": {VIDEOS: 65 / 3}, "quarantined_shards": []},
    "bytes": sum(made[_shard(i)]["bytes"] for i in (0, 1)),
  }
  for name, count in (("train", 2), ("validation", 1)):
    info = json.loads((folder / f"info.{name}.json").read_text())
    assert info["num_shards"] == count
    assert info["features"] == json.loads(json.dumps(schema.seqio_features([VIDEOS])))
  assert (folder / "COMPLETED").read_text() == ""
  assert not (tmp_path / "toy_images" / "info.validation.json").exists()


def test_files_are_written_in_one_way_only(tmp_path):
  _job(tmp_path)
  _finalise(tmp_path)
  _replayed(tmp_path, _replay(1), dead=["y"])
  replays.finalise(str(tmp_path), "toy", [_replay(1)])
  names = ("*.sidecar.json", "info.*.json", "stats.*.json", "*.replay01.json")
  files = [file for name in names for file in tmp_path.rglob(name)]
  assert len(files) == 5 + 3 + 3 + 1
  for file in files:
    text = file.read_text()
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True) + "\n", file
  for file in tmp_path.rglob("*.jsonl"):
    for line in file.read_text().splitlines():
      assert line == json.dumps(json.loads(line), sort_keys=True)


def test_one_resolution_is_measured_over_all_folders(tmp_path):
  _job(tmp_path)
  _finalise(tmp_path)
  latents = [_record(seed).latents[VIDEOS].reshape(-1, 4) for seed in range(4)]
  latents = np.concatenate([*latents, _record(4, IMAGES).latents[IMAGES].reshape(-1, 4)])
  for folder, field in (("toy_videos", VIDEOS), ("toy_images", IMAGES)):
    kept = provenance.read_provenance(str(tmp_path / folder))
    (name,) = kept.latents
    assert name == field and kept.latents[name].channels == 4
    np.testing.assert_allclose(kept.latents[name].mean, latents.mean(0, np.float64), rtol=1e-5)
    np.testing.assert_allclose(kept.latents[name].std, latents.std(0, np.float64), rtol=1e-5)
    assert (kept.vae, kept.fps) == (ORIGIN["vae"], 8.0)


def test_a_quarantined_shard_adds_its_rows_and_nothing_else(tmp_path):
  made = _job(tmp_path)
  held = _write(tmp_path, _shard(0), [_record(0), _record(1)], band=quality.Band(mean=(5, 6)))
  _plan(tmp_path, {shard: s["rows"] for shard, s in (made | {_shard(0): held}).items()})
  summary = _finalise(tmp_path)
  assert summary.quarantine == {str(_shard(0)): held["quarantine"]["violations"]}
  assert (summary.all.written, summary.all.quarantined) == (3, 2)
  for folder, split, names in (
    ("toy_videos", "train", [str(_shard(0))]),
    ("toy_videos", "validation", []),
    ("toy_images", "train", []),
  ):
    stats = json.loads((tmp_path / folder / f"stats.{split}.json").read_text())
    assert stats["quarantined_shards"] == names
  latents = [_record(seed).latents[VIDEOS].reshape(-1, 4) for seed in (2, 3)]
  latents = np.concatenate([*latents, _record(4, IMAGES).latents[IMAGES].reshape(-1, 4)])
  kept = provenance.read_provenance(str(tmp_path / "toy_videos"))
  np.testing.assert_allclose(kept.latents[VIDEOS].mean, latents.mean(0, np.float64), rtol=1e-5)


def test_a_folder_without_a_record_is_not_completed(tmp_path):
  made = _job(tmp_path)
  shard = _shard(0, 1, task="toy_images")
  made[shard] = _write(tmp_path, shard, dead=["missing"])
  _plan(tmp_path, {shard: sidecar["rows"] for shard, sidecar in made.items()})
  for folder in ("toy_images", "toy_videos"):
    (tmp_path / folder / "COMPLETED").write_text("")
  summary = _finalise(tmp_path)
  assert summary.completed == ("toy_videos",) and summary.all.rows == 8
  assert [path.parent.name for path in tmp_path.glob("*/COMPLETED")] == ["toy_videos"]
  _plan(tmp_path, {shard: 1})
  with pytest.raises(LedgerError, match="none of 1 rows was written"):
    _finalise(tmp_path)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"rows": 4}, "the plan has 3 rows, the sidecar 4, and 3 were"),
    ({"written": 1}, "and 2 were written"),
    ({"dead": 2}, "and 4 were written"),
    ({"rejected": 1}, "and 4 were written"),
    ({"quarantined": 1}, "and 4 were written"),
    ({"settings": "other"}, "was made with other settings"),
    ({"bytes": 1}, "does not have the 1 bytes of its sidecar"),
  ],
)
def test_a_sidecar_that_does_not_account_for_its_rows_is_rejected(tmp_path, change, message):
  made = _job(tmp_path)
  path = tmp_path / "toy_videos" / f"{_shard(0).file_name}.sidecar.json"
  path.write_text(json.dumps(made[_shard(0)] | change))
  (tmp_path / "toy_videos" / "COMPLETED").write_text("")
  with pytest.raises(LedgerError, match=message):
    _finalise(tmp_path)
  assert not (tmp_path / "toy_videos" / "COMPLETED").exists()


def test_a_shard_that_is_missing_or_in_no_plan_is_rejected_and_temporary_files_are_deleted(
  tmp_path,
):
  _job(tmp_path)
  folder = tmp_path / "toy_videos"
  leaving, other = folder / f"{storage.TEMPORARY}x", folder / "notes.txt"
  for path in (leaving, other):
    path.write_text("x")
  _finalise(tmp_path)
  assert other.exists() and not leaving.exists()
  stranger = folder / _shard(2, 3).file_name
  stranger.write_text("")
  with pytest.raises(LedgerError, match="00002-of-00003 is not a shard of this run"):
    _finalise(tmp_path)
  stranger.unlink()
  (folder / _shard(1).file_name).rename(tmp_path / "away")
  with pytest.raises(LedgerError, match=r"does not have the .* bytes of its sidecar"):
    _finalise(tmp_path)
  (folder / f"{_shard(1).file_name}.sidecar.json").unlink()
  with pytest.raises(LedgerError, match="has no sidecar: 2 rows are unaccounted for"):
    _finalise(tmp_path)


def test_a_plan_names_shards_and_rows_on_disk_are_those_of_closed_ones(tmp_path):
  assert ledger.rows_on_disk(str(tmp_path), "toy") == 0
  made = _job(tmp_path)
  plan = ledger.read_plan(str(tmp_path), "toy")
  assert plan == {shard: sidecar["rows"] for shard, sidecar in made.items()}
  assert ledger.rows_on_disk(str(tmp_path), "toy") == 8
  (tmp_path / "toy_videos" / f"{_shard(0).file_name}.sidecar.json").unlink()
  assert ledger.rows_on_disk(str(tmp_path), "toy") == 5
  (tmp_path / "toy.plan.json").write_text('{"toy_videos/any": 3}')
  with pytest.raises(LedgerError, match="expected names like"):
    ledger.read_plan(str(tmp_path), "toy")


# --- replays --------------------------------------------------------------------------------------


def _replay(number=1, reasons=("missing",), *, finished=True):
  return replays.Replay(
    number=number, reasons=reasons, buckets={"train": 1}, settings=NOTED, finished=finished
  )


def _replayed(output, replay, records=(), *, dead=(), index=0):
  """The only shard of a replay, and its JSON files."""
  shard = _shard(index, 2, replay=replay.number)
  sidecar = _write(output, shard, records, dead=dead, digest=replay.digest)
  _plan(output, {shard: sidecar["rows"]}, replay=f".replay{replay.number:02d}")
  replay.write(str(output), "toy")
  return shard, sidecar


def test_a_replay_takes_the_given_reasons_and_no_invalid_row():
  some, every = _replay(reasons=("missing", "bad_uri")), _replay(reasons=None)
  dead = {"missing": 2, "x": 3, "bad_uri": 1}
  assert some.taken(dead) == {"missing": 2} and every.taken(dead) == {"missing": 2, "x": 3}
  history = [_replay(1, ("missing",)), _replay(2, ("x",))]
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
  replays.refuse(str(tmp_path), "toy")
  first, second = _replay(1, None), _replay(2, ("x",), finished=False)
  for replay in (second, first):
    replay.write(str(tmp_path), "toy")
  _replay(1).write(str(tmp_path), "toy_too")
  assert replays.read_all(str(tmp_path), "toy") == [first, second]
  with pytest.raises(ValueError, match=r"holds replays \['01', '02'\]"):
    replays.refuse(str(tmp_path), "toy")
  third = _replay(3)
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
    _replay(number).write(str(tmp_path), "toy")
  found = replays.read_all(str(tmp_path), "toy")
  assert [replay.number for replay in found] == list(range(1, 102))


def test_everything_that_decides_a_replay_is_in_its_digest():
  kept = _replay()
  others = [
    _replay(2),
    _replay(reasons=None),
    replays.Replay(number=1, reasons=("missing",), buckets={"train": 2}, settings=NOTED),
    replays.Replay(number=1, reasons=("missing",), buckets={"train": 1}, settings={}),
  ]
  assert len({replay.digest for replay in (kept, *others)}) == 5
  assert _replay(finished=False).digest == kept.digest


def test_the_account_after_replays_has_each_row_once(tmp_path):
  _job(tmp_path)
  _finalise(tmp_path)
  first, second = _replay(1), _replay(2, ("y",), finished=False)
  _replayed(tmp_path, first, dead=["y"])
  _replayed(tmp_path, second, [_record(5)], index=1)
  summary = replays.finalise(str(tmp_path), "toy", [first, second])
  # The job's dead letter of the training split fails for another reason, and is then written.
  train = summary.splits["toy_videos", "train"]
  assert (train.rows, train.written, train.dead) == (5, 4, {})
  assert train.captions == 7 and train.psnr[VIDEOS] == (4, 87.0)
  assert summary.splits["toy_videos", "validation"].dead == {"x": 1}
  assert summary.all.rows == 8 and summary.completed == ("toy_images", "toy_videos")
  assert replays.read_all(str(tmp_path), "toy")[-1].finished
  stats = json.loads((tmp_path / "toy_videos" / "stats.train.json").read_text())
  assert (stats["examples"], stats["rows"], stats["dead"]) == (4, 5, 0)
  alone = replays.account(str(tmp_path), "toy", [first, second], folder="toy_images")
  assert set(alone.splits) == {("toy_images", "train")} and alone.all.rows == 1
  found = replays.dead_ledgers(str(tmp_path), "toy", [first, second])
  names = [(path.rpartition("/")[2], number) for path, number in found]
  assert names == [
    ("train.tfrecord-00000-of-00002.dead.jsonl", 0),
    ("validation.tfrecord-00000-of-00001.dead.jsonl", 0),
    ("train.tfrecord-replay01.00000-of-00002.dead.jsonl", 1),
  ]
  taken = [
    json.loads(line)
    for source in found
    for line in replays._taken_of(source, replay=_replay(3, None), history=[first])
  ]
  # The job's 'missing' is gone.
  assert taken == [{"uri": "d0"}] * 2
  assert list(replays._taken_of(found[0], replay=_replay(3, ("y",)), history=[])) == []
  # A folder without COMPLETED gets it back; an incomplete folder does not.
  (tmp_path / "toy_images" / provenance.FILE_NAME).unlink()
  for folder in ("toy_images", "toy_videos"):
    (tmp_path / folder / "COMPLETED").unlink()
  again = replays.finalise(str(tmp_path), "toy", [first, second])
  assert again.completed == ("toy_videos",)
  assert [path.parent.name for path in tmp_path.glob("*/COMPLETED")] == ["toy_videos"]
  (tmp_path / "toy_videos" / _shard(1, 2, replay=3).file_name).write_text("")
  with pytest.raises(LedgerError, match="is not a shard of this run"):
    replays.finalise(str(tmp_path), "toy", [first, second])


def test_a_replay_that_accounts_for_more_or_fewer_rows_than_it_takes_is_rejected(tmp_path):
  _job(tmp_path)
  _finalise(tmp_path)
  for dead, rows in ((["y", "y"], 2), ([], 0)):
    _replayed(tmp_path, _replay(1), dead=dead)
    with pytest.raises(
      LedgerError, match=f"replay 1 accounts for {rows} rows, expected 1 dead letters"
    ):
      replays.account(str(tmp_path), "toy", [_replay(1)])


def test_missing_and_unknown_rows_of_a_replay_are_rejected(tmp_path):
  _job(tmp_path)
  _finalise(tmp_path)
  replay = _replay(1)
  _plan(tmp_path, {}, replay=".replay01")
  with pytest.raises(
    LedgerError, match="toy_videos/train: replay 1 accounts for 0 rows, expected 1 dead"
  ):
    replays.account(str(tmp_path), "toy", [replay])
  shards_of = [_shard(0, 2, replay=1), _shard(0, 2, split="test", replay=1)]
  for shard in shards_of:
    _write(tmp_path, shard, dead=["y"], digest=replay.digest)
  _plan(tmp_path, dict.fromkeys(shards_of, 1), replay=".replay01")
  with pytest.raises(
    LedgerError, match="toy_videos/test: replay 1 accounts for 1 rows, expected 0 dead"
  ):
    replays.account(str(tmp_path), "toy", [replay])


def test_a_quarantined_shard_of_a_replay_is_named(tmp_path):
  _job(tmp_path)
  _finalise(tmp_path)
  replay = _replay(1)
  shard, _ = _replayed(tmp_path, replay, dead=["y"])
  held = _write(tmp_path, shard, [_record(5)], digest=replay.digest, band=quality.Band(min_psnr=99))
  summary = replays.account(str(tmp_path), "toy", [replay])
  assert summary.quarantine == {str(shard): held["quarantine"]["violations"]}
  assert summary.all.quarantined == 1 and summary.all.rows == 8
