"""Requests of the benchmarks: frequencies, order, positions of the given frames."""

import json

import numpy as np
import pytest

from walt_t5x.evaluation import benchmark_requests, clip_sources, media_files
from walt_t5x.generation.requests import read_requests
from walt_t5x.media import decoding, reading, writing
from walt_t5x.media.clips import ClipSpec
from walt_t5x.metrics.protocols import PROTOCOLS
from walt_t5x.metrics.protocols.protocol import ClipRule


@pytest.fixture
def ucf(tmp_path):
  """Two classes, with 3 videos and 1; a list that excludes one of the three."""
  root, clip = tmp_path / "UCF", tmp_path / "clip.avi"
  writing.write_video(clip, np.zeros((50, 16, 16, 3), np.uint8), fps=25)
  for name in ("B/1.avi", "ApplyLipstick/1.avi", "ApplyLipstick/2.avi", "ApplyLipstick/3.avi"):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(clip.read_bytes())
  (tmp_path / "list.txt").write_text("ApplyLipstick/1.avi 1\nApplyLipstick/3.avi 1\nB/1.avi 2\n")
  return root


def _run(capsys, *arguments):
  benchmark_requests.main([*map(str, arguments)])
  return json.loads(capsys.readouterr().out)


def _lines(file):
  return [json.loads(line) for line in open(file, encoding="utf-8")]


def test_labels_have_the_frequencies_of_the_listed_videos(ucf, tmp_path, capsys):
  out = tmp_path / "out"
  arguments = ["--protocol=ucf101_class_conditional", f"--media={ucf}", f"--output={out}"]
  result = _run(capsys, *arguments, f"--list={tmp_path / 'list.txt'}")
  protocol = PROTOCOLS["ucf101_class_conditional"]
  assert result["count"] == protocol.sample_count * protocol.folds == 40_000
  labels = [r.label for r in read_requests(result["requests"])]
  # Two of three listed videos are of the first class; the standard error of the fraction is 0.24 %.
  assert set(labels) == {0, 1} and abs(np.mean(np.array(labels) == 0) - 2 / 3) < 0.01
  assert [r["uri"][-19:] for r in _lines(result["reference"])] == [
    "ApplyLipstick/1.avi",
    "ApplyLipstick/3.avi",
    str(ucf / "B/1.avi")[-19:],
  ]
  again = _run(
    capsys, *arguments[:2], f"--output={tmp_path / 'again'}", f"--list={tmp_path / 'list.txt'}"
  )
  assert open(again["requests"]).read() == open(result["requests"]).read()


def test_every_imagenet_class_is_requested_equally_often(tmp_path, capsys):
  result = _run(capsys, "--protocol=imagenet256", f"--output={tmp_path}")
  labels = np.array([line["label"] for line in _lines(result["requests"])])
  np.testing.assert_array_equal(np.bincount(labels), np.full(1000, 50))
  assert "reference" not in result


def test_zero_shot_prompts_are_the_class_names_or_the_file(ucf, tmp_path, capsys):
  arguments = ["--protocol=ucf101_zero_shot", f"--media={ucf}", "--count=5"]
  result = _run(capsys, *arguments, f"--output={tmp_path / 'a'}")
  prompts = [line["prompt"] for line in _lines(result["requests"])]
  assert prompts == ["apply lipstick", "b", "apply lipstick", "b", "apply lipstick"]
  (tmp_path / "prompts.txt").write_text("one\n")
  with pytest.raises(SystemExit, match=r"has 1 prompts, expected 2"):
    _run(capsys, *arguments, f"--prompts={tmp_path / 'prompts.txt'}", f"--output={tmp_path / 'b'}")


def test_the_given_frames_are_five_consecutive_frames_of_the_video(tmp_path, capsys):
  media = tmp_path / "k600" / "juggling"
  media.mkdir(parents=True)
  # Frame i has gray level 8 i, so that its brightness identifies it.
  shades = 8 * np.arange(30)
  frames = np.broadcast_to(shades[:, None, None, None], (30, 32, 48, 3)).astype(np.uint8)
  writing.write_video(media / "a.mp4", frames, fps=25, crf=0)
  video = (media / "a.mp4").read_bytes()
  arguments = [
    "--protocol=k600_frame_prediction",
    f"--media={media.parent}",
    "--size=16",
    "--count=6",
  ]
  result = _run(capsys, *arguments, f"--output={tmp_path / 'out'}")
  requests = read_requests(result["requests"])
  firsts = []
  for request in requests:
    clip = reading.read_video(request.video)
    assert clip.frames.shape == (5, 16, 16, 3)
    index = np.rint(clip.frames.mean((1, 2, 3)) / 8).astype(int)
    np.testing.assert_array_equal(np.diff(index), 1)
    # Lossless, and the pixels that a model is trained on.
    spec = ClipSpec(resolutions=((16, 16),), num_frames=5, fps=25.0)
    cut = decoding.decode(video, "video", spec, start_seconds=index[0] / 25)
    np.testing.assert_array_equal(clip.frames, cut.frames[16, 16])
    firsts.append(index[0])
  assert len(set(firsts)) > 1 and min(firsts) >= 0 and max(firsts) <= 30 - 16
  assert [r["uri"] for r in _lines(result["reference"])] == [str((media / "a.mp4").resolve())]


