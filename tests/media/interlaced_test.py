"""Interlaced video: rejected by name, or deinterlaced as FFmpeg's command line does it; other video is untouched."""

import io
import types

import av
import numpy as np
import pytest

from tests.beam_jobs import media
from tests.media import conformance
from walt_t5x.html import inspection
from walt_t5x.media import reading
from walt_t5x.media.clips import ClipSpec
from walt_t5x.media.decoding import decode
from walt_t5x.media.rules import Rejected

WIDTH, HEIGHT, RATE, COUNT = 96, 64, 25, 150
LUMA = np.array([0.299, 0.587, 0.114])
CODECS = {
  "mpg": ("mpeg2video", ("-flags", "+ildct+ilme", "-q:v", "2", "-bf", "2", "-top", "1")),
  "mp4": ("libx264", ("-x264-params", "tff=1")),
  "avi": ("mpeg4", ("-flags", "+ildct+ilme", "-q:v", "2", "-bf", "2")),
}
needs_ffmpeg = pytest.mark.skipif(conformance.FFMPEG is None, reason="needs the ffmpeg command")


@pytest.fixture(scope="module", params=CODECS)
def file(request, tmp_path_factory):
  """Two fields of 50 per second are the lines of one frame of 25; the upper is first in MPEG-2, else the lower."""
  codec, options = CODECS[request.param]
  path = tmp_path_factory.mktemp("interlaced") / f"a.{request.param}"
  source = f"testsrc2=size={WIDTH}x{HEIGHT}:rate={2 * RATE}:duration={COUNT / RATE}"
  woven = ("-f", "lavfi", "-i", f"{source},interlace=scan=tff:lowpass=0", "-c:v", codec)
  try:
    conformance.ffmpeg(*woven, *options, str(path))
  except RuntimeError as error:
    if "-top" not in options:
      pytest.skip(f"this FFmpeg cannot write it: {error}")
    # Newer releases have no option -top: they take it from the frames.
    conformance.ffmpeg(*woven, *options[: options.index("-top")], str(path))
  return path


def spec(**fields) -> ClipSpec:
  return ClipSpec(resolutions=((HEIGHT, WIDTH),), num_frames=5, fps=RATE, **fields)


def filtered(file, form: str, *shape: int) -> np.ndarray:
  """Frames as the command line deinterlaces them, in one thread: with more, it decodes interlaced MPEG-4 otherwise."""
  raw = conformance.ffmpeg(
    *("-threads", "1", "-i", str(file), "-fps_mode", "passthrough", "-pix_fmt", form),
    *("-vf", "bwdif=mode=send_frame"),
    *("-f", "rawvideo", "-"),
  )
  return np.frombuffer(raw, np.uint8).reshape(-1, *shape).astype(int)


@needs_ffmpeg
def test_every_frame_is_that_of_the_filter_on_the_command_line(file):
  def read(deinterlace):
    with reading.open_video(file) as video:
      shown = list(video.frames(deinterlace=deinterlace))
      ends = [seconds + video.duration(frame) for seconds, frame in shown]
    return [s for s, _ in shown], ends, [f.to_ndarray(format="yuv420p") for _, f in shown]

  (times, ends, frames), (woven_times, woven_ends, woven) = read(True), read(False)
  expected = filtered(file, "yuv420p", HEIGHT * 3 // 2, WIDTH)
  assert len(frames) == len(expected) == COUNT
  # Releases of FFmpeg differ in the upper edge of the first frame, which has no frame before it.
  assert np.abs(np.stack(frames).astype(int) - expected)[1:].max() <= 1
  assert np.abs(frames[0].astype(int) - expected[0])[3:HEIGHT].max() <= 1
  assert np.abs(np.stack(woven).astype(int) - expected).mean() > 1
  assert times == woven_times and ends == pytest.approx(woven_ends)


@needs_ffmpeg
def test_a_clip_is_rejected_by_name_or_deinterlaced(file):
  with pytest.raises(Rejected, match="--deinterlace") as error:
    decode(file.read_bytes(), "video", spec())
  assert error.value.reason == "interlaced"
  expected = filtered(file, "rgb24", HEIGHT, WIDTH, 3) @ LUMA
  # The second start is found by seeking, the third is the end of the file.
  for first in (1, 120, COUNT - 5):
    start = first / RATE
    clip = decode(file.read_bytes(), "video", spec(deinterlace=True), start_seconds=start)
    luma = clip.frames[HEIGHT, WIDTH] @ LUMA
    far = [np.abs(luma - expected[k : k + 5]).mean() for k in (first, first - 1)]
    assert far[0] < 1.5 < 3 < far[1], (first, far)


@needs_ffmpeg
def test_the_page_on_a_cache_shows_the_source_of_a_record(file):
  record = types.SimpleNamespace(
    uri=str(file), modality="video", start_seconds=0.0, manifest_crop=None
  )
  origin = types.SimpleNamespace(num_frames=5, fps=RATE)
  (frames,) = inspection.source_clip(record, [(HEIGHT, WIDTH)], "", origin).values()
  wanted = decode(file.read_bytes(), "video", spec(deinterlace=True), start_seconds=0.0)
  np.testing.assert_array_equal(frames, wanted.frames[HEIGHT, WIDTH])


def test_progressive_video_stays_as_it_is():
  content = media.video(num_frames=24)
  for start in (0.0, 0.5, 1.0):
    plain, filtered = (
      decode(
        content,
        "video",
        ClipSpec(resolutions=((64, 64),), num_frames=9, fps=12, deinterlace=deinterlace),
        start_seconds=start,
      )
      for deinterlace in (False, True)
    )
    np.testing.assert_array_equal(plain.frames[64, 64], filtered.frames[64, 64])
    assert plain.start_seconds == filtered.start_seconds


def test_sizes_that_change_lose_no_frame():
  buffer = io.BytesIO()
  for size in (32, 64, 48):
    part = io.BytesIO()
    with av.open(part, "w", format="mpegts") as output:
      track = output.add_stream("mpeg2video", rate=25, options={"flags": "+ildct+ilme"})
      track.height = track.width = size
      track.pix_fmt = "yuv420p"
      for number in range(4):
        drawn = np.random.default_rng(number).integers(0, 256, (size, size, 3)).astype(np.uint8)
        output.mux(track.encode(av.VideoFrame.from_ndarray(drawn, format="rgb24")))
      output.mux(track.encode())
    buffer.write(part.getvalue())

  def shown(deinterlace):
    with reading.open_video(buffer.getvalue()) as video:
      frames = list(video.frames(deinterlace=deinterlace))
    assert all(frame.interlaced_frame != deinterlace for _, frame in frames)
    return [(seconds, frame.height) for seconds, frame in frames]

  woven = shown(False)
  assert {height for _, height in woven} == {32, 64, 48} and len(woven) >= 10
  assert shown(True) == woven
