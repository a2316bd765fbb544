"""Media inside HTML pages as `data:` URIs, so that a page opens from disk and needs no other file."""

import base64
import io

import numpy as np


def data_uri(kind: str, content: bytes) -> str:
  """The content as a URI; `kind` is its media type, such as "video/mp4"."""
  return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def picture_uri(picture: np.ndarray) -> str:
  """A lossless image, [H, W, 3] uint8, as a URI."""
  from PIL import Image

  stream = io.BytesIO()
  Image.fromarray(picture).save(stream, format="PNG")
  return data_uri("image/png", stream.getvalue())
