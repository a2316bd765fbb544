"""Opens images with Pillow, in one way for every program: upright, opaque, RGB.

Only formats on the list are opened, so that Pillow does not start another program.
"""

import contextlib
import io
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from walt_t5x.media.reading import MediaError, Source, opened

if TYPE_CHECKING:
  from PIL.Image import Image as Picture

PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF", "GIF")
_PICTURE_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"GIF8")
_ORIENTATION = 0x0112  # EXIF tag of the orientation.
# Pillow's transpositions that make EXIF orientations 2 to 8 upright; from 5 on, height and width are swapped.
_TURNS = (0, 3, 1, 5, 4, 6, 2)
# Of a PNG's texts and profile, decompressed.
_MAX_TEXT_BYTES = 64 * 2**20


def open_picture(
  source: Source, *, check: Callable[[tuple[int, int]], None] | None = None
) -> "Picture":
  """Reads an image: upright by its EXIF orientation, opaque, RGB.

  Transparent pixels are composited over white, 16 bits per channel become 8, and CMYK is converted with its embedded
  color profile if there is one. The first frame of an animation is read.

  Args:
    source: a local path or the bytes of a file in one of PICTURE_FORMATS.
    check: called with the upright (height, width) before the pixels are decoded; may raise.

  Raises:
    MediaError: 'empty', 'not_media', 'corrupt', 'truncated', 'too_large' or 'unknown_range'.
  """
  import PIL
  from PIL import Image, PngImagePlugin

  PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = _MAX_TEXT_BYTES
  with opened(source) as file:
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
        return _upright(_to_rgb(image), turned)
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


def _stored_orientation(image: "Picture") -> int:
  """The EXIF orientation, 1 to 8; 1 (upright) if there is none, or none that can be read."""
  try:
    return int(image.getexif().get(_ORIENTATION, 1))
  except (OSError, SyntaxError, ValueError, TypeError, struct.error):
    return 1


def _upright(image: "Picture", orientation: int) -> "Picture":
  from PIL.Image import Transpose

  return image.transpose(Transpose(_TURNS[orientation - 2])) if 2 <= orientation <= 8 else image


def _to_rgb(image: "Picture") -> "Picture":
  """The image in RGB, as stored."""
  from PIL import Image

  if image.mode in ("I", "I;16", "I;16L", "I;16B", "I;16N"):
    # Pillow would clip 16-bit values at 255 instead of scaling them.
    values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
    image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
  elif image.mode == "CMYK":
    image = _from_cmyk(image)
  elif image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
  return image.convert("RGB")


def _from_cmyk(image: "Picture") -> "Picture":
  """RGB by the file's own color profile, else by (1 - ink) (1 - black)."""
  from PIL import ImageCms

  if profile := image.info.get("icc_profile"):
    with contextlib.suppress(ImageCms.PyCMSError, OSError):
      converted = ImageCms.profileToProfile(
        image, io.BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode="RGB"
      )
      if converted:
        return converted
  return image.convert("RGB")
