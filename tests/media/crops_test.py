"""A crop shows what a file with nothing but the crop shows; numpy, Pillow and ffmpeg cut the references."""

import io
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from tests.beam_jobs import media
from tests.media import conformance
from tests.media.awkward_media_test import LOSSLESS, encode, pictures, spec
from walt_t5x.media import geometry
from walt_t5x.media.decoding import decode
from walt_t5x.media.rules import Rejected, Rule

HEIGHT, WIDTH = 96, 160
# (top, bottom, left, right) in pixels of 96 x 160, as stored or turned by a quarter.
BOX = (16, 80, 24, 72)


def fractions(box, height: int, width: int) -> geometry.Crop:
  top, bottom, left, right = box
  return round(top / height, 6), round(bottom / height, 6), left / width, right / width


def cut(shot, box) -> list[np.ndarray]:
  top, bottom, left, right = box
  return [picture[top:bottom, left:right] for picture in shot]


def placed(crop, box) -> tuple[int, int, int, int]:
  """The crop of a record of a file that was cut at a box, in the picture from which it was cut."""
  return crop[0] + box[0], crop[1] + box[2], *crop[2:]


def assert_same(one, other, box, *, tolerance: int = 0) -> None:
  assert one.crop == placed(other.crop, box)
  for size, frames in other.frames.items():
    assert np.abs(one.frames[size].astype(int) - frames).max() <= tolerance


