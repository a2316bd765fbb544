"""What a file of media states about itself, for reports; its pixels are not decoded."""

import dataclasses

from walt_t5x.media.pictures import stored_form
from walt_t5x.media.reading import open_video


@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
  """Properties of a file as it states them, in the names of FFmpeg and Pillow.

  Args:
    container, codec, pixel_format: of an image, its format twice, and its mode.
    size: (height, width) as stored.
    rate: frames per second of a video, if stated.
    seconds: duration of its picture, if stated.
    has_sound: whether there is a sound stream.
    size_bytes: of the file.
  """

  container: str
  codec: str
  pixel_format: str
  size: tuple[int, int]
  rate: float | None = None
  seconds: float | None = None
  has_sound: bool = False
  size_bytes: int


def describe(content: bytes, modality: str, max_pixels: int) -> Facts:
  """The facts of a file.

  Args:
    content: of the complete file.
    modality: 'image' or 'video'.
    max_pixels: maximum height * width of a video.

  Raises:
    MediaError, OSError: the file cannot be opened.
  """
  if modality == "image":
    kind, mode, size = stored_form(content)
    return Facts(container=kind, codec=kind, pixel_format=mode, size=size, size_bytes=len(content))
  with open_video(content, max_pixels=max_pixels) as video:
    return Facts(
      container=video.container,
      codec=video.codec,
      pixel_format=video.pixel_format,
      size=video.size,
      rate=video.rate,
      seconds=video.seconds,
      has_sound=video.has_sound,
      size_bytes=len(content),
    )