def test_videos_without_a_clip_are_left_out_and_named(tmp_path, capsys):
  media = tmp_path / "k600" / "juggling"
  media.mkdir(parents=True)
  frames = np.zeros((30, 16, 16, 3), np.uint8)
  for name, fps, count in (("a", 25, 30), ("slow", 15, 30), ("short", 25, 12), ("z", 30, 30)):
    writing.write_video(media / f"{name}.mp4", frames[:count], fps=fps, crf=0)
  (media / "html.mp4").write_text("<html>")
  arguments = ("--protocol=k600_frame_prediction", f"--media={media.parent}", "--size=16")
  benchmark_requests.main([*arguments, "--count=4", f"--output={tmp_path / 'out'}"])
  printed = capsys.readouterr()
  result = json.loads(printed.out)
  assert [r["uri"][-5:] for r in _lines(result["reference"])] == ["a.mp4", "z.mp4"]
  assert (result["reference_files"], result["left_out"], result["count"]) == (2, 3, 4)
  for name in ("slow", "short", "html"):
    assert f"left out {media / name}.mp4: " in printed.err
  for name in ("a", "z"):
    (media / f"{name}.mp4").unlink()
  with pytest.raises(SystemExit, match=r"no video has 16 frames at 25 fps"):
    benchmark_requests.main([*arguments, "--count=4", f"--output={tmp_path / 'none'}"])


def test_references_that_are_too_short_or_slow_are_left_out_and_named(ucf, tmp_path, capsys):
  # 16 frames at 8 fps are shown until 1.875 s.
  for name, count in (("B/short.avi", 46), ("B/long.avi", 48)):
    writing.write_video(ucf / name, np.zeros((count, 16, 16, 3), np.uint8), fps=25)
  writing.write_video(ucf / "B/slow.avi", np.zeros((50, 16, 16, 3), np.uint8), fps=5)
  (ucf / "B/html.avi").write_text("<html>")
  arguments = ["--protocol=ucf101_zero_shot", f"--media={ucf}", "--count=4"]
  benchmark_requests.main([*arguments, f"--output={tmp_path / 'out'}"])
  printed = capsys.readouterr()
  result = json.loads(printed.out)
  assert (result["reference_files"], result["left_out"], result["count"]) == (5, 3, 4)
  assert "B/slow.avi: got 5 fps, expected at least 8" in printed.err
  assert "B/short.avi: 15 frames at 8 fps, expected 16" in printed.err
  assert "left out " + str(ucf / "B/html.avi") in printed.err
  # Every reference can be scored.
  media = media_files.find_media(result["reference"])
  protocol = PROTOCOLS["ucf101_zero_shot"].replace(size=(16, 16), sample_count=None)
  for clip in clip_sources.plan_samples(media, protocol):
    assert clip_sources.read_clip(clip, protocol, ClipRule.CENTRAL).shape == (16, 16, 16, 3)
  benchmark_requests.main(
    [*arguments[1:], "--protocol=ucf101_stylegan_v", f"--output={tmp_path / 'v'}"]
  )
  # Its clips have 16 frames at the files' rate.
  assert json.loads(capsys.readouterr().out)["left_out"] == 0


def test_hidden_and_other_files_are_no_classes_and_no_references(ucf, tmp_path, capsys):
  for name in (".ipynb_checkpoints/1.avi", "B/._1.avi", "B/2.avi.part", "Empty/.keep"):
    (ucf / name).parent.mkdir(exist_ok=True)
    (ucf / name).write_bytes(b"x")
  arguments = ("--protocol=ucf101_zero_shot", f"--media={ucf}", "--count=3")
  result = _run(capsys, *arguments, f"--output={tmp_path / 'a'}")
  assert [line["prompt"] for line in _lines(result["requests"])] == [
    "apply lipstick", "b", "apply lipstick",
  ]  # fmt: skip
  assert result["reference_files"] == 4


def test_missing_inputs_are_named(ucf, tmp_path, capsys):
  (tmp_path / "list.txt").write_text("B/7.avi 2\n")
  with pytest.raises(SystemExit, match=r"1 of 1 files are not under .*such as B/7.avi"):
    _run(
      capsys,
      "--protocol=ucf101_class_conditional",
      f"--media={ucf}",
      f"--list={tmp_path / 'list.txt'}",
      f"--output={tmp_path / 'out'}",
    )
  with pytest.raises(SystemExit, match="2"):
    _run(capsys, "--protocol=ucf101_zero_shot", f"--output={tmp_path / 'out'}")
  assert "needs --media" in capsys.readouterr().err
