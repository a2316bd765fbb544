"""Segments cover a video without gaps and in bounded memory; cuts and transitions end shots."""

import itertools
import types

import av
import numpy as np
import pytest

from beam_jobs.curation import scanning, shots
from tests.beam_jobs.curation.conftest import tool
from walt_t5x.metrics import transnet_v2

FRAME = 40_000  # Microseconds, at 25 frames per second.


class _Flags:
  """A detector that flags the frames with these numbers, some frames late."""

  def __init__(self, numbers, *, late=0):
    self._numbers, self._late = numbers, late

  def __call__(self, thumbnails):
    total, told = 0, 0
    for chunk in thumbnails:
      total += len(chunk)
      ready = max(told, total - self._late)
      yield np.array([n in self._numbers for n in range(told, ready)], bool)
      told = ready
    yield np.array([n in self._numbers for n in range(told, total)], bool)


def _chunks(frames, *, sizes=(7, 100, 1)):
  """Chunks of frames whose sampled pixels are `frames`."""
  at = 0
  for size in itertools.cycle(sizes):
    part = frames[at : at + size]
    if not len(part):
      return
    at += len(part)
    begins = [FRAME * (at - len(part) + i) for i in range(len(part))]
    # Each differs from all others, so that nothing is a flash.
    thumbnails = np.random.default_rng(at).integers(0, 256, (len(part), 27, 48, 3), dtype=np.uint8)
    yield scanning.Chunk(begins, FRAME * at, None, thumbnails, list(range(len(part))), part)


