"""Valid files that are easily misread: rotation, variable frame rate, non-square pixels, alpha, CMYK, 10/16 bits."""

import dataclasses
import io
from fractions import Fraction

import av
import numpy as np
import pytest
import scipy.stats
from PIL import Image

from beam_jobs.shards import loading
from beam_jobs.sources.rows import parse_line
from tests.beam_jobs import media
from walt_t5x.media.clips import ClipSpec
from walt_t5x.media.decoding import decode
from walt_t5x.media.rules import Rejected


def spec(**fields) -> ClipSpec:
  return ClipSpec(
    **{"resolutions": ((64, 64),), "num_frames": 3, "fps": 6.0, "position": "beginning"} | fields
  )


def encode(
  pictures,
  *,
  codec: str = "ffv1",
  container: str = "matroska",
  pix_fmt: str = "bgr0",
  source_format: str = "rgb24",
  rate: int = 12,
  rotation: int = 0,
  sar: Fraction | None = None,
  ticks: list[int] | None = None,
  options: dict[str, str] | None = None,
) -> bytes:
  """A file of frames (height, width, channels); `ticks` are their times in milliseconds."""
  stream = io.BytesIO()
  with av.open(stream, "w", format=container) as output:
    track = output.add_stream(codec, rate=rate, options=options or {})
    track.height, track.width = pictures[0].shape[:2]
    track.pix_fmt = pix_fmt
    if sar:
      track.codec_context.sample_aspect_ratio = sar
    if rotation:
      track.set_display_rotation(rotation)
    if ticks:
      track.codec_context.time_base = track.time_base = Fraction(1, 1000)
    for k, picture in enumerate(pictures):
      frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format=source_format)
      if ticks:
        frame.pts, frame.time_base = ticks[k], Fraction(1, 1000)
      output.mux(track.encode(frame))
    output.mux(track.encode())
  return stream.getvalue()


LOSSLESS = {"codec": "libx264rgb", "pix_fmt": "rgb24", "container": "mp4", "options": {"crf": "0"}}


def pictures(count: int, height: int, width: int) -> list[np.ndarray]:
  """Frames that differ in every pixel and are smooth enough for any chroma format."""
  y, x = np.mgrid[0:height, 0:width]
  return [
    np.stack([60 + 2 * x % 97 + 5 * k, 40 + 3 * y % 89, 100 + (x + y) % 71], axis=-1).astype(
      np.uint8
    )
    for k in range(count)
  ]


# --- time -----------------------------------------------------------------------------------------

# Times in milliseconds of frames 0, 1, 2 ...: bursts and gaps.
TICKS = [0, 40, 80, 90, 100, 500, 510, 900, 1000, 1030, 1500, 1700, 1720, 2000]
# Frames displayed at 0, 1/8, 2/8 ... s, by hand: 4 at 0.125 s (starts at 0.100), 5 at 0.5 s (starts at 0.500) etc.
SHOWN = [0, 4, 4, 4, 5, 6, 6, 6, 8, 9, 9, 9, 10, 10, 12, 12]


@pytest.mark.parametrize("container", ["matroska", "mp4"])
@pytest.mark.parametrize("first", [0, 3])
def test_uneven_times_show_the_frames_of_a_list_made_by_hand(container, first, monkeypatch):
  monkeypatch.setattr("walt_t5x.media.decoding._MIN_DISTINCT", 0.0)
  flat = [np.full((64, 64, 3), 10 + 15 * k, np.uint8) for k in range(len(TICKS))]
  codec = {"codec": "libx264", "pix_fmt": "yuv420p", "options": {"crf": "0", "bf": "2"}}
  content = encode(flat, container=container, ticks=TICKS, **codec)
  clip = decode(content, "video", spec(num_frames=16 - first, fps=8.0), start_seconds=first / 8)
  levels = clip.frames[64, 64].mean(axis=(1, 2, 3))
  numbers = (levels - 10) / 15
  assert np.abs(numbers - np.rint(numbers)).max() < 0.2
  assert np.rint(numbers).astype(int).tolist() == SHOWN[first:]


