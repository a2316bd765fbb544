"""The end of a run: every row of the plan is accounted for exactly once."""

import json

import numpy as np
import pytest

from beam_jobs.shards import ledger, quality, replays
from beam_jobs.shards.shard_files import LedgerError
from data import provenance, schema
from tests.beam_jobs.shards import examples
from walt_t5x.files import storage


def test_a_finished_job_adds_up(tmp_path):
  made = examples.job(tmp_path)
  summary = examples.finalize(tmp_path)
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
    "captions_cut": 4,
    "longest_caption": 7,
    "without_condition": 0,
    "num_classes": 5,
    "tokens": 21,
    "psnr": {examples.IMAGES: 22.0, examples.VIDEOS: (22 * 3 + 21) / 4},
  }
  folder = tmp_path / "toy_videos"
  train = storage.read_json(folder / "stats.train.json")
  assert train == {
    **{"examples": 3, "rows": 5, "written": 3, "rejected": 1, "dead": 1, "quarantined": 0},
    **{"rejected_by_reason": {"small": 1}, "dead_by_reason": {"missing": 1}},
    **{"captions": 5, "tokens": 11, "psnr": {examples.VIDEOS: 65 / 3}, "quarantined_shards": []},
    **{"captions_cut": 2, "longest_caption": 7, "without_condition": 0, "num_classes": 3},
    "bytes": sum(made[examples.shard(i)]["bytes"] for i in (0, 1)),
  }
  for name, count in (("train", 2), ("validation", 1)):
    info = json.loads((folder / f"info.{name}.json").read_text())
    assert info["num_shards"] == count
    assert info["features"] == json.loads(json.dumps(schema.seqio_features([examples.VIDEOS])))
  assert (folder / "COMPLETED").read_text() == ""
  assert not (tmp_path / "toy_images" / "info.validation.json").exists()


def test_the_number_of_classes_is_unknown_next_to_a_shard_that_does_not_record_it(tmp_path):
  made = examples.job(tmp_path)
  path = tmp_path / f"{examples.shard(1)}.sidecar.json"
  sidecar = storage.read_json(path)
  path.write_text(json.dumps({name: v for name, v in sidecar.items() if name != "num_classes"}))
  summary = examples.finalize(tmp_path)
  assert (summary.all.num_classes, summary.all.rows) == (
    None,
    sum(s["rows"] for s in made.values()),
  )
  assert (
    json.loads((tmp_path / "toy_videos" / "stats.train.json").read_text())["num_classes"] is None
  )
  validation = json.loads((tmp_path / "toy_videos" / "stats.validation.json").read_text())
  assert validation["num_classes"] == 4


def test_files_are_written_in_one_way_only(tmp_path):
  examples.job(tmp_path)
  examples.finalize(tmp_path)
  examples.replayed(tmp_path, examples.replay(1), dead=["y"])
  replays.finalize(str(tmp_path), "toy", [examples.replay(1)])
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
  examples.job(tmp_path)
  examples.finalize(tmp_path)
  latents = [examples.record(seed).latents[examples.VIDEOS].reshape(-1, 4) for seed in range(4)]
  latents = np.concatenate(
    [*latents, examples.record(4, examples.IMAGES).latents[examples.IMAGES].reshape(-1, 4)]
  )
  for folder, field in (("toy_videos", examples.VIDEOS), ("toy_images", examples.IMAGES)):
    kept = provenance.read_provenance(str(tmp_path / folder))
    (name,) = kept.latents
    assert name == field and kept.latents[name].channels == 4
    np.testing.assert_allclose(kept.latents[name].mean, latents.mean(0, np.float64), rtol=1e-5)
    np.testing.assert_allclose(kept.latents[name].std, latents.std(0, np.float64), rtol=1e-5)
    assert (kept.vae, kept.fps) == (examples.ORIGIN["vae"], 8.0)


def test_further_clips_are_counted_and_do_not_change_the_statistics(tmp_path):
  made = examples.job(tmp_path)
  examples.finalize(tmp_path)
  kept = provenance.read_provenance(str(tmp_path / "toy_videos")).to_json()
  for index in range(2):
    name = examples.shard(index, clip=1)
    made[name] = examples.write(tmp_path, name, [examples.record(8 + index)], dead=["y"])
  examples.plan(tmp_path, {name: sidecar["rows"] for name, sidecar in made.items()})
  summary = examples.finalize(tmp_path)
  assert provenance.read_provenance(str(tmp_path / "toy_videos")).to_json() == kept
  totals = summary.splits["toy_videos", "train"]
  assert (totals.rows, totals.written, totals.dead["y"]) == (9, 5, 2)
  info = json.loads((tmp_path / "toy_videos/info.train.json").read_text())
  assert (info["num_shards"], info["clips_per_video"]) == (2, 2)
  info = json.loads((tmp_path / "toy_videos/info.validation.json").read_text())
  assert (info["num_shards"], info["clips_per_video"]) == (1, 1)


