"""Results are those of the segments in parts: each has the first reason that rejects it, and seconds add up."""

import json
import tomllib

import numpy as np
import pyarrow.parquet as pq
import pytest

from beam_jobs.curation import aspects, clip_table, duplicate_files, embeddings, parts
from beam_jobs.curation.videos import CurationJob, Scored
from beam_jobs.shards.shard_files import LedgerError
from walt_t5x.files import damage, storage
from walt_t5x.media.rules import Rule

RULES = [Rule.parse("a>=0.5"), Rule.parse("b>=0.5"), Rule.parse("seconds>=1")]
SECOND = 1_000_000


def _video(uri, segments, *, dead=None, **fields):
  """A video whose segments follow each other from second 1."""
  return {
    "uri": uri,
    "path": uri,
    "crop": None,
    "split": "train",
    "group": None,
    "captions": [],
    "start": SECOND,
    "end": dead[1] if dead else segments[-1].end,
    "segments": [list(segment) for segment in segments],
    "dead": dead and [dead[0], "decode", "truncated", "cut off"],
  } | fields


def _segments(*scores, seconds: float = 2):
  return [
    Scored(
      int((1 + seconds * i) * SECOND),
      int((1 + seconds * (i + 1)) * SECOND),
      "shot",
      one,
      "",
      "digest",
    )
    for i, one in enumerate(scores)
  ]


def _write(folder, videos_of_parts, setting="s"):
  settings = {"--score_fps": setting}
  job = CurationJob(output=str(folder), media_root="root", parts=2, settings=settings)
  for index, videos in enumerate(videos_of_parts):
    content = {"settings": settings, "rows": "", "videos": videos}
    path = parts.part_path(job.output, index, job.parts)
    storage.write(path, damage.sealed_json(content))
  return job


def _rows(folder, name):
  return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_each_segment_is_a_clip_or_has_the_first_reason_that_rejects_it(tmp_path, monkeypatch):
  monkeypatch.setattr(clip_table, "_ROWS_OF_A_GROUP", 1)
  good = {"a": 0.5, "b": 0.5}
  found = _segments(good, good, good, {"a": 0.4, "b": 0.4}, {"a": 0.9, "b": 0.4}, {"a": 0.9})
  found[1] = found[1]._replace(kind="transition")
  found[2] = found[2]._replace(digest="", scores={})
  videos = [
    _video("all.mp4", found, captions=["one", "two"], split="test"),
    _video("short.mp4", _segments(good, seconds=0.5), group="g"),
    _video("damaged.mp4", _segments(good, good), dead=(5 * SECOND, 7 * SECOND)),
  ]
  totals = parts.finalize(_write(tmp_path, [videos[:1], videos[1:]]), RULES)
  clips, rejected = (_rows(tmp_path, name) for name in (parts.CLIPS, parts.REJECTED))
  assert [(c["uri"], c["start_seconds"], c["end_seconds"]) for c in clips] == [
    ("all.mp4", 1.0, 3.0),
    ("all.mp4", 11.0, 13.0),
    ("damaged.mp4", 1.0, 3.0),
    ("damaged.mp4", 3.0, 5.0),
  ]
  table = pq.read_table(tmp_path / parts.TABLE)
  assert table.num_rows == 4
  assert [r | {"scores": json.loads(r["scores"])} for r in table.to_pylist()] == clips
  assert [(r["start_seconds"], r["reason"]) for r in rejected] == [
    *[(3.0, "transition"), (5.0, "no_sampled_frame"), (7.0, "a>=0.5"), (9.0, "b>=0.5")],
    (1.0, "seconds>=1"),
  ]
  fields = ("split", "group", "captions")
  assert [clips[0][name] for name in fields] == ["test", "all.mp4", ["one", "two"]]
  assert [rejected[-1][name] for name in fields] == ["train", "g", []]
  assert _rows(tmp_path, parts.DEAD) == [
    {
      "uri": "damaged.mp4",
      "start_seconds": 5.0,
      "end_seconds": 7.0,
      "stage": "decode",
      "reason": "truncated",
      "message": "cut off",
    }
  ]
  assert totals.to_json() == {
    "videos": 3,
    "clips": 4,
    "clips_cropped": 0,
    "groups": {},
    "seconds": 18.5,
    "seconds_in_clips": 8.0,
    "seconds_rejected": {
      **{"transition": 2.0, "no_sampled_frame": 2.0, "a>=0.5": 2.0, "b>=0.5": 2.0},
      "seconds>=1": 0.5,
    },
    "seconds_dead": 2.0,
    "dead_videos": {"truncated": 1},
  }


