"""Pictures that Pillow writes, and what Pillow shows of them, against what the reader shows: cells of `conformance`."""

import dataclasses
import io
import itertools
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageOps

from walt_t5x.media.pictures import open_picture
from walt_t5x.media.reading import MediaError

HEIGHT, WIDTH = 51, 91
# Format -> modes that it stores.
MODES = {
  "JPEG": ("L", "RGB", "CMYK"),
  "PNG": ("1", "L", "LA", "I;16", "P", "RGB", "RGBA"),
  "WEBP": ("L", "RGB", "RGBA"),
  "AVIF": ("L", "RGB", "RGBA"),
  "BMP": ("1", "L", "P", "RGB"),
  "TIFF": ("1", "L", "LA", "I;16", "P", "RGB", "RGBA", "CMYK"),
  "GIF": ("1", "L", "P", "RGB", "RGBA"),
}
ANIMATED = {
  "GIF": {},
  "WEBP": {"lossless": True},
  "PNG": {},
  "PNG, first frame apart": {"default_image": True},
  "AVIF": {},
  "TIFF": {},
}
_ORIENTATION = 0x0112


@dataclasses.dataclass(frozen=True)
class PictureCell:
  """A picture; `rejected` is the reason of the error with which the reader rejects it."""

  name: str
  content: Callable[[], bytes]
  rejected: str = ""


def cells() -> list[PictureCell]:
  """All cells."""
  return [*_modes(), *_turned(), *_animated(), *rejected()]


def drawn(mode: str, number: int = 0) -> Image.Image:
  """A smooth picture that differs along both axes, in a mode of Pillow."""
  y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
  planes = (20 + 2 * x, 230 - 4 * y + 20 * number, (x + y) % 190 + 40 * number, 255 - 2 * x)
  pixels = np.stack(planes, axis=-1).clip(0, 255).astype(np.uint8)
  if mode == "I;16":
    return Image.fromarray((pixels[..., 0].astype(np.uint16) << 8) + pixels[..., 1])
  return (
    Image.fromarray(pixels, "CMYK") if mode == "CMYK" else Image.fromarray(pixels).convert(mode)
  )


def saved(image: Image.Image, kind: str, **options) -> bytes:
  """The file of a picture."""
  stream = io.BytesIO()
  image.save(stream, kind, **options)
  return stream.getvalue()


def _modes() -> Iterator[PictureCell]:
  for kind, modes in MODES.items():
    for mode in modes:
      name = f"picture: {kind} {mode}"
      yield PictureCell(name, lambda kind=kind, mode=mode: saved(drawn(mode), kind))


def _turned() -> Iterator[PictureCell]:
  def content(kind: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[_ORIENTATION] = orientation
    return saved(drawn("RGB"), kind, exif=exif)

  for kind, number in itertools.product(("JPEG", "PNG", "WEBP", "AVIF", "TIFF"), range(2, 9)):
    name = f"picture: {kind} EXIF orientation {number}"
    yield PictureCell(name, lambda kind=kind, number=number: content(kind, number))


def _animated() -> Iterator[PictureCell]:
  def content(kind: str, options: dict) -> bytes:
    rest = [drawn("RGB", number) for number in (1, 2)]
    return saved(drawn("RGB"), kind.split(",")[0], save_all=True, append_images=rest, **options)

  for kind, options in ANIMATED.items():
    name = f"picture: animated {kind}"
    yield PictureCell(name, lambda kind=kind, options=options: content(kind, options))


def with_chunk(content: bytes, kind: bytes, data: bytes) -> bytes:
  """A PNG with another chunk after its header."""
  chunk = struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
  return content[:33] + chunk + content[33:]


def rejected() -> Iterator[PictureCell]:
  """Kinds of pictures that are rejected by name."""

  def heif(major: bytes) -> bytes:
    return struct.pack(">I4s", 24, b"ftyp") + major + b"\0\0\0\0mif1heic" + bytes(99)

  def floats() -> bytes:
    return saved(Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)), "TIFF")

  for major in (b"heic", b"mif1"):
    name = f"picture: HEIC {major.decode()}"
    yield PictureCell(name, lambda major=major: heif(major), "heic")
  yield PictureCell("picture: JPEG XL", lambda: b"\xff\x0a" + bytes(99), "jpeg_xl")
  boxed = b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99)
  yield PictureCell("picture: JPEG XL container", lambda: boxed, "jpeg_xl")
  yield PictureCell("picture: TIFF floats", floats, "unknown_range")
  for curve, name in ((16, "PQ"), (18, "HLG")):
    stated = bytes((9, curve, 0, 1))
    content = lambda stated=stated: with_chunk(saved(drawn("RGB"), "PNG"), b"cICP", stated)  # noqa: E731
    yield PictureCell(f"picture: PNG {name}", content, "hdr")


def shown_by_pillow(content: bytes) -> np.ndarray:
  """The first frame [H, W, 3] upright over white."""
  image = Image.open(io.BytesIO(content))
  image.seek(0)
  image = ImageOps.exif_transpose(image)
  if image.mode.startswith("I;16"):
    return np.repeat(np.asarray(image)[..., None] / 257, 3, axis=-1)
  if image.has_transparency_data:
    image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    image = white
  return np.asarray(image.convert("RGB")).astype(float)


def difference(cell: PictureCell) -> str:
  """What differs between the reader and what is expected of it; empty if nothing does."""
  content = cell.content()
  try:
    shown = np.asarray(open_picture(content)).astype(float)
  except MediaError as error:
    return "" if error.reason == cell.rejected else f"{error.reason}: {error}"
  if cell.rejected:
    return f"not rejected as {cell.rejected!r}"
  expected = shown_by_pillow(content)
  if shown.shape != expected.shape:
    return f"{shown.shape} instead of {expected.shape}"
  far = np.abs(shown - expected).max()
  return f"a pixel differs by {far:.1f}" if far > 1 else ""