def _segments(frames, flags, *, late=0, max_seconds=1e3):
  found = shots.Flagged(_chunks(frames), _Flags(flags, late=late))
  return [
    (s.start // FRAME, s.end // FRAME, s.transition, [int(f[0, 0, 0]) for f in s.frames])
    for s in shots.segments(found, max_seconds=max_seconds)
  ]


def _numbered(count):
  return np.arange(count, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)


@pytest.mark.parametrize("late", [0, 3, 500])
@pytest.mark.parametrize(
  "flags, expected",
  [
    ([], [(0, 60, False)]),
    ([19], [(0, 20, False), (20, 60, False)]),
    ([19, 20], [(0, 19, False), (19, 21, True), (21, 60, False)]),
    ([19, 20, 21], [(0, 19, False), (19, 22, True), (22, 60, False)]),
    ([0], [(0, 1, False), (1, 60, False)]),
    ([59], [(0, 60, False)]),
    ([57, 58, 59], [(0, 57, False), (57, 60, True)]),
    (range(60), [(0, 60, True)]),
    # Fewer than twelve frames between flags are part of a transition, at the end they are a shot.
    ([19, 31], [(0, 19, False), (19, 32, True), (32, 60, False)]),
    ([19, 32], [(0, 20, False), (20, 33, False), (33, 60, False)]),
    ([19, 20, 28, 50], [(0, 19, False), (19, 29, True), (29, 51, False), (51, 60, False)]),
  ],
)
def test_one_flag_is_a_cut_and_several_are_a_transition(flags, expected, late):
  found = _segments(_numbered(60), set(flags), late=late)
  assert [segment[:3] for segment in found] == expected
  assert [n for *_, numbers in found for n in numbers] == list(range(60))


@pytest.mark.parametrize("falls", [False, True])
def test_a_long_shot_is_cut_where_least_moves_in_its_second_half(falls):
  frames = np.cumsum(np.full(200, 2), dtype=np.int64).astype(np.uint8)
  # The first one is in the middle.
  for still in (25, 33, 41, 70, 80):
    frames[still:] -= np.uint8(1)  # The change before this frame is 1 instead of 2.
  if falls:
    frames = 255 - frames
  pictures = frames[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
  found = _segments(pictures, set(), max_seconds=50 * FRAME / 1e6)
  starts = [start for start, *_ in found]
  # The earliest of equals, and at most 50 frames each.
  assert starts[:3] == [0, 33, 70]
  assert [end for _, end, *_ in found[:-1]] == starts[1:] and found[-1][1] == 200
  assert all(end - start <= 51 for start, end, *_ in found)


def test_a_shot_of_exactly_the_longest_time_is_not_cut():
  for count, segments in ((50, 1), (51, 2)):
    assert len(_segments(_numbered(count), set(), max_seconds=50 * FRAME / 1e6)) == segments


def test_a_long_shot_that_scores_do_not_see_is_cut_at_its_end():
  chunk = next(_chunks(_numbered(60), sizes=(60,)))
  found = shots.Flagged([chunk._replace(sampled=[0, 20], frames=chunk.frames[[0, 20]])], _Flags(()))
  segments = list(shots.segments(found, max_seconds=50 * FRAME / 1e6))
  assert [s.end // FRAME for s in segments] == [50, 60]
  assert [len(s.frames) for s in segments] == [2, 0]


def test_memory_does_not_grow_with_the_length_of_a_shot():
  kept = []

  def endless():
    for i in range(300):
      part = np.full((10, 64, 64, 3), i % 251, np.uint8)
      begins = [FRAME * (10 * i + j) for j in range(10)]
      yield scanning.Chunk(
        begins,
        FRAME * 10 * (i + 1),
        None,
        np.zeros((10, 27, 48, 3), np.uint8),
        list(range(10)),
        part,
      )

  for segment in shots.segments(shots.Flagged(endless(), _Flags(())), max_seconds=2.0):
    kept.append(len(segment.frames))
  assert sum(kept) == 3000 and max(kept) <= 51


def test_an_error_ends_the_frames_and_loses_none_before_it():
  def damaged():
    for chunk in _chunks(_numbered(30), sizes=(13, 17)):
      yield chunk._replace(stated_end=90 * FRAME)
    raise ValueError("damaged")

  found = shots.Flagged(damaged(), _Flags({9}, late=8))
  assert [(s.start // FRAME, s.end // FRAME) for s in shots.segments(found, max_seconds=9)] == [
    (0, 10),
    (10, 30),
  ]
  assert str(found.error) == "damaged"
  assert (found.end, found.stated_end) == (30 * FRAME, 90 * FRAME)


@pytest.fixture(scope="module")
def rotated(tmp_path_factory):
  """Two seconds of 160 x 96 that are shown as 96 x 160."""
  folder = tmp_path_factory.mktemp("rotated")
  flat, turned = folder / "flat.mp4", folder / "turned.mp4"
  make = [
    "ffmpeg",
    "-v",
    "error",
    "-f",
    "lavfi",
    "-t",
    "2",
    "-i",
    "gradients=s=160x96:r=25:speed=0.1:seed=3:duration=2",
  ]
  tool(*make, "-pix_fmt", "yuv420p", str(flat))
  turn = ["ffmpeg", "-v", "error", "-i", str(flat), "-metadata:s:v", "rotate=90", "-c", "copy"]
  tool(*turn, str(turned))
  return turned


def test_a_scan_has_every_frame_upright_and_samples_at_its_rate(rotated):
  spec = scanning.ScanSpec(fps=4.0, side=48)
  chunks = list(scanning.scan(str(rotated), spec))
  begins = [begin for chunk in chunks for begin in chunk.begins]
  assert begins == [FRAME * i for i in range(50)] and chunks[-1].end == 2_000_000
  frames = np.concatenate([chunk.frames for chunk in chunks])
  assert frames.shape == (8, 80, 48, 3)
  command = [
    "ffmpeg",
    "-v",
    "error",
    "-i",
    str(rotated),
    "-vf",
    "scale=48:80:flags=area+accurate_rnd",
  ]
  raw = tool(*command, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
  theirs = np.frombuffer(raw, np.uint8).reshape(-1, 80, 48, 3)[[0, 7, 13, 19, 25, 32, 38, 44]]
  assert np.abs(frames.astype(int) - theirs).mean() < 3


def test_a_window_has_the_frames_that_are_shown_in_it(rotated):
  chunks = list(scanning.scan(str(rotated), scanning.ScanSpec(), start=0.5, end=1.21))
  begins = [begin for chunk in chunks for begin in chunk.begins]
  assert begins == [FRAME * i for i in range(13, 31)] and chunks[-1].end == 1_210_000


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
  """Waves that move in every second frame, until frame 139 of 180."""
  path = tmp_path_factory.mktemp("slow") / "slow.mp4"
  y, x = np.mgrid[:96, :160]
  with av.open(str(path), "w") as container:
    stream = container.add_stream("libx264", rate=25, options={"crf": "18"})
    stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
    for number in range(180):
      at = 3 * min((number + 1) // 2, 70)
      gray = 128 + 60 * np.sin((x + at) / 7) + 40 * np.sin((y - at + x) / 11)
      frame = np.repeat(gray.astype(np.uint8)[..., None], 3, axis=-1)
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    container.mux(stream.encode(None))
  return path


def test_frames_that_repeat_the_one_before_are_those_that_ffmpeg_drops(slow):
  class Cut:
    """Ends a shot after 130 frames."""

    def __call__(self, thumbnails):
      numbers = itertools.count()
      return (np.array([next(numbers) == 129 for _ in chunk]) for chunk in thumbnails)

  found = shots.Flagged(scanning.scan(str(slow), scanning.ScanSpec()), Cut())
  one, other = shots.segments(found, max_seconds=1e3)
  assert (one.repeated, other.repeated) == (64 / 130, 45 / 50)
  command = ["ffmpeg", "-v", "error", "-i", str(slow), "-vf", "mpdecimate", "-fps_mode", "vfr"]
  kept = len(tool(*command, "-pix_fmt", "gray", "-f", "rawvideo", "-")) // (160 * 96)
  assert 180 - kept == 64 + 45


def test_a_flash_is_not_a_cut():
  rng = np.random.default_rng(0)
  one, other = rng.integers(0, 256, (2, 27, 48, 3), dtype=np.uint8)
  video = np.stack([one] * 40 + [other] * 40)
  for at, length in ((10, 1), (20, 3), (60, 4)):
    video[at : at + length] = 255

  def ends(size):
    parts = [range(i, min(i + size, 80)) for i in range(0, 80, size)]
    chunks = (
      scanning.Chunk([FRAME * i for i in part], FRAME * part.stop, None, video[part], [], video[:0])
      for part in parts
    )
    frames = list(shots.Flagged(chunks, shots.ContentDetector()))
    assert [frame.begin for frame in frames] == [FRAME * i for i in range(80)]
    return [i for i, frame in enumerate(frames) if frame.flagged]

  assert all(ends(size) == [39] for size in (1, 7, 100))
  # What comes back may have changed a little.
  noise = rng.integers(-30, 31, video.shape)
  video = np.clip(video + noise, 0, 255).astype(np.uint8)
  assert ends(100) == [39]
  # Five frames are too long for a flash.
  video[60:65] = 255
  assert ends(100) == [39, 59, 64]


def test_content_changes_by_hue_saturation_and_luma():
  yellow, magenta = (255, 255, 0), (255, 0, 255)
  video = np.zeros((40, 27, 48, 3), np.uint8)
  video[:20], video[20:] = yellow, magenta
  # OpenCV's hue is 30 and 150 of 180; saturation and value are those of 255 for both.
  for threshold, expected in ((39.0, [19]), (41.0, [])):
    flags = np.concatenate(list(shots.ContentDetector(threshold)(iter([video[:15], video[15:]]))))
    assert len(flags) == 40 and np.flatnonzero(flags).tolist() == expected
  # Short shots are cut too.
  video[23:] = yellow
  flags = np.concatenate(list(shots.ContentDetector(30.0)(iter([video]))))
  assert np.flatnonzero(flags).tolist() == [19, 22]


def test_a_network_flags_probable_ends_and_transitions(monkeypatch):
  rng = np.random.default_rng(0)
  found = [{name: rng.random(n) for name in ("cut", "transition")} for n in (30, 1, 50)]
  network = types.SimpleNamespace(fingerprint="of the weights")
  monkeypatch.setattr(shots, "_network", lambda weights: network)
  monkeypatch.setattr(transnet_v2, "cut_probabilities", lambda network, thumbnails: iter(found))
  detector = shots.NetworkDetector.load("weights", 0.7)
  assert detector == shots.NetworkDetector("weights", "of the weights", 0.7)
  flags = np.concatenate(list(detector(iter(()))))
  expected = [a > 0.7 or b > 0.7 for one in found for a, b in zip(one["cut"], one["transition"])]
  assert flags.tolist() == expected
