"""Every second of a video ends in one clip, in one rejected segment, or is dead, whatever stops the job in between."""

import collections
import itertools
import json
import pathlib
import re
import shutil
from typing import ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest

from beam_jobs import curate, preprocess
from beam_jobs.curation import parts
from beam_jobs.curation import videos as one_video
from tests.beam_jobs.curation.conftest import splice, tool
from walt_t5x.files import damage, storage
from walt_t5x.media.isolation import WorkerCrashed

RESULTS = (parts.CLIPS, parts.TABLE, parts.REJECTED, parts.DEAD, parts.SUMMARY)


def _run(manifest, output, *flags):
  shared = ["--num_parts=3", "--decode_isolation=thread", "--score_side=32", "--page_clips=0"]
  return curate.run([f"--manifest={manifest}", f"--output={output}", *shared, *flags])


def _lines(output, name):
  return [json.loads(line) for line in (pathlib.Path(output) / name).read_text().splitlines()]


def _bytes(output):
  return {name: (pathlib.Path(output) / name).read_bytes() for name in RESULTS}


def _seconds(path):
  """Duration of the picture by ffprobe, which decodes all frames."""
  command = ["ffprobe", "-v", "quiet", "-count_frames", "-select_streams", "v", "-of", "json"]
  command += ["-show_entries", "stream=nb_read_frames"]
  found = json.loads(tool(*command, str(path)))
  return int(found["streams"][0]["nb_read_frames"]) / 25


@pytest.fixture(scope="module")
def curated(videos, tmp_path_factory):
  output = tmp_path_factory.mktemp("curated") / "out"
  printed = _run(videos, output, "--filter=seconds>=1.5", "--filter=black<=0.5")
  return output, printed


def test_cuts_are_where_scenes_were_joined(curated):
  output, _ = curated
  found = {}
  for row in [*_lines(output, parts.CLIPS), *_lines(output, parts.REJECTED)]:
    found.setdefault(row["uri"], []).append(row["start_seconds"])
  expected = {"a.mp4": [0, 2, 5], "b.mkv": [0, 1], "c.mp4": [0, 1.6], "d.ts": [0, 2]}
  assert found.keys() == expected.keys()
  for name, starts in expected.items():
    np.testing.assert_allclose(sorted(found[name]), starts, atol=0.041, err_msg=name)


def test_every_second_is_in_a_clip_rejected_or_dead(curated, videos):
  output, printed = curated
  good_seconds = sum(_seconds(videos / name) for name in ("a.mp4", "b.mkv", "c.mp4"))
  rows = {name: _lines(output, name) for name in (parts.CLIPS, parts.REJECTED, parts.DEAD)}

  def total(name, *uris):
    of = [row for row in rows[name] if not uris or row["uri"] in uris]
    return sum(row["end_seconds"] - row["start_seconds"] for row in of)

  good = ("a.mp4", "b.mkv", "c.mp4")
  assert total(parts.CLIPS, *good) + total(parts.REJECTED, *good) == pytest.approx(
    good_seconds, abs=1e-6
  )
  assert printed["seconds"] == pytest.approx(sum(map(total, rows)), abs=1e-6)
  assert printed["seconds_in_clips"] == pytest.approx(total(parts.CLIPS), abs=1e-6)
  (dead,) = rows[parts.DEAD]
  assert dead["uri"] == "d.ts" and dead["reason"] in ("truncated", "corrupt")
  assert {row["reason"] for row in rows[parts.REJECTED]} == {"seconds>=1.5", "black<=0.5"}


def test_the_table_has_the_rows_of_the_manifest(curated):
  output, _ = curated
  rows = pq.read_table(output / parts.TABLE).to_pylist()
  assert [r | {"scores": json.loads(r["scores"])} for r in rows] == _lines(output, parts.CLIPS)


