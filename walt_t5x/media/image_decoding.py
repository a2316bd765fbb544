"""One still picture out of an image file, with Pillow: upright, opaque, RGB."""

import io
import struct
from collections.abc import Sequence

import numpy as np

from walt_t5x.media.clips import Clip, ClipSpec, MediaError, check_size, fit, union
from walt_t5x.media.image_modes import ORIENTATION, to_rgb
from walt_t5x.media.rules import Rule, check_header, header_facts

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"GIF8")
# EXIF orientations that lay a picture on its side.
_TURNED = (5, 6, 7, 8)


def decode_image(content: bytes, spec: ClipSpec, *, rules: Sequence[Rule] = ()) -> Clip:
  """One upright RGB image at every resolution, area averaged like video frames.

  Transparent pixels are laid over white, 16 bits a channel become 8, CMYK goes through its own colour profile where it
  has one; of an animation the first picture is taken.

  Raises:
    MediaError: 'not_media', 'corrupt', 'truncated', 'too_large' or 'unknown_range'.
    Rejected: 'too_small', or by a filter.
  """
  import PIL
  from PIL import Image, ImageOps

  try:
    with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
      size = (image.height, image.width)
      # Pillow states the size of a TIFF as its tag turns it, that of other formats as they are stored.
      if image.format != "TIFF" and image.getexif().get(ORIENTATION) in _TURNED:
        size = (image.width, image.height)
      check_size(size, spec)
      check_header(header_facts(size, pixel_aspect=1.0, video=None), rules)
      image.load()
      if image.mode == "F":
        raise MediaError("unknown_range", "pixels are floats, of which no file says what white is")
      # Pixels first: turning knows fewer modes than opening.
      image = ImageOps.exif_transpose(to_rgb(image))
      check_size((image.height, image.width), spec)
  except PIL.UnidentifiedImageError as error:
    known = content.startswith(_SIGNATURES)
    formats = ", ".join(IMAGE_FORMATS)
    raise MediaError(
      "corrupt" if known else "not_media", f"no image that Pillow reads as one of {formats}"
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
