"""Opens images with Pillow, in one way for every program: upright, opaque, sRGB.

Only formats on the list are opened, so that Pillow does not start another program.
"""

import functools
import io
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from walt_t5x.media.reading import MediaError, Source, check_transfer, opened

if TYPE_CHECKING:
  from PIL.Image import Image as Picture
  from PIL.ImageCms import ImageCmsTransform

PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF", "GIF")
_PICTURE_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"GIF8")
_ORIENTATION = 0x0112  # EXIF tag of the orientation.
# Pillow's transpositions that make EXIF orientations 2 to 8 upright; from 5 on, height and width are swapped.
_TURNS = (0, 3, 1, 5, 4, 6, 2)
# Of a PNG's texts and profile, decompressed.
_MAX_TEXT_BYTES = 64 * 2**20
# Profiles that change no color by more than this are sRGB, of which there are many versions.
_SAME_COLOR = 2
# Of a file, where its format and its colors are stated.
_HEAD_BYTES = 1 << 16
# Brands of HEIF files. AVIF files, which Pillow reads, also have the brand avif.
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_JPEG_XL = (b"\xff\x0a", b"\0\0\0\x0cJXL ")


def open_picture(
  source: Source,
  *,
  check: Callable[[tuple[int, int]], None] | None = None,
  color_profile: bool = True,
) -> "Picture":
  """Reads an image: upright by its EXIF orientation, opaque, RGB.

  Transparent pixels are composited over white, 16 bits per channel become 8, and colors are converted to sRGB if the
  file has a color profile that can be read. Of an animation, the first frame is read.

  Args:
    source: a local path or the bytes of a file in one of PICTURE_FORMATS.
    check: called with the upright (height, width) before the pixels are decoded; may raise.
    color_profile: whether the file's color profile is applied.

  Raises:
    MediaError: 'empty', 'not_media', 'corrupt', 'truncated', 'too_large', 'unknown_range', 'hdr', 'heic' or 'jpeg_xl'.
  """
  import PIL
  from PIL import Image, PngImagePlugin

  PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = _MAX_TEXT_BYTES
  with opened(source) as file:
    _check_format(file)
    try:
      with Image.open(file, formats=PICTURE_FORMATS) as image:
        size = (image.height, image.width)
        # Pillow applies the tag of a TIFF itself.
        turned = 1 if image.format == "TIFF" else _stored_orientation(image)
        if 5 <= turned <= 8:
          size = (image.width, image.height)
        if check:
          check(size)
        image.load()
        if image.mode == "F":
          raise MediaError("unknown_range", "pixels are floats, whose value range is unknown")
        profile = image.info.get("icc_profile") if color_profile else None
        return _upright(_to_rgb(image, profile), turned)
    except PIL.UnidentifiedImageError as error:
      file.seek(0)
      head = file.read(12)
      known = head.startswith(_PICTURE_SIGNATURES) or head[4:] == b"ftypavif"
      raise MediaError(
        "corrupt" if known else "not_media",
        f"not an image that Pillow reads as one of {', '.join(PICTURE_FORMATS)}",
      ) from error
    except Image.DecompressionBombError as error:
      raise MediaError("too_large", str(error)) from error
    except MediaError:
      raise
    except (OSError, SyntaxError, ValueError, struct.error) as error:
      cut = "truncated" in str(error).lower()
      raise MediaError("truncated" if cut else "corrupt", str(error)) from error


def stored_form(source: Source) -> tuple[str, str, tuple[int, int]]:
  """(format, mode, (height, width)) of an image as stored, in Pillow's names; decodes no pixels.

  Raises:
    OSError: it is not an image that Pillow reads.
  """
  from PIL import Image

  with opened(source) as file, Image.open(file, formats=PICTURE_FORMATS) as image:
    return str(image.format), image.mode, (image.height, image.width)


def _check_format(file: BinaryIO) -> None:
  """Raises MediaError for kinds of images that cannot be read right: 'heic', 'jpeg_xl' or 'hdr'."""
  head = file.read(_HEAD_BYTES)
  file.seek(0)
  if head.startswith(_JPEG_XL):
    raise MediaError(
      "jpeg_xl", "JPEG XL is not read: convert it, for example with `djxl IN OUT.png`"
    )
  transfer = 0
  if head[4:8] == b"ftyp":
    brands = head[8 : max(12, min(256, int.from_bytes(head[:4], "big")))]
    if brands.startswith(_HEIF) and b"avif" not in brands:
      raise MediaError(
        "heic", "HEIC is not read: convert it, for example with `heif-convert IN OUT.png`"
      )
    if (at := head.find(b"colrnclx")) > 0:
      transfer = int.from_bytes(head[at + 10 : at + 12], "big")
  elif head.startswith(b"\x89PNG") and 0 < (at := head.find(b"cICP")) < head.find(b"IDAT"):
    transfer = head[at + 5]
  check_transfer(transfer)


def _stored_orientation(image: "Picture") -> int:
  """The EXIF orientation, 1 to 8; 1 (upright) if there is none, or none that can be read."""
  try:
    return int(image.getexif().get(_ORIENTATION, 1))
  except (OSError, SyntaxError, ValueError, TypeError, struct.error):
    return 1


def _upright(image: "Picture", orientation: int) -> "Picture":
  from PIL.Image import Transpose

  return image.transpose(Transpose(_TURNS[orientation - 2])) if 2 <= orientation <= 8 else image


def _to_rgb(image: "Picture", profile: bytes | None) -> "Picture":
  """The image in sRGB by its ICC profile, over white, as stored."""
  from PIL import Image

  alpha = None
  if image.mode in ("I", "I;16", "I;16L", "I;16B", "I;16N"):
    # Pillow would clip 16-bit values at 255 instead of scaling them.
    values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
    image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
  elif image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
    form = "L" if image.mode in ("L", "LA") else "RGB"
    image = image.convert("RGBA")
    image, alpha = image.convert(form), image.getchannel("A")
  elif image.mode not in ("L", "CMYK"):
    image = image.convert("RGB")
  to_srgb = _to_srgb(profile, image.mode) if profile else None
  image = to_srgb.apply(image) if to_srgb else image.convert("RGB")
  if alpha is not None:
    image.putalpha(alpha)
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
  return image


@functools.lru_cache(maxsize=8)
def _to_srgb(profile: bytes, mode: str) -> "ImageCmsTransform | None":
  """The transform of an ICC profile; None if it is damaged, has other channels than `mode`, or is sRGB itself."""
  from PIL import Image, ImageCms

  try:
    found = ImageCms.getOpenProfile(io.BytesIO(profile))
    transform = ImageCms.buildTransform(found, ImageCms.createProfile("sRGB"), mode, "RGB")
  except (ImageCms.PyCMSError, OSError):
    return None
  if mode != "CMYK":
    levels = np.linspace(0, 255, 9).astype(np.uint8)
    colors = np.stack(np.meshgrid(*[levels] * len(mode)), axis=-1).reshape(-1, 9, len(mode))
    samples = Image.fromarray(colors.squeeze(-1) if mode == "L" else colors)
    changed = np.asarray(transform.apply(samples)).astype(int) - np.asarray(samples.convert("RGB"))
    if np.abs(changed).max() <= _SAME_COLOR:
      return None
  return transform