def test_other_filters_decode_nothing_and_give_what_a_new_run_gives(
  curated, videos, tmp_path, monkeypatch
):
  output, _ = curated
  shutil.copytree(output, tmp_path / "again")
  flags = ("--filter=motion>=0.01",)
  fresh = _run(videos, tmp_path / "fresh", *flags)
  assert 0 < fresh["clips"] < len(_lines(output, parts.CLIPS)) + len(_lines(output, parts.REJECTED))
  monkeypatch.setattr(one_video, "scan", lambda *_, **__: pytest.fail("decodes"))
  _run(videos, tmp_path / "again", *flags)
  assert _bytes(tmp_path / "again") == _bytes(tmp_path / "fresh")
  _run(videos, tmp_path / "again", "--filter=seconds>=3")
  assert _bytes(tmp_path / "again") != _bytes(tmp_path / "fresh")
  curate.run([f"--output={tmp_path}/again", "--refilter", *flags])
  assert _bytes(tmp_path / "again") == _bytes(tmp_path / "fresh")


def test_a_job_that_is_stopped_after_each_part_ends_with_the_same_bytes(
  curated, videos, tmp_path, monkeypatch
):
  output, _ = curated
  flags = ("--filter=seconds>=1.5", "--filter=black<=0.5")
  write, written = storage.write, []

  def failing(path, content):
    if len(written) == stop:
      raise KeyboardInterrupt
    written.append(path)
    write(path, content)

  monkeypatch.setattr(parts.storage, "write", failing)
  # Before the first, between parts, and before the results. Each run makes one part, and none again.
  for stop in range(4):
    with pytest.raises((KeyboardInterrupt, RuntimeError)):
      _run(videos, tmp_path / "out", *flags)
    assert len(set(written)) == len(written) == stop
  monkeypatch.setattr(parts.storage, "write", write)
  _run(videos, tmp_path / "out", *flags)
  assert _bytes(tmp_path / "out") == _bytes(output)


def test_runners_and_isolation_give_the_same_bytes(curated, videos, tmp_path):
  output, _ = curated
  flags = ["--filter=seconds>=1.5", "--filter=black<=0.5", "--decode_isolation=process"]
  flags += [
    "--runner=DirectRunner",
    "--direct_running_mode=multi_processing",
    "--direct_num_workers=2",
  ]
  _run(videos, tmp_path / "out", *flags)
  assert _bytes(tmp_path / "out") == _bytes(output)


def test_a_decoder_that_dies_once_changes_nothing_and_one_that_always_dies_is_a_dead_video(
  curated, videos, tmp_path, monkeypatch
):
  output, _ = curated
  flags = ("--filter=seconds>=1.5", "--filter=black<=0.5")
  scan, deaths = one_video.scan, collections.Counter()

  def dying(source, *args, **options):
    for chunk in scan(source, *args, **options):
      yield chunk
      deaths[source] += 1
      if deaths[source] <= most:
        raise WorkerCrashed("the process ended with code -9")

  monkeypatch.setattr(one_video, "scan", dying)
  most = 1
  _run(videos, tmp_path / "once", *flags)
  assert len(deaths) == 4 and _bytes(tmp_path / "once") == _bytes(output)
  most = 1000
  printed = _run(videos, tmp_path / "always", *flags)
  assert printed["dead_videos"] == {"decoder_crashed": 4}
  # What was read before is not lost.
  assert 0 < printed["clips"] and printed["seconds_dead"] > 0