def test_a_quarantined_shard_adds_its_rows_and_nothing_else(tmp_path):
  made = examples.job(tmp_path)
  held = examples.write(
    tmp_path,
    examples.shard(0),
    [examples.record(0), examples.record(1)],
    band=quality.Band(mean=(5, 6)),
  )
  examples.plan(
    tmp_path, {shard: s["rows"] for shard, s in (made | {examples.shard(0): held}).items()}
  )
  summary = examples.finalize(tmp_path)
  assert summary.quarantine == {str(examples.shard(0)): held["quarantine"]["violations"]}
  assert (summary.all.written, summary.all.quarantined) == (3, 2)
  for folder, split, names in (
    ("toy_videos", "train", [str(examples.shard(0))]),
    ("toy_videos", "validation", []),
    ("toy_images", "train", []),
  ):
    stats = json.loads((tmp_path / folder / f"stats.{split}.json").read_text())
    assert stats["quarantined_shards"] == names
  latents = [examples.record(seed).latents[examples.VIDEOS].reshape(-1, 4) for seed in (2, 3)]
  latents = np.concatenate(
    [*latents, examples.record(4, examples.IMAGES).latents[examples.IMAGES].reshape(-1, 4)]
  )
  kept = provenance.read_provenance(str(tmp_path / "toy_videos"))
  np.testing.assert_allclose(
    kept.latents[examples.VIDEOS].mean, latents.mean(0, np.float64), rtol=1e-5
  )


def test_a_folder_without_a_record_is_not_completed(tmp_path):
  made = examples.job(tmp_path)
  shard = examples.shard(0, 1, task="toy_images")
  made[shard] = examples.write(tmp_path, shard, dead=["missing"])
  examples.plan(tmp_path, {shard: sidecar["rows"] for shard, sidecar in made.items()})
  for folder in ("toy_images", "toy_videos"):
    (tmp_path / folder / "COMPLETED").write_text("")
  summary = examples.finalize(tmp_path)
  assert summary.completed == ("toy_videos",) and summary.all.rows == 8
  assert [path.parent.name for path in tmp_path.glob("*/COMPLETED")] == ["toy_videos"]
  examples.plan(tmp_path, {shard: 1})
  message = (
    r"none of 1 rows was written: missing 1\n  missing: --media_root.*\n"
    r".*keeps nothing of this run; see .*\*\.dead\.jsonl$"
  )
  with pytest.raises(LedgerError, match=message):
    examples.finalize(tmp_path)
  examples.write(tmp_path, shard, rejected=["small"])
  with pytest.raises(LedgerError, match=r"was written: small 1\n.*\n.*\*\.rejected\.jsonl$"):
    examples.finalize(tmp_path)


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
  made = examples.job(tmp_path)
  path = tmp_path / "toy_videos" / f"{examples.shard(0).file_name}.sidecar.json"
  path.write_text(json.dumps(made[examples.shard(0)] | change))
  (tmp_path / "toy_videos" / "COMPLETED").write_text("")
  with pytest.raises(LedgerError, match=message):
    examples.finalize(tmp_path)
  assert not (tmp_path / "toy_videos" / "COMPLETED").exists()


def test_a_shard_that_is_missing_or_in_no_plan_is_rejected_and_temporary_files_are_deleted(
  tmp_path,
):
  examples.job(tmp_path)
  folder = tmp_path / "toy_videos"
  leaving, other = folder / f"{storage.TEMPORARY}x", folder / "notes.txt"
  for path in (leaving, other):
    path.write_text("x")
  examples.finalize(tmp_path)
  assert other.exists() and not leaving.exists()
  stranger = folder / examples.shard(2, 3).file_name
  stranger.write_text("")
  with pytest.raises(LedgerError, match="00002-of-00003 is not a shard of this run"):
    examples.finalize(tmp_path)
  stranger.unlink()
  (folder / examples.shard(1).file_name).rename(tmp_path / "away")
  with pytest.raises(LedgerError, match=r"does not have the .* bytes of its sidecar"):
    examples.finalize(tmp_path)
  (folder / f"{examples.shard(1).file_name}.sidecar.json").unlink()
  with pytest.raises(LedgerError, match="has no sidecar: 2 rows are unaccounted for"):
    examples.finalize(tmp_path)


def test_a_plan_names_shards_and_rows_on_disk_are_those_of_closed_ones(tmp_path):
  assert ledger.rows_on_disk(str(tmp_path), "toy") == 0
  made = examples.job(tmp_path)
  plan = ledger.read_plan(str(tmp_path), "toy")
  assert plan == {shard: sidecar["rows"] for shard, sidecar in made.items()}
  assert ledger.rows_on_disk(str(tmp_path), "toy") == 8
  (tmp_path / "toy_videos" / f"{examples.shard(0).file_name}.sidecar.json").unlink()
  assert ledger.rows_on_disk(str(tmp_path), "toy") == 5
  (tmp_path / "toy.plan.json").write_text('{"toy_videos/any": 3}')
  with pytest.raises(LedgerError, match="expected names like"):
    ledger.read_plan(str(tmp_path), "toy")