def with_matrix(content: bytes, matrix: tuple[int, int, int, int]) -> bytes:
  """An MP4 whose track header has the display matrix a, b, c, d."""
  changed, one = bytearray(content), 1 << 16
  at = changed.index(b"tkhd") + 4 + 4 + 20 + 8 + 8
  a, b, c, d = (one * value for value in matrix)
  changed[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
  return bytes(changed)


def displayed(picture: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
  """The pixel at (x, y) is shown at (a x + c y, b x + d y)."""
  (a, b, c, d), (y, x) = matrix, np.mgrid[: len(picture), : picture.shape[1]]
  column, row = a * x + c * y, b * x + d * y
  column, row = column - column.min(), row - row.min()
  shown = np.zeros((row.max() + 1, column.max() + 1, 3), np.uint8)
  shown[row, column] = picture
  return shown


MATRICES = [(a, 0, 0, d) for a in (1, -1) for d in (1, -1)]
MATRICES += [(0, b, c, 0) for b in (1, -1) for c in (1, -1)]


@pytest.mark.parametrize("matrix", MATRICES)
@pytest.mark.parametrize("aspect", [1, 2])
def test_a_crop_is_of_the_picture_as_it_is_shown(matrix, aspect):
  stored = pictures(5, HEIGHT, WIDTH)
  y, x = np.mgrid[:HEIGHT, :WIDTH]
  shown = displayed(np.stack([y, x, 0 * x], axis=-1), matrix)
  turned = shown.shape[0] == WIDTH
  box = (24, 72, 16, 80) if turned else (16, 80, 24, 72)
  rows, columns, _ = np.moveaxis(cut([shown], box)[0].astype(int), -1, 0)
  kept = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
  fields = {"resolutions": ((32, 48) if turned else (48, 32), (24, 24)), "allow_upscale": True}
  file, alone = (
    with_matrix(encode(shot, sar=Fraction(aspect), **LOSSLESS), matrix)
    for shot in (stored, cut(stored, kept))
  )
  found = decode(file, "video", spec(**fields), crop=fractions(box, *shown.shape[:2]))
  assert_same(found, decode(alone, "video", spec(**fields)), box)


def planes_file(planes, pix_fmt: str) -> bytes:
  """A lossless file of frames of three planes."""
  stream = io.BytesIO()
  with av.open(stream, "w", format="matroska") as output:
    track = output.add_stream("ffv1", rate=12)
    track.pix_fmt, (track.height, track.width) = pix_fmt, planes[0].shape
    for k in range(6):
      frame = av.VideoFrame(track.width, track.height, pix_fmt)
      for plane, values in zip(frame.planes, planes, strict=True):
        padded = np.zeros((plane.height, plane.line_size), np.uint8)
        padded[:, : plane.width] = np.roll(values, k, 1)[:, : plane.width] if k else values
        plane.update(padded)
      output.mux(track.encode(frame))
    output.mux(track.encode())
  return stream.getvalue()


@pytest.mark.parametrize(
  ("pix_fmt", "rows", "columns"),
  [("yuv420p", 2, 2), ("yuv422p", 1, 2), ("yuv444p", 1, 1), ("yuv411p", 1, 4)],
)
@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (HEIGHT + 1, WIDTH + 1)])
def test_samples_of_color_are_not_divided(pix_fmt, rows, columns, size):
  random = np.random.default_rng(0)
  (height, width), odd = size, size[0] % 2
  luma = random.integers(16, 236, size, np.uint8)
  small = -(-height // rows), -(-width // columns)
  chroma = [random.integers(16, 240, small, np.uint8) for _ in "uv"]
  # Edges are moved inward to even pixels, or to samples of color; those of the picture stay.
  top, bottom, left, right = (16, height, 24, width) if odd else BOX
  down, across = max(2, rows) - 1, max(2, columns) - 1
  crop = fractions((top - down, bottom + down, left - across, right + across), height, width)
  crop = tuple(min(1.0, edge) for edge in crop)
  content = planes_file([luma, *chroma], pix_fmt)
  parts = [luma[top:bottom, left:right]]
  parts += [
    u[top // rows : -(-bottom // rows), left // columns : -(-right // columns)] for u in chroma
  ]
  fields = {"resolutions": ((bottom - top, right - left), (32, 24)), "num_frames": 1}
  found = decode(content, "video", spec(**fields), crop=crop)
  reference = decode(planes_file(parts, pix_fmt), "video", spec(**fields))
  assert_same(found, reference, (top, bottom, left, right))


@pytest.mark.skipif(conformance.FFMPEG is None, reason="needs the ffmpeg command")
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_a_crop_is_that_of_ffmpegs_filter(rotation, tmp_path):
  # FFmpeg turns the picture upright before its filters, and with it the places of color samples.
  codec = LOSSLESS if rotation else {"codec": "libx264", "pix_fmt": "yuv420p", "container": "mp4"}
  content = encode(pictures(6, HEIGHT, WIDTH), rotation=rotation, **codec)
  (tmp_path / "a.mp4").write_bytes(content)
  shape = (WIDTH, HEIGHT) if rotation % 180 else (HEIGHT, WIDTH)
  box = (24, 72, 16, 80) if rotation % 180 else BOX
  place = f"crop={box[3] - box[2]}:{box[1] - box[0]}:{box[2]}:{box[0]}"
  source = ("-i", str(tmp_path / "a.mp4"), "-vf", place, "-c:v", "ffv1")
  conformance.ffmpeg(*source, str(tmp_path / "b.mkv"))
  fields = {"resolutions": ((48, 48), (32, 24))}
  reference = decode((tmp_path / "b.mkv").read_bytes(), "video", spec(**fields))
  found = decode(content, "video", spec(**fields), crop=fractions(box, *shape))
  assert_same(found, reference, box, tolerance=1 if rotation else 0)


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_crop_of_an_image_is_pillows(orientation):
  stored = pictures(1, 67, 95)[0]
  upright = np.rot90(stored, -1) if orientation == 6 else stored
  # Images have no samples of color to divide: any pixel is an edge.
  box = (7, 60, 11, 64)
  exif, source, reference = Image.Exif(), io.BytesIO(), io.BytesIO()
  exif[0x0112] = orientation
  Image.fromarray(stored).save(source, "PNG", exif=exif)
  Image.fromarray(upright).crop((box[2], box[0], box[3], box[1])).save(reference, "PNG")
  fields = {"resolutions": ((53, 53), (32, 24))}
  crop = fractions(box, *upright.shape[:2])
  found = decode(source.getvalue(), "image", spec(**fields), crop=crop)
  assert_same(found, decode(reference.getvalue(), "image", spec(**fields)), box)


@pytest.mark.parametrize("modality", ["image", "video"])
@pytest.mark.parametrize("size", [(64, 96), (65, 67)])
def test_the_entire_picture_is_no_crop(modality, size):
  shot = pictures(6, *size)
  content = encode(shot)
  if modality == "image":
    stream = io.BytesIO()
    Image.fromarray(shot[0]).save(stream, "PNG")
    content = stream.getvalue()
  wanted = spec(resolutions=((48, 48), (32, 64)))
  assert_same(
    decode(content, modality, wanted, crop=geometry.EVERYTHING),
    decode(content, modality, wanted),
    (0, 0, 0, 0),
  )


def test_edges_are_inside_of_the_crop_and_as_close_to_it_as_their_step():
  random = np.random.default_rng(0)
  for _ in range(500):
    size = tuple(int(n) for n in random.integers(16, 9000, 2))
    steps = tuple(int(n) for n in random.choice([1, 2, 4], 2))
    edges = [np.sort(random.permutation(np.linspace(0, 1, 33))[:2]).round(6) for _ in range(2)]
    box = geometry.pixels_of((*edges[0], *edges[1]), size, steps=steps)
    for axis, (low, high) in enumerate(edges):
      first, after = box[2 * axis : 2 * axis + 2]
      assert first < after <= size[axis] and first % steps[axis] == 0
      # Of a smaller crop, which may have no such edges in it, one pixel is left.
      if (high - low) * size[axis] >= 2 * steps[axis]:
        assert after % steps[axis] == 0 or (high == 1 and after == size[axis])
        assert -0.01 < first - low * size[axis] < steps[axis]
        assert -0.01 < high * size[axis] - after < (1 if high == 1 else steps[axis])


def test_an_edge_of_a_pixel_is_that_pixel_in_six_digits():
  for length in (719, 1080, 8191):
    for pixel in range(1, length - 1, 13):
      edge = round(pixel / length, 6)
      assert geometry.pixels_of((edge, 1.0, 0.0, edge), (length, length))[0] == pixel
      assert geometry.pixels_of((edge, 1.0, 0.0, edge), (length, length))[3] == pixel


def test_a_crop_of_a_crop_is_one_of_the_picture():
  random = np.random.default_rng(0)
  for _ in range(100):
    outer, inner = (np.sort(random.random((2, 2)).round(6), axis=1).ravel() for _ in range(2))
    found = geometry.within(tuple(outer), tuple(inner))
    for axis in (slice(0, 2), slice(2, 4)):
      expected = np.interp(inner[axis], (0, 1), outer[axis])
      np.testing.assert_allclose(found[axis], expected, atol=1e-6)
    assert geometry.within(tuple(outer), geometry.EVERYTHING) == tuple(outer)


@pytest.mark.parametrize("modality", ["image", "video"])
def test_rules_see_the_size_of_the_crop(modality):
  content = media.image(height=64, width=96) if modality == "image" else media.video(width=96)
  crop = (0.25, 0.75, 0.0, 0.625)  # 32 x 60
  wanted = spec(resolutions=((32, 32),))
  holding = ["height==32", "width==60", "short_side==32", "pixels==1920", "aspect==1.875"]
  rules = [Rule.parse(text) for text in holding]
  decode(content, modality, wanted, crop=crop, rules=rules)
  for text in holding:
    with pytest.raises(Rejected, match=text.partition("=")[0]):
      decode(content, modality, wanted, rules=[Rule.parse(text)])
  with pytest.raises(Rejected, match="32x60") as error:
    decode(content, modality, spec(resolutions=((48, 48),)), crop=crop)
  assert error.value.reason == "too_small"
  # The limit is that of the file.
  with pytest.raises(ValueError, match="limit") as error:
    decode(content, modality, spec(resolutions=((16, 16),), max_pixels=64 * 96 - 1), crop=crop)
  assert error.value.reason == "too_large"