def test_a_part_that_is_damaged_or_of_other_settings_is_made_again(
  curated, videos, tmp_path, capsys
):
  output, _ = curated
  shutil.copytree(output, tmp_path / "out")
  (part,) = [p for p in (tmp_path / "out/parts").iterdir() if "a.mp4" in p.read_text()]
  part.write_text(part.read_text().replace('"a.mp4"', '"e.mp4"', 1))
  _run(videos, tmp_path / "out", "--filter=seconds>=1.5", "--filter=black<=0.5")
  assert _bytes(tmp_path / "out") == _bytes(output)
  assert not capsys.readouterr().err
  _run(videos, tmp_path / "out", "--max_clip_seconds=1")
  assert (
    "curate: 3 of 3 parts were made with other settings, and are made again: "
    "--max_clip_seconds 20.0, now 1.0\n" in capsys.readouterr().err
  )
  clips = _lines(tmp_path / "out", parts.CLIPS)
  assert max(c["end_seconds"] - c["start_seconds"] for c in clips) <= 1.04
  # Longer shots are divided without gaps.
  mine = sorted((c["start_seconds"], c["end_seconds"]) for c in clips if c["uri"] == "a.mp4")
  assert [b for _, b in mine[:-1]] == [a for a, _ in mine[1:]]


def test_a_part_of_a_version_with_fewer_scores_is_made_again(curated, videos, tmp_path, capsys):
  output, _ = curated
  shutil.copytree(output, tmp_path / "out")
  paths = sorted((tmp_path / "out/parts").iterdir())
  for path, settings in zip(paths, ("a digest", ["motion"], None), strict=True):
    part = storage.read_json(str(path))
    names = part["settings"]["scores"]
    for segment in itertools.chain(*(video["segments"] for video in part["videos"])):
      assert [*segment[3]] in ([], names)
      segment[3].pop("shake", None)
    if settings:
      part["settings"] = part["settings"] | {"scores": settings} if path != paths[0] else settings
      path.write_bytes(damage.sealed_json(part))
  flags = ("--filter=seconds>=1.5", "--filter=black<=0.5")
  _run(videos, tmp_path / "out", *flags)
  (line,) = [line for line in capsys.readouterr().err.splitlines() if "settings" in line]
  assert line == (
    "curate: 2 of 3 parts were made with other settings, and are made again: "
    f"scores motion, now {','.join(names)}; those of an earlier version"
  )
  assert _bytes(tmp_path / "out") == _bytes(output)
  assert _run(videos, tmp_path / "out", *flags, "--filter=shake<=1")["clips"]


def test_only_parts_with_dead_videos_are_made_again(curated, videos, tmp_path):
  shutil.copytree(curated[0], tmp_path / "out")
  paths = sorted((tmp_path / "out/parts").glob("part-*"))
  before = [path.stat().st_mtime_ns for path in paths]
  _run(videos, tmp_path / "out", "--retry_dead")
  is_new = [path.stat().st_mtime_ns != time for path, time in zip(paths, before)]
  assert is_new == ["d.ts" in path.read_text() for path in paths]


def test_preprocessing_reads_the_clips_as_they_stand(curated, tmp_path):
  output, printed = curated
  done = preprocess.run(
    [f"--config={output}/preprocess.toml", f"--output={tmp_path}", "--task=clips"]
    + ["--content=pixels", "--resolutions=16x16", "--num_frames=9", "--fps=8", "--num_shards=2"]
  )
  assert done["written"] == printed["clips"] and not done["dead"] and not done["rejected"]


