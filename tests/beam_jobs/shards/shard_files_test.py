"""One shard on disk: its records, what did not become one, and the sidecar that closes it."""

import dataclasses
import hashlib
import json
import re

import numpy as np
import pytest

from beam_jobs.shards import quality, shard_files
from beam_jobs.shards.moments import Moments
from beam_jobs.shards.shard_files import ShardName
from data import schema, tfrecord
from tests.beam_jobs.shards import examples
from walt_t5x.files import storage
from walt_t5x.files.damage import Damaged


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
  records = [examples.record(0), examples.record(1, tokens=(4,)), examples.record(2)]
  shard = examples.shard()
  sidecar = examples.write(
    tmp_path, shard, records, dead=["missing", "missing", "x"], rejected=["small"]
  )
  assert shard_files.read_sidecar(str(tmp_path), shard) == json.loads(json.dumps(sidecar))
  content = (tmp_path / "toy_videos" / "train.tfrecord-00000-of-00002").read_bytes()
  with open(tmp_path / "toy_videos" / "train.tfrecord-00000-of-00002", "rb") as stream:
    assert list(tfrecord.read_records(stream)) == [schema.encode(record) for record in records]
  for name, wanted in {
    "schema_version": schema.SCHEMA_VERSION,
    "shard": "toy_videos/train.tfrecord-00000-of-00002",
    "settings": examples.DIGEST,
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
    "fields": [examples.VIDEOS],
    "psnr": {examples.VIDEOS: {"count": 3, "sum": 65.0}},
  }.items():
    assert sidecar[name] == wanted, name
  latents = np.concatenate([record.latents[examples.VIDEOS] for record in records]).astype(
    np.float64
  )
  moments = sidecar["moments"][examples.VIDEOS]
  assert moments["count"] == 36
  np.testing.assert_allclose(moments["sum"], latents.sum((0, 1, 2)), rtol=1e-12)
  lines = (tmp_path / "toy_videos" / f"{shard.file_name}.dead.jsonl").read_text().splitlines()
  assert [json.loads(line)["reason"] for line in lines] == ["missing", "missing", "x"]
  assert json.loads(lines[2]) == {
    **{"uri": "d2", "id": examples.row("d2").key, "stage": "decode", "reason": "x", "error": "why"},
    "row": {"uri": "d2"},
  }
  (line,) = (tmp_path / "toy_videos" / f"{shard.file_name}.rejected.jsonl").read_text().splitlines()
  assert json.loads(line)["stage"] == "filter"


def test_bytes_do_not_depend_on_the_order_of_rows_or_of_their_fields(tmp_path):
  texts = []
  for reasons, raw in ((["b", "a"], {"uri": "u", "x": 1}), (["a", "b"], {"x": 1, "uri": "u"})):
    examples.write(tmp_path, examples.shard(), dead=reasons, rejected=reasons)
    with shard_files.ShardWriter(
      str(tmp_path), examples.shard(1), settings_digest="", rows_digest=""
    ) as writer:
      writer.fail(
        dataclasses.replace(examples.row("u"), raw=raw), stage="decode", reason="a", message="why"
      )
    sidecar = shard_files.read_sidecar(str(tmp_path), examples.shard())
    # The reasons are those of other rows.
    assert set(sidecar.pop("ledgers")) == {shard_files.DEAD, shard_files.REJECTED}
    dead = tmp_path / "toy_videos" / f"{examples.shard(1).file_name}.dead.jsonl"
    texts.append([json.dumps(sidecar), dead.read_text()])
  assert texts[0] == texts[1]


@pytest.mark.parametrize(
  "change", [lambda text: text[:-5], lambda text: text.replace("decode", "decoee")]
)
def test_a_damaged_ledger_is_named_before_it_is_replayed(tmp_path, change):
  examples.write(tmp_path, examples.shard(), dead=["missing"])
  path = examples.shard().path(str(tmp_path), shard_files.DEAD)
  (entry,) = shard_files.read_ledger(path)
  assert entry["reason"] == "missing"
  text = storage.read(path).decode()
  storage.write(path, change(text))
  with pytest.raises(Damaged, match=re.escape(path)):
    shard_files.read_ledger(path)


def test_a_shard_that_is_made_again_leaves_nothing_of_the_old_one(tmp_path):
  band = quality.Band(min_psnr=99.0)
  examples.write(
    tmp_path,
    examples.shard(),
    [examples.record(0)],
    dead=["missing"],
    rejected=["small"],
    band=band,
  )
  folder = tmp_path / "toy_videos"
  (folder / "COMPLETED").write_text("")
  assert len(list(folder.iterdir())) == 6
  examples.write(tmp_path, examples.shard())
  name = examples.shard().file_name
  assert {path.name for path in folder.iterdir()} == {name, f"{name}.sidecar.json"}
  # An interrupted one leaves no shard, even if there was one before.
  with pytest.raises(RuntimeError):
    with shard_files.ShardWriter(
      str(tmp_path), examples.shard(1), settings_digest="", rows_digest=""
    ) as writer:
      writer.write(examples.record(0))
      raise RuntimeError
  assert {path.name for path in folder.iterdir()} == {name, f"{name}.sidecar.json"}


def test_a_shard_outside_the_band_is_empty_for_readers_and_quarantined(tmp_path):
  records = [examples.record(0), examples.record(1)]
  complete = examples.write(tmp_path / "complete", examples.shard(), records)
  held = examples.write(
    tmp_path, examples.shard(), records, dead=["missing"], band=quality.Band(min_psnr=99.0)
  )
  folder = tmp_path / "toy_videos"
  assert (folder / examples.shard().file_name).read_bytes() == b""
  kept = folder / f"quarantine.{examples.shard().file_name}"
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
  alone = examples.write(
    tmp_path, examples.shard(1), dead=["missing"], band=quality.Band(min_psnr=99.0)
  )
  assert alone["quarantined"] == 0


def test_a_sidecar_keeps_a_shard_only_if_nothing_changed(tmp_path):
  wanted = {"settings_digest": examples.DIGEST, "rows_digest": "r"}

  def complete(**changed):
    return shard_files.complete_sidecar(str(tmp_path), examples.shard(), **wanted | changed)

  assert complete() is None
  sidecar = examples.write(tmp_path, examples.shard(), [examples.record(0)])
  assert complete() == json.loads(json.dumps(sidecar))
  assert complete(settings_digest="other") is None and complete(rows_digest="other") is None
  path = tmp_path / "toy_videos" / examples.shard().file_name
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
  assert str(examples.shard(3, 64)) == "toy_videos/train.tfrecord-00003-of-00064"
  assert str(examples.shard(3, 64, replay=2)) == "toy_videos/train.tfrecord-replay02.00003-of-00064"
  clip = examples.shard(3, 64, clip=1, replay=2)
  assert str(clip) == "toy_videos/train.tfrecord-clip01.replay02.00003-of-00064"
  assert shard_files.parse_shard(str(clip)) == clip
  assert shard_files.parse_shard("t/train.tfrecord-clip123.00003-of-00064").clip == 123
  assert examples.shard().path("/out", ".x") == "/out/toy_videos/train.tfrecord-00000-of-00002.x"
  names = [
    examples.shard(10, 20),
    examples.shard(9, 20),
    examples.shard(task="a"),
    examples.shard(split="a"),
    examples.shard(9, 20, replay=1),
    examples.shard(9, 20, clip=1),
  ]
  assert sorted(names) == [names[i] for i in (2, 3, 1, 4, 5, 0)]