def test_parts_that_are_missing_damaged_or_of_another_job_are_named(tmp_path):
  video = _video("a.mp4", _segments({"a": 1.0}))
  job = _write(tmp_path, [[video], []])
  second = tmp_path / "parts" / "part-00001-of-00002.json"
  content = second.read_text()
  for wrong in (None, content[:-9], content.replace('"s"', '"t"')):
    second.unlink() if wrong is None else second.write_text(wrong)
    with pytest.raises(LedgerError, match=r"part-00001-of-00002\.json is missing or damaged: run"):
      parts.finalize(job, [])
  _write(tmp_path, [[video], []], setting="t")
  with pytest.raises(LedgerError, match=r"part-00000-of-00002\.json was made with other settings"):
    parts.finalize(job, [])


def test_finished_parts_are_those_that_are_intact(tmp_path):
  job = _write(tmp_path, [[_video("a.mp4", _segments({}))], []])
  storage.write(parts.duplicates_path(job, 0), damage.sealed_json({"a": ["reason", 0.0, "b"]}))
  assert [len(part["videos"]) for part in parts.finished(job.output)] == [1, 0]
  path = tmp_path / "parts" / "part-00000-of-00002.json"
  path.write_text(path.read_text().replace("a.mp4", "b.mp4", 1))
  assert [len(part["videos"]) for part in parts.finished(job.output)] == [0]


def test_seconds_that_do_not_add_up_end_without_results(tmp_path):
  job = _write(tmp_path, [[_video("a.mp4", _segments({"a": 1.0}), end=4 * SECOND)], []])
  with pytest.raises(LedgerError, match=r"3\.0 s of video were read, and 2\.0 s are in clips"):
    parts.finalize(job, [])
  assert not (tmp_path / parts.CLIPS).exists() and not (tmp_path / parts.SUMMARY).exists()


def test_filters_of_a_corpus_without_scores_are_not_unknown(tmp_path):
  transitions = [one._replace(kind="transition") for one in _segments({})]
  assert parts.finalize(_write(tmp_path, [[_video("a.mp4", transitions)], []]), RULES).clips == 0
  job = _write(tmp_path, [[_video("a.mp4", _segments({"a": 1.0}))], []])
  with pytest.raises(ValueError, match="--filter: got b, expected one of a, seconds"):
    parts.finalize(job, RULES)


def test_only_clips_that_satisfy_the_filters_are_compared(tmp_path):
  found = _segments({"a": 0.5, "b": 0.9}, {"a": 0.4, "b": 0.9}, {"a": 0.7, "b": 0.8}, {"a": 0.9})
  packed = embeddings.pack(np.array([3, 4]), "")
  found = [
    found[0]._replace(kind="transition", digest=""),
    *(one._replace(hashes="ff00" * 24, embedding=packed) for one in found[1:3]),
    found[3]._replace(digest=""),
  ]
  job = _write(tmp_path, [[], [_video("a b.mp4", found)]])

  def candidates(quality, *, with_embeddings):
    return list(parts.candidates(1, job, RULES, quality, with_embeddings=with_embeddings))

  (clip,) = candidates("b", with_embeddings=True)
  assert clip[:4] == (0.8, "00001 5000000 7000000  a b.mp4", "digest", b"\xff\x00" * 24)
  assert np.frombuffer(clip.embedding, np.float16) == pytest.approx([0.6, 0.8], abs=1e-3)
  (clip,) = candidates("seconds", with_embeddings=False)
  assert (clip.quality, clip.embedding) == (2.0, b"")
  with pytest.raises(ValueError, match="--keep: got c, expected one of a, b, seconds"):
    candidates("c", with_embeddings=False)
  # A transition has no embedding.
  duplicate_files.require_embeddings(job)
  shots = [one._replace(embedding="") for one in found]
  with pytest.raises(ValueError, match="have no embeddings, expected those of a run with --embed"):
    duplicate_files.require_embeddings(_write(tmp_path, [[], [_video("a.mp4", shots)]]))