def test_a_matroska_file_that_begins_late_is_the_same_clip(monkeypatch):
  monkeypatch.setattr("walt_t5x.media.decoding._MIN_DISTINCT", 0.0)
  flat = [np.full((64, 64, 3), 10 + 15 * k, np.uint8) for k in range(len(TICKS))]
  soon, late = (
    decode(
      encode(flat, container="matroska", ticks=[first + tick for tick in TICKS]),
      "video",
      spec(num_frames=9, fps=8.0, position="centre"),
    )
    for first in (0, 100_000)
  )
  assert soon.start_seconds == late.start_seconds > 0
  np.testing.assert_array_equal(soon.frames[64, 64], late.frames[64, 64])


def test_an_uneven_file_that_shows_too_few_pictures_is_rejected():
  flat = [np.full((64, 64, 3), 15 * k, np.uint8) for k in range(len(TICKS))]
  with pytest.raises(Rejected) as error:
    decode(encode(flat, ticks=TICKS), "video", spec(num_frames=16, fps=8.0))
  assert error.value.reason == "low_frame_rate"


# --- shape ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [90, 180, 270])
@pytest.mark.parametrize("resolution", [(64, 64), (48, 32), (32, 48)])
def test_a_rotated_file_is_the_other_one_turned_by_numpy(degrees, resolution):
  shot = pictures(8, 96, 64)
  # ISO display matrices rotate counterclockwise in PyAV's convention.
  rotated = encode(shot, rotation=degrees, **LOSSLESS)
  turned = encode([np.rot90(picture, degrees // 90) for picture in shot], **LOSSLESS)
  wanted = spec(resolutions=(resolution,))
  first, second = decode(rotated, "video", wanted), decode(turned, "video", wanted)
  assert first.crop == second.crop
  assert np.abs(first.frames[resolution].astype(int) - second.frames[resolution]).max() <= 1


def test_non_square_pixels_are_displayed_square():
  shot = pictures(8, 64, 64)
  wide = decode(
    encode(shot, sar=Fraction(2, 1), **LOSSLESS), "video", spec(resolutions=((32, 32),))
  )
  # 64 x 64 is displayed 64 wide at half the height: rows are averaged in pairs, columns are unchanged.
  expected = np.stack(shot[0:6:2]).astype(float).reshape(3, 32, 2, 64, 3).mean(axis=2)[:, :, 16:48]
  assert np.abs(wide.frames[32, 32] - expected).max() <= 1
  assert wide.crop == (0, 16, 64, 32)
  tall = decode(
    encode(shot, sar=Fraction(1, 2), **LOSSLESS), "video", spec(resolutions=((32, 32),))
  )
  expected = np.stack(shot[0:6:2]).astype(float).reshape(3, 64, 32, 2, 3).mean(axis=3)[:, 16:48]
  assert np.abs(tall.frames[32, 32] - expected).max() <= 1


def test_a_size_counts_as_it_is_shown():
  content = encode(pictures(8, 64, 64), sar=Fraction(1, 2), **LOSSLESS)
  with pytest.raises(Rejected, match="64x32"):
    decode(content, "video", spec())


def test_odd_sizes_lose_nothing():
  shot = pictures(8, 67, 65)
  for codec, pix_fmt in (("ffv1", "bgr0"), ("libx264rgb", "rgb24")):
    options = {"crf": "0"} if codec == "libx264rgb" else {}
    content = encode(shot, codec=codec, pix_fmt=pix_fmt, options=options)
    clip = decode(content, "video", spec(resolutions=((67, 65),)))
    np.testing.assert_array_equal(clip.frames[67, 65], np.stack(shot[0:6:2]))


def test_square_and_oblong_resolutions_in_one_pass_are_those_of_two():
  content = media.video(height=72, width=128, noise=60)
  picture = media.image(height=72, width=128, noise=60)
  sizes = ((32, 32), (64, 64), (36, 64), (64, 36))
  for file, modality in ((content, "video"), (picture, "image")):
    both = decode(file, modality, spec(resolutions=sizes))
    crops = []
    for size in sizes:
      alone = decode(file, modality, spec(resolutions=(size,)))
      np.testing.assert_array_equal(both.frames[size], alone.frames[size])
      crops.append(alone.crop)
    top, left = min(c[0] for c in crops), min(c[1] for c in crops)
    bottom, right = max(c[0] + c[2] for c in crops), max(c[1] + c[3] for c in crops)
    assert both.crop == (top, left, bottom - top, right - left)


# --- color ----------------------------------------------------------------------------------------


def test_ten_bits_are_the_eight_bits_they_hold():
  shot = pictures(8, 64, 64)
  wanted = spec()
  eight = encode(shot, codec="libx264", pix_fmt="yuv444p", options={"crf": "0"})
  ten = encode(shot, codec="libx264", pix_fmt="yuv444p10le", options={"crf": "0"})
  first, second = (decode(content, "video", wanted).frames[64, 64] for content in (eight, ten))
  assert np.abs(first.astype(int) - second).max() <= 3
  assert np.abs(second.astype(int) - np.stack(shot[0:6:2])).max() <= 3


@pytest.mark.parametrize(("codec", "pix_fmt"), [("qtrle", "argb"), ("png", "rgba")])
def test_transparent_video_is_composited_over_white(codec, pix_fmt):
  shot = pictures(8, 64, 64)
  alpha = np.linspace(0, 255, 64).astype(np.uint8)[None, :, None] * np.ones((64, 1, 1), np.uint8)
  layered = [np.concatenate([picture, alpha], axis=-1) for picture in shot]
  content = encode(layered, codec=codec, container="mov", pix_fmt=pix_fmt, source_format="rgba")
  clip = decode(content, "video", spec())
  share = alpha / 255
  expected = np.stack(shot[0:6:2]) * share + 255 * (1 - share)
  assert np.abs(clip.frames[64, 64] - expected).max() <= 1


def saved(image: Image.Image, kind: str, **options) -> bytes:
  stream = io.BytesIO()
  image.save(stream, kind, **options)
  return stream.getvalue()


def upright(content: bytes, **fields) -> np.ndarray:
  return decode(content, "image", spec(**fields)).frames[64, 64][0]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_every_exif_orientation_shows_the_same_picture(orientation, kind):
  (picture,) = pictures(1, 64, 64)
  # A camera stores the inverse of the tag's rotation, so that the tag displays `picture`.
  stored = {
    1: picture,
    2: picture[:, ::-1],
    3: picture[::-1, ::-1],
    4: picture[::-1],
    5: picture.swapaxes(0, 1),
    6: np.rot90(picture),
    7: picture[::-1, ::-1].swapaxes(0, 1),
    8: np.rot90(picture, -1),
  }[orientation]
  exif = Image.Exif()
  exif[0x0112] = orientation
  options = {"lossless": True} if kind == "WEBP" else {}
  content = saved(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options)
  np.testing.assert_array_equal(upright(content), picture)


@pytest.mark.parametrize(
  ("mode", "kind"),
  [(mode, kind) for mode in ("L", "RGBA", "I;16", "P") for kind in ("PNG", "TIFF")]
  + [("CMYK", "TIFF")],
)
def test_a_turned_picture_of_any_mode_is_upright_and_measured_upright(mode, kind):
  (picture,) = pictures(1, 96, 64)
  gray = picture[..., 0]
  image = {
    "L": lambda: Image.fromarray(gray),
    "RGBA": lambda: Image.fromarray(np.dstack([gray] * 3 + [np.full_like(gray, 255)])),
    "CMYK": lambda: Image.fromarray(np.dstack([255 - gray] * 3 + [np.zeros_like(gray)]), "CMYK"),
    "I;16": lambda: Image.fromarray(gray.astype(np.uint16) * 257),
    "P": lambda: Image.fromarray(gray).convert("P"),
  }[mode]()
  exif = Image.Exif()
  exif[0x0112] = 6
  content = saved(image.transpose(Image.Transpose.ROTATE_90), kind, exif=exif)
  clip = decode(content, "image", spec(resolutions=((96, 64),)))
  np.testing.assert_array_equal(clip.frames[96, 64][0, ..., 1], gray)
  with pytest.raises(Rejected, match="96x64"):
    decode(content, "image", spec(resolutions=((64, 96),)))


def test_cmyk_is_multiplied():
  inks = np.random.default_rng(0).integers(0, 256, (64, 64, 4)).astype(np.uint8)
  content = saved(Image.fromarray(inks, "CMYK"), "TIFF")
  light = (255 - inks.astype(float)) / 255
  expected = 255 * light[..., :3] * light[..., 3:]
  assert np.abs(upright(content) - expected).max() <= 1.5
  # A JPEG of Photoshop stores inverted CMYK and has a marker that says so.
  flat = np.broadcast_to(np.array([200, 30, 60, 20], np.uint8), (64, 64, 4))
  content = saved(Image.fromarray(np.ascontiguousarray(flat), "CMYK"), "JPEG", quality=100)
  expected = [255 * (55 / 255) * (235 / 255), 255 * (225 / 255) * (235 / 255), 179.7]
  assert np.abs(upright(content) - expected).max() <= 3


def test_sixteen_bits_are_scaled_not_truncated():
  ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
  got = upright(saved(Image.fromarray(ramp), "PNG"))
  assert np.abs(got[..., 0] - ramp / 257).max() <= 1
  assert (got == got[..., :1]).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_images_are_composited_over_white(mode):
  (picture,) = pictures(1, 64, 64)
  alpha = np.tile(np.array([0, 255], np.uint8), (64, 32))
  layered = Image.fromarray(np.dstack([picture, alpha]))
  if mode == "P":
    palette = Image.fromarray(picture).quantize(255)
    index = np.asarray(palette).copy()
    index[alpha == 0] = 255
    image = Image.fromarray(index, "P")
    image.putpalette((palette.getpalette() + [0] * 768)[:768])
    content = saved(image, "PNG", transparency=255)
    expected = np.asarray(palette.convert("RGB"))
  else:
    content = saved(layered.convert(mode), "PNG")
    expected = np.asarray(layered.convert("RGB" if mode == "RGBA" else "L").convert("RGB"))
  got = upright(content)
  assert (got[alpha == 0] == 255).all()
  np.testing.assert_array_equal(got[alpha == 255], expected[alpha == 255])


# --- which clip -----------------------------------------------------------------------------------


def test_the_same_row_gives_the_same_clip_whatever_the_order(tmp_path):
  wanted = spec(position="random", num_frames=5, resolutions=((32, 32),))
  lines = []
  for i in range(6):
    (tmp_path / f"{i}.mp4").write_bytes(media.video(seed=i, num_frames=60, height=32, width=32))
    lines.append(f'{{"uri": "{i}.mp4", "caption": "x"}}')
  starts = {}
  for order in (range(6), reversed(range(6))):
    for i in order:
      loaded = loading.load_row(parse_line(lines[i], str(tmp_path)), wanted)
      starts.setdefault(i, set()).add(loaded.clip.start_seconds)
  assert all(len(found) == 1 for found in starts.values())
  assert len(set.union(*starts.values())) == 6
  other = loading.load_row(parse_line(lines[0], str(tmp_path)), dataclasses.replace(wanted, seed=1))
  assert other.clip.start_seconds not in starts[0]


def test_draws_are_uniform_and_stay_in_the_window():
  draws = [loading.draw(f"{np.random.default_rng(i).bytes(32).hex()}") for i in range(2000)]
  assert scipy.stats.kstest(draws, "uniform").pvalue > 0.01
  content = media.video(num_frames=60, height=32, width=32)
  wanted = spec(position="random", num_frames=5, resolutions=((32, 32),))
  # The window is 1 to 4 s, the clip 5/6 s.
  for share in (0.0, 0.25, 1 - 1e-12):
    clip = decode(content, "video", wanted, start_seconds=1.0, end_seconds=4.0, draw=share)
    assert clip.start_seconds == pytest.approx(1 + share * (3 - 5 / 6), abs=1e-5)
  alone = decode(content, "video", wanted, start_seconds=1.0, draw=0.9)
  assert alone.start_seconds == 1.0
