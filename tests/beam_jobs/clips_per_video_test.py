"""Several clips of each video: distinct, the same in any run, and added without making the others again."""

import io
import json

import numpy as np
import pytest

from beam_jobs import preprocess, replay, verify
from data import schema, tfrecord
from tests.beam_jobs import media
from tests.beam_jobs.conftest import digests, good_rows, write_manifest
from walt_t5x.files.mismatch import Mismatch

VIDEOS = 4


def corpus(folder):
  """Four training videos of 2.5 to 4 seconds, one for validation that is as long, an image and a short video."""
  rows = [row | {"split": "train"} for row in good_rows(folder, videos=1, images=1)[1:]]
  for i in range(VIDEOS + 1):
    content = media.video(num_frames=30 + 5 * i, height=32, width=32, seed=3 * i, step=2)
    (folder / f"long{i}.mp4").write_bytes(content)
    split = "validation" if i == VIDEOS else "train"
    rows.append({"uri": f"long{i}.mp4", "caption": f"number {i}", "split": split})
  (folder / "short.mp4").write_bytes(media.video(num_frames=14, height=32, width=32))
  rows.append({"uri": "short.mp4", "caption": "short"})
  return write_manifest(folder, rows)


def flags(manifest, output, clips, *more):
  return [
    *(f"--manifest={manifest}", f"--output={output}", "--task=toy", "--content=pixels"),
    *("--resolutions=16x16", "--num_frames=9", "--fps=8", "--num_shards=2"),
    *("--clip_position=random", f"--clips_per_video={clips}", "--decode_isolation=thread", *more),
  ]


def records(output, split="train"):
  return [
    schema.decode(payload)
    for path in sorted((output / "toy_videos").glob(f"{split}.tfrecord-*-of-?????"))
    for payload in tfrecord.read_records(io.BytesIO(path.read_bytes()))
  ]


def verified(output):
  return verify.main([str(output / "toy_videos"), str(output / "toy_images")]) == 0


def test_clips_are_distinct_and_more_of_them_leave_the_others_as_they_are(tmp_path, monkeypatch):
  manifest = corpus(tmp_path)
  grown, fresh, one = (tmp_path / name for name in ("grown", "fresh", "one"))
  preprocess.run(flags(manifest, one, 1))
  result = preprocess.run(flags(manifest, grown, 2))
  before = digests(grown)
  made = []
  from beam_jobs.shards import make_shard

  load = make_shard.load_row
  monkeypatch.setattr(
    make_shard, "load_row", lambda *args, clip: made.append(clip) or load(*args, clip=clip)
  )
  preprocess.run(flags(manifest, grown, 5))
  assert set(made) == {2, 3, 4}
  preprocess.run(flags(manifest, fresh, 5))
  assert digests(grown) == digests(fresh)
  changed = {name for name, digest in digests(grown).items() if before.get(name) != digest}
  summaries = {"info.train.json", "stats.train.json", "toy.plan.json"}
  assert all("clip0" in name or name.rpartition("/")[2] in summaries for name in changed)
  # Everything that training compares when it resumes is that of one clip.
  assert {
    n: d for n, d in digests(one).items() if "tfrecord" in n or "provenance" in n
  }.items() <= (digests(grown).items())
  assert verified(grown) and verified(one)

  # One validation video, one image; of the short video, the clips that it has.
  assert result["rows"] == 2 * (VIDEOS + 1) + 2
  assert len(records(grown, "validation")) == 1
  by_video = {}
  for record in records(grown):
    by_video.setdefault(record.uri, []).append(record)
  assert len({record.id for record in records(grown)}) == len(records(grown))
  for i in range(VIDEOS):
    mine = by_video[f"long{i}.mp4"]
    assert len(mine) == 5
    assert len({record.pixels["pixels/9x16x16"].tobytes() for record in mine}) == 5
    starts = np.sort([record.start_seconds for record in mine])
    assert np.all(np.diff(starts) >= 0.12)
  rejected = [
    json.loads(line)
    for path in grown.glob("*/*.rejected.jsonl")
    for line in path.read_text().splitlines()
  ]
  kinds = {(entry["uri"], entry["reason"]) for entry in rejected}
  assert kinds == {("short.mp4", "no_more_clips")}
  assert len(by_video["short.mp4"]) + len(rejected) == 5

  with pytest.raises(Mismatch, match=r"holds 5 clips per video.*at least 5"):
    preprocess.run(flags(manifest, grown, 3))
  with pytest.raises(SystemExit):
    preprocess.run([*flags(manifest, grown, 3), "--clip_position=centre"])


def test_a_replay_makes_the_clip_that_was_a_dead_letter(tmp_path):
  manifest = corpus(tmp_path)
  undisturbed, mended = tmp_path / "undisturbed", tmp_path / "mended"
  preprocess.run(flags(manifest, undisturbed, 3))
  path = tmp_path / "long1.mp4"
  content = path.read_bytes()
  path.unlink()
  result = preprocess.run(flags(manifest, mended, 3))
  assert result["dead_by_reason"] == {"missing": 3}
  path.write_bytes(content)
  again = [f"--output={mended}", "--task=toy", f"--media_root={tmp_path}", "--all"]
  assert replay.run([*again, "--decode_isolation=thread"])["written"] == 3
  names = {p.name for p in mended.glob("toy_videos/*replay01*-of-?????")}
  assert {name.partition("replay01")[0] for name in names} == {
    "train.tfrecord-", "train.tfrecord-clip01.", "train.tfrecord-clip02.",
  }  # fmt: skip
  wanted, found = ({r.id: r for r in records(folder)} for folder in (undisturbed, mended))
  assert wanted.keys() == found.keys()
  assert all(schema.encode(wanted[key]) == schema.encode(found[key]) for key in wanted)
  assert verified(mended)
  (stray,) = mended.glob("toy_videos/train.tfrecord-clip02.00000-of-?????")
  stray.with_name(stray.name.replace("clip02", "clip03")).write_bytes(stray.read_bytes())
  assert not verified(mended)
