"""A picture of any mode of Pillow in RGB: the same for preprocessing and for what generation is given."""

import io
from typing import Any

import numpy as np

ORIENTATION = 0x0112  # EXIF tag: which side is up.


def to_rgb(image: Any) -> Any:
  """The picture in RGB, with its EXIF orientation, which still is to be applied.

  Transparent pixels are laid over white, 16 bits a channel become 8, CMYK goes through its own colour profile where it
  has one.

  Args:
    image: a `PIL.Image.Image`.
  """
  from PIL import Image

  exif = image.getexif()
  if image.mode in ("I", "I;16", "I;16L", "I;16B", "I;16N"):
    # Pillow would clip 16 bits at 255 instead of scaling them.
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
  """RGB by the file's own colour profile, else by (1 - ink) (1 - black)."""
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