def test_each_clip_is_in_the_group_whose_aspect_is_closest(tmp_path):
  names = "1x1", "16x9", "9x16", "239x100"
  groups = aspects.parse_groups("1:1,16:9, 9x16,239:100")
  shapes = np.exp(np.linspace(-1.5, 1.5, 41)).round(3).tolist()
  half = [0.25, 0.75, 0.0, 1.0]
  videos = [
    _video("seen.mp4", _segments(*({"aspect": shape} for shape in shapes))),
    _video("cropped.mp4", _segments(*({"aspect": 2 * s} for s in shapes)), crop=half),
    _video("rejected.mp4", _segments({"aspect": 1.0}, seconds=0.5)),
  ]
  job = _write(tmp_path, [videos[:1], videos[1:]])
  totals = parts.finalize(job, [Rule.parse("seconds>=1")], groups=groups)
  clips = _rows(tmp_path, parts.CLIPS)
  assert len(clips) == 2 * len(shapes)
  by_group = {name: _rows(tmp_path, f"clips-{name}.jsonl") for name in names}
  ratios = np.array([[group.aspect for group in groups]])
  for video, factor in (("seen.mp4", 1), ("cropped.mp4", 2)):
    # Scores have seen the crop of a row.
    found = factor * np.array(shapes)[:, None]
    nearest = np.maximum(found / ratios, ratios / found).argmin(1)
    for number, name in enumerate(names):
      mine = [clip["scores"]["aspect"] for clip in by_group[name] if clip["uri"] == video]
      assert mine == [factor * s for s, n in zip(shapes, nearest, strict=True) if n == number]
  counts = totals.to_json()["groups"]
  assert counts == {
    name: {"clips": len(rows), "seconds": 2.0 * len(rows)} for name, rows in by_group.items()
  }
  flags = tomllib.loads((tmp_path / "preprocess-16x9.toml").read_text())
  assert flags == {"manifest": f"{tmp_path}/clips-16x9.jsonl", "media_root": "root"}
  # Without groups nothing is left that could be read by mistake.
  parts.finalize(job, [Rule.parse("seconds>=1")], groups=groups[:1])
  left = {path.name for path in tmp_path.iterdir() if "-" in path.name}
  assert left == {"clips-1x1.jsonl", "preprocess-1x1.toml"}


def test_a_crop_without_bars_decides_on_the_group():
  # 1.5 as seen in the upper half; a crop of a quarter of the height and half of the width is twice as wide as high.
  assert aspects.aspect_of(1.5, (0.0, 0.5, 0.0, 1.0), (0.0, 0.25, 0.0, 0.5)) == 1.5
  assert aspects.aspect_of(4 / 3, None, (0.125, 0.875, 0.0, 1.0)) == pytest.approx(16 / 9)
  assert aspects.aspect_of(4 / 3, None, None) == 4 / 3


@pytest.mark.parametrize("text", ["16/9", "0:9", "wide", "16:9:1", "16:9,32:18"])
def test_malformed_groups_are_answered(text):
  with pytest.raises(ValueError, match=f"--groups: got '{text}', expected"):
    aspects.parse_groups(text)


def test_groups_of_parts_without_an_aspect_are_answered(tmp_path):
  job = _write(tmp_path, [[_video("a.mp4", _segments({"a": 1.0}))], []])
  with pytest.raises(ValueError, match=r"no score aspect.*run without --refilter"):
    parts.finalize(job, [], groups=aspects.parse_groups("1:1"))
  assert not (tmp_path / parts.CLIPS).exists()


@pytest.mark.parametrize("settings", ["a digest", {}, {"recorded": ["start", "end"]}])
def test_other_filters_need_parts_of_this_version(tmp_path, settings):
  made = {"job": {"media_root": "root", "parts": 2, "settings": settings}}
  storage.write(str(tmp_path / parts.SUMMARY), damage.sealed_json(made))
  with pytest.raises(
    LedgerError, match=r"--refilter: an earlier version made the parts in .*: run"
  ):
    parts.job_there(str(tmp_path))
  made["job"]["settings"] = {"recorded": list(Scored._fields)}
  storage.write(str(tmp_path / parts.SUMMARY), damage.sealed_json(made))
  assert parts.job_there(str(tmp_path)).parts == 2
