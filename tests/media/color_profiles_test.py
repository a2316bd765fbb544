"""Color profiles of images, against the formulas of their color spaces; kinds of images that are rejected by name."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from tests.media import conformance, picture_cells
from walt_t5x.media.pictures import open_picture
from walt_t5x.media.reading import MediaError

# Chromaticities of red, green, blue and of the white point D65.
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
DISPLAY_P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
ADOBE_RGB = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
D65, D50 = (0.3127, 0.3290), np.array([0.9642, 1.0, 0.8249])
BRADFORD = np.array(
  [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
ADOBE_GAMMA = 563 / 256


def to_xyz(primaries) -> np.ndarray:
  """Linear RGB to XYZ with the white point D65."""
  xyz = [np.array([x / y, 1, (1 - x - y) / y]) for x, y in (*primaries, D65)]
  columns = np.stack(xyz[:3], axis=1)
  return columns * np.linalg.solve(columns, xyz[3])


def from_srgb(v):
  return np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)


def shown(pixels: np.ndarray, primaries, linear) -> np.ndarray:
  """Pixels [..., 3] of an RGB space as sRGB, by the formulas of both."""
  light = linear(pixels / 255) @ np.linalg.inv(to_xyz(SRGB)).dot(to_xyz(primaries)).T
  light = np.clip(light, 0, 1)
  return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def profile(primaries=None, linear=from_srgb) -> bytes:
  """An ICC profile, version 2: a curve of 1024 entries and, unless it is for gray, the matrix of `primaries`."""
  curve = np.rint(65535 * linear(np.linspace(0, 1, 1024))).astype(">u2").tobytes()
  curve = b"curv\0\0\0\0" + struct.pack(">I", 1024) + curve

  def xyz(values):
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in values))

  tags = {
    b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(79),
    b"wtpt": xyz(D50),
  }
  if primaries:
    white = to_xyz(primaries).sum(axis=1)
    scale = np.diag((BRADFORD @ D50) / (BRADFORD @ white))
    columns = (np.linalg.inv(BRADFORD) @ scale @ BRADFORD @ to_xyz(primaries)).T
    tags |= {name: xyz(column) for name, column in zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns)}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
  else:
    tags[b"kTRC"] = curve
  at, table, content = 128 + 4 + 12 * len(tags), b"", b""
  for name, tag in tags.items():
    table += struct.pack(">4sII", name, at + len(content), len(tag))
    content += tag + bytes(-len(tag) % 4)
  space = b"RGB " if primaries else b"GRAY"
  head = struct.pack(
    ">I4sI4s4s4s", at + len(content), bytes(4), 0x02400000, b"mntr", space, b"XYZ "
  )
  head += bytes(12) + b"acsp" + bytes(28) + struct.pack(">3i", *(round(v * 65536) for v in D50))
  return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + content


def gamma(power):
  return lambda v: v**power


SPACES = {
  "Display P3": (DISPLAY_P3, from_srgb),
  "Adobe RGB": (ADOBE_RGB, gamma(ADOBE_GAMMA)),
}
DRAWN = np.stack(
  np.meshgrid(np.arange(0, 256, 5), np.arange(0, 256, 5), indexing="ij"), axis=-1
).astype(np.uint8)
DRAWN = np.concatenate([DRAWN, 255 - DRAWN[::-1, :, :1] // 2], axis=-1)
FORMATS = {
  "PNG": {},
  "TIFF": {},
  "WEBP": {"lossless": True},
  "AVIF": {"quality": 100, "subsampling": "4:4:4"},
  "JPEG": {"quality": 100, "subsampling": 0},
}


def saved(image: Image.Image, kind="PNG", icc: bytes | None = None, **options) -> bytes:
  stream = io.BytesIO()
  image.save(stream, kind, icc_profile=icc, **options)
  return stream.getvalue()


def opened(content: bytes) -> np.ndarray:
  return np.asarray(open_picture(content)).astype(float)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("kind", FORMATS)
def test_a_picture_is_converted_as_the_formulas_say(space, kind):
  content = saved(Image.fromarray(DRAWN), kind, profile(*SPACES[space]), **FORMATS[kind])
  stored = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
  far = np.abs(opened(content) - shown(stored, *SPACES[space]))
  assert far.mean() < 0.6 and np.quantile(far, 0.999) <= 2
  assert np.abs(stored - shown(stored, *SPACES[space])).mean() > 5
  np.testing.assert_array_equal(open_picture(content, color_profile=False), stored)


def test_alpha_palettes_and_gray_are_converted_too():
  p3, gray = profile(*SPACES["Display P3"]), profile(linear=gamma(1.2))
  alpha = np.full(DRAWN.shape[:2], 102, np.uint8)
  layered = Image.fromarray(np.dstack([DRAWN, alpha]))
  expected = 0.4 * shown(DRAWN, *SPACES["Display P3"]) + 0.6 * 255
  assert np.abs(opened(saved(layered, icc=p3)) - expected).max() <= 3
  palette = Image.fromarray(DRAWN).quantize(200)
  expected = shown(np.asarray(palette.convert("RGB")), *SPACES["Display P3"])
  assert np.abs(opened(saved(palette, icc=p3)) - expected).mean() < 0.6
  ramp = np.tile(np.arange(256, dtype=np.uint8), (4, 1))
  expected = shown(np.repeat(ramp[..., None], 3, -1), SRGB, gamma(1.2))
  deep = Image.fromarray(ramp.astype(np.uint16) * 257)
  for image in (Image.fromarray(ramp), deep):
    assert np.abs(opened(saved(image, icc=gray)) - expected).max() <= 3
  covered = Image.fromarray(ramp).convert("LA")
  covered.putalpha(Image.fromarray(np.full_like(ramp, 102)))
  assert np.abs(opened(saved(covered, icc=gray)) - (0.4 * expected + 0.6 * 255)).max() <= 3


def damaged() -> dict[str, bytes]:
  sound = profile(*SPACES["Adobe RGB"])
  return {
    "noise": np.random.default_rng(0).bytes(4000),
    "cut": sound[:200],
    "gray": profile(linear=gamma(1.2)),
    "CMYK": sound.replace(b"RGB ", b"CMYK"),
  }


SAME = {
  "Pillow's sRGB": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
  "another sRGB": profile(SRGB),
  "a rounded sRGB": profile(((0.642, 0.33), *SRGB[1:])),
} | damaged()


@pytest.mark.parametrize("kind", SAME)
def test_srgb_and_damaged_profiles_change_no_pixel(kind):
  np.testing.assert_array_equal(opened(saved(Image.fromarray(DRAWN), icc=SAME[kind])), DRAWN)


def test_no_bytes_of_a_profile_are_an_unnamed_error():
  random, sound = np.random.default_rng(1), profile(*SPACES["Display P3"])
  for _ in range(60):
    bad = bytearray(sound)
    for at in random.integers(0, 300, 6):
      bad[at] = random.integers(256)
    try:
      assert opened(saved(Image.fromarray(DRAWN), icc=bytes(bad))).shape == DRAWN.shape
    except MediaError as error:
      assert error.reason


# --- kinds that are rejected --------------------------------------------------------------------------


@pytest.mark.parametrize("cell", picture_cells.rejected(), ids=lambda cell: cell.name)
def test_a_kind_that_is_not_read_is_named_with_a_way_out(cell):
  with pytest.raises(MediaError, match=r"convert|range is unknown") as error:
    open_picture(cell.content())
  assert error.value.reason == cell.rejected


def test_a_png_that_states_srgb_and_an_avif_of_the_general_brand_are_read():
  stated = picture_cells.with_chunk(saved(Image.fromarray(DRAWN)), b"cICP", b"\x01\x0d\0\1")
  np.testing.assert_array_equal(opened(stated), DRAWN)
  content = saved(Image.fromarray(DRAWN), "AVIF", **FORMATS["AVIF"])
  assert content[8:12] == b"avif"
  general = content[:8] + b"mif1" + content[12:]
  np.testing.assert_array_equal(opened(general), opened(content))


@pytest.mark.skipif(conformance.FFMPEG is None, reason="needs the ffmpeg command")
@pytest.mark.parametrize(
  ("curve", "rejected"), [("smpte2084", True), ("arib-std-b67", True), ("bt709", False)]
)
def test_an_avif_of_hdr_is_rejected(curve, rejected, tmp_path):
  try:
    conformance.ffmpeg(
      *("-f", "lavfi", "-i", "testsrc2=size=64x64", "-frames:v", "1", "-c:v", "libaom-av1"),
      *("-still-picture", "1", "-cpu-used", "8", "-color_trc", curve, "-color_primaries", "bt2020"),
      *("-colorspace", "bt2020nc", "-vf", f"setparams=color_trc={curve}", str(tmp_path / "a.avif")),
    )
  except RuntimeError as error:
    pytest.skip(f"this FFmpeg cannot write it: {error}")
  if not rejected:
    assert open_picture(tmp_path / "a.avif").size == (64, 64)
    return
  with pytest.raises(MediaError, match=r"a\.avif: HDR") as error:
    open_picture(tmp_path / "a.avif")
  assert error.value.reason == "hdr"
