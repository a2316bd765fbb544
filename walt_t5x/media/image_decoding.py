"""Decodes an image file with Pillow to one upright, opaque RGB image."""

import io
import struct
from collections.abc import Sequence

import numpy as np

from walt_t5x.media.clips import Clip, ClipSpec, MediaError, check_size, fit, union
from walt_t5x.media.image_modes import ORIENTATION, to_rgb
from walt_t5x.media.rules import Rule, check_header, header_facts

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"GIF8")
# EXIF orientations that swap height and width.
_TURNED = (5, 6, 7, 8)


def decode_image(content: bytes, spec: ClipSpec, *, rules: Sequence[Rule] = ()) -> Clip:
  """One upright RGB image at every resolution, resized with area averaging like video frames.

  Transparent pixels are composited over white, 16 bits per channel become 8, and CMYK is converted with its embedded
  color profile if there is one. The first frame of an animation is decoded.

  Raises:
    MediaError: 'not_media', 'corrupt', 'truncated', 'too_large' or 'unknown_range'.
    Rejected: 'too_small', or by a filter.
  """
  import PIL
  from PIL import Image, ImageOps

  try:
    with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
      size = (image.height, image.width)
      # Pillow reports the size of a TIFF after rotation by its tag, that of other formats as stored.
      if image.format != "TIFF" and image.getexif().get(ORIENTATION) in _TURNED:
        size = (image.width, image.height)
      check_size(size, spec)
      check_header(header_facts(size, pixel_aspect=1.0, video=None), rules)
      image.load()
      if image.mode == "F":
        raise MediaError("unknown_range", "pixels are floats, whose value range is unknown")
      # Convert first: exif_transpose supports fewer modes than open.
      image = ImageOps.exif_transpose(to_rgb(image))
      check_size((image.height, image.width), spec)
  except PIL.UnidentifiedImageError as error:
    known = content.startswith(_SIGNATURES)
    formats = ", ".join(IMAGE_FORMATS)
    raise MediaError(
      "corrupt" if known else "not_media", f"not an image that Pillow reads as one of {formats}"
    ) from error
  except Image.DecompressionBombError as error:
    raise MediaError("too_large", str(error)) from error
  except (OSError, SyntaxError, struct.error) as error:
    cut = "truncated" in str(error).lower()
    raise MediaError("truncated" if cut else "corrupt", str(error)) from error

  frames, crops = {}, []
  for height, width in spec.resolutions:
    place = fit((image.height, image.width), (height, width))
    scaled = image.resize((place.scaled[1], place.scaled[0]), Image.Resampling.BOX)
    top, left = place.offset
    frames[height, width] = np.asarray(scaled.crop((left, top, left + width, top + height)))[None]
    crops.append(place.crop)
  return Clip(frames=frames, fps=0.0, start_seconds=0.0, crop=union(crops), motion=0.0)
