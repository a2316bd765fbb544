"""Converts images of any Pillow mode to RGB, in the same way for preprocessing and generation."""

import io
from typing import Any

import numpy as np

ORIENTATION = 0x0112  # EXIF tag of the orientation.


def to_rgb(image: Any) -> Any:
  """The image in RGB. Its EXIF orientation is kept and not yet applied.

  Transparent pixels are blended with white, 16-bit channels become 8-bit, CMYK is converted with its own color profile
  if it has one.

  Args:
    image: a `PIL.Image.Image`.
  """
  from PIL import Image

  exif = image.getexif()
  if image.mode in ("I", "I;16", "I;16L", "I;16B", "I;16N"):
    # Pillow would clip 16-bit values at 255 instead of scaling them.
    values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
    image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
  elif image.mode == "CMYK":
    image = _from_cmyk(image)
  elif image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
  image = image.convert("RGB")
  if ORIENTATION in exif:
    image.getexif()[ORIENTATION] = exif[ORIENTATION]
  return image


def _from_cmyk(image):
  """RGB by the file's own color profile, else by (1 - ink) (1 - black)."""
  from PIL import ImageCms

  profile = image.info.get("icc_profile")
  if profile:
    try:
      return ImageCms.profileToProfile(
        image, io.BytesIO(profile), ImageCms.createProfile("sRGB"), outputMode="RGB"
      )
    except (ImageCms.PyCMSError, OSError):
      pass
  return image.convert("RGB")