def test_rows_that_cannot_be_read_are_dead_videos_with_their_reason(videos, tmp_path):
  lines = [
    {"uri": "missing.mp4"},
    {"uri": "picture.png"},
    {"uri": "../elsewhere.mp4"},
    {"uri": "a.mp4", "start_seconds": 1.0, "end_seconds": 3.0, "caption": "kept", "group": "g"},
    {"uri": 3},
  ]
  lines.insert(1, lines[3])  # A repeated row.
  splice(tmp_path / "elsewhere.mp4", ("bars", 1))
  folder = tmp_path / "in"
  folder.mkdir()
  shutil.copy(videos / "a.mp4", folder)
  (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
  printed = _run(folder / "rows.jsonl", tmp_path / "out")
  reasons = ("bad_uri", "duplicate", "missing", "not_a_video", "not_allowed")
  assert printed["dead_videos"] == dict.fromkeys(reasons, 1)
  clips = _lines(tmp_path / "out", parts.CLIPS)
  assert [(c["start_seconds"], c["end_seconds"]) for c in clips] == [(1.0, 2.0), (2.0, 3.0)]
  assert all(c["captions"] == ["kept"] and c["group"] == "g" for c in clips)
  shutil.copy(videos / "b.mkv", folder / "missing.mp4")
  again = _run(folder / "rows.jsonl", tmp_path / "out", "--retry_dead")
  assert "missing" not in again["dead_videos"] and again["clips"] > printed["clips"]


def test_rows_that_are_added_and_their_order_do_not_matter(videos, tmp_path):
  window = {"uri": str(videos / "a.mp4"), "start_seconds": 0.0, "end_seconds": 1.0}
  # The first and the last are the same clip; which of them is a duplicate does not depend on their order.
  lines = [{"group": str(at)} | window | {"start_seconds": at / 10} for at in range(5)]
  lines.append({"group": "9"} | window)
  manifest = tmp_path / "rows.jsonl"

  def run(output, rows):
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _run(manifest, tmp_path / output, "--num_parts=1", f"--media_root={videos}")
    return _bytes(tmp_path / output)

  run("out", lines[:2])
  assert run("out", lines) == run("fresh", lines[::-1])
  assert [row["reason"] for row in _lines(tmp_path / "out", parts.DEAD)] == ["duplicate"]
  assert {row["group"] for row in _lines(tmp_path / "out", parts.CLIPS)} == set("01234")


@pytest.mark.parametrize(
  "flags, message",
  [
    (["--score=no_module:Class"], "--score: got 'no_module:Class', expected MODULE:CLASS"),
    (["--filter=motoin>=1"], "--filter: got motoin, expected one of .*motion"),
    (["--filter=motion=1"], "expected NAME OP NUMBER"),
    (["--refilter", "--output=nothing_here"], "expected the --output of a finished run"),
    (["--num_parts=5"], "has 3 parts, this command 5: set --num_parts=3"),
  ],
)
def test_wrong_flags_are_answered(curated, videos, tmp_path, capsys, flags, message):
  shutil.copytree(curated[0], tmp_path / "out")
  shared = [f"--manifest={videos}", f"--output={tmp_path}/out", "--decode_isolation=thread"]
  assert curate.main([*shared, "--num_parts=3", "--score_side=32", *flags]) in (1, 2)
  error = capsys.readouterr().err
  assert len(error.strip().splitlines()) <= 6 and "Traceback" not in error
  assert re.search(message, error), error


class Moody:
  """A team's score, which fails on some clips."""

  mood: ClassVar[dict[str, object]] = {}

  def __call__(self, frames):
    if self.mood and frames.mean() > 60:
      raise self.mood["error"]
    return {"mood": self.mood.get("score", 1.0)}


def test_a_score_that_fails_ends_the_job_in_a_line_and_the_corrected_one_continues(
  videos, tmp_path, monkeypatch, capsys
):
  flags = [f"--manifest={videos}", "--decode_isolation=thread", "--num_parts=3", "--score_side=32"]
  flags += [f"--score={__name__}:Moody", "--page_clips=0"]
  for error in (KeyError("color"), ValueError("no weights")):
    monkeypatch.setattr(Moody, "mood", {"error": error})
    assert curate.main([*flags, f"--output={tmp_path}/out"]) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert said.startswith(f"curate: Moody raised {type(error).__name__}: {error}, for a clip of")
    assert said.endswith("keeps finished parts; --debug prints the traceback")
  monkeypatch.setattr(Moody, "mood", {})
  assert curate.main([*flags, f"--output={tmp_path}/out"]) == 0
  assert curate.main([*flags, f"--output={tmp_path}/fresh"]) == 0
  assert _bytes(tmp_path / "out") == _bytes(tmp_path / "fresh")
