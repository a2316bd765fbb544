"""Media bytes to pixels: one clip of 1+T frames, or one image, at every wanted resolution.

The same bytes and the same `ClipSpec` always give the same pixels. Every refusal is a `MediaError` with a reason.
"""

import dataclasses
import io
import struct
from collections.abc import Mapping

import numpy as np

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
_IMAGE_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"GIF8")
_BOX_TYPES = (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip", b"styp", b"moof", b"pnot")


class MediaError(ValueError):
  """Media that cannot become a record; `reason` is a code, the message explains."""

  def __init__(self, reason: str, message: str):
    super().__init__(message)
    self.reason = reason


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipSpec:
  """What to cut out of the media.

  Args:
    resolutions: (height, width) pairs, all of one aspect ratio.
    num_frames: 1 + T pixel frames of a clip.
    fps: frame rate of the clip.
    position: 'centre' or 'beginning', for rows that give no start.
    allow_upscale: whether media smaller than a resolution are enlarged instead of refused.
    max_bytes: largest file.
    max_pixels: largest frame, height * width.
    max_seconds: longest video, as it claims.
    max_decoded_frames: frames decoded for one clip, a guard against absurd frame rates.
  """

  resolutions: tuple[tuple[int, int], ...]
  num_frames: int
  fps: float
  position: str = "centre"
  allow_upscale: bool = False
  max_bytes: int = 1 << 30
  max_pixels: int = 8192 * 8192
  max_seconds: float = 6 * 3600.0
  max_decoded_frames: int = 20_000

  def __post_init__(self):
    if self.position not in ("centre", "beginning"):
      raise ValueError(f"position: got {self.position!r}, expected 'centre' or 'beginning'")
    if self.num_frames < 1 or self.fps <= 0 or not self.resolutions:
      raise ValueError(
        f"expected at least one frame, a frame rate above 0 and a resolution, got {self}"
      )
    height, width = self.resolutions[0]
    for h, w in self.resolutions:
      if h * width != w * height:
        raise ValueError(
          f"resolutions: {h}x{w} has another aspect ratio than {height}x{width}; a record has one crop, so "
          "preprocess other aspect ratios in another run"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
  """Pixels of one row.

  `frames` maps (height, width) to uint8 (frames, height, width, 3). `crop` is top, left, height, width in pixels of
  the upright source. `motion` is the mean absolute luma change between neighbouring frames, in [0, 1].
  """

  frames: Mapping[tuple[int, int], np.ndarray]
  fps: float
  start_seconds: float
  crop: tuple[int, int, int, int]
  motion: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
  """Scale a source so that it covers a resolution, then cut the centre out.

  `scaled` is (height, width) after scaling, `offset` the (top, left) of the cut in it.
  """

  scaled: tuple[int, int]
  offset: tuple[int, int]
  crop: tuple[int, int, int, int]


def fit(source: tuple[int, int], target: tuple[int, int], *, aspect: float = 1.0) -> Fit:
  """Geometry of resize and centre crop.

  Args:
    source: (height, width) of the upright source.
    target: (height, width) wanted.
    aspect: width of a source pixel over its height.
  """
  height, width = source
  shown = (float(height), width * aspect)
  scale = max(target[0] / shown[0], target[1] / shown[1])
  scaled = tuple(max(want, round(size * scale)) for want, size in zip(target, shown))
  offset = tuple((size - want) // 2 for want, size in zip(target, scaled))
  ratio = (height / scaled[0], width / scaled[1])
  crop = (
    round(offset[0] * ratio[0]),
    round(offset[1] * ratio[1]),
    round(target[0] * ratio[0]),
    round(target[1] * ratio[1]),
  )
  return Fit(scaled=scaled, offset=offset, crop=crop)


def check_size(source: tuple[int, int], spec: ClipSpec) -> None:
  """Refuse frames over the pixel limit, and frames that would have to be enlarged.

  Raises:
    MediaError: 'too_large', 'too_small' or 'corrupt'.
  """
  height, width = source
  if height < 1 or width < 1:
    raise MediaError("corrupt", f"the media states a frame of {height}x{width} pixels")
  if height * width > spec.max_pixels:
    raise MediaError(
      "too_large",
      f"frames of {height}x{width} pixels, limit {spec.max_pixels} (--max_pixels)",
    )
  largest = max(spec.resolutions)
  if not spec.allow_upscale and (height < largest[0] or width < largest[1]):
    raise MediaError(
      "too_small",
      f"frames of {height}x{width} pixels, resolution {largest[0]}x{largest[1]} (--allow_upscale takes them)",
    )


def decode(
  content: bytes,
  modality: str,
  spec: ClipSpec,
  *,
  start_seconds: float | None = None,
  end_seconds: float | None = None,
) -> Clip:
  """Pixels of one row.

  Args:
    content: the whole file.
    modality: 'image' or 'video'.
    spec: what to cut out.
    start_seconds: first frame; None leaves it to `spec.position`.
    end_seconds: the clip lies before it.

  Raises:
    MediaError: with a reason.
  """
  if not content:
    raise MediaError("empty", "the file has no bytes")
  if len(content) > spec.max_bytes:
    raise MediaError("too_large", f"{len(content)} bytes, limit {spec.max_bytes} (--max_bytes)")
  if modality == "image":
    return decode_image(content, spec)
  if modality == "video":
    from beam_jobs.video_decoding import decode_video

    return decode_video(content, spec, start_seconds=start_seconds, end_seconds=end_seconds)
  raise ValueError(f"modality: got {modality!r}, expected 'image' or 'video'")


def decode_image(content: bytes, spec: ClipSpec) -> Clip:
  """One upright RGB image at every resolution, area averaged like video frames.

  Transparent pixels are laid over white.
  """
  import PIL
  from PIL import Image, ImageOps

  try:
    with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
      check_size((image.height, image.width), spec)
      image.load()
      image = ImageOps.exif_transpose(image)
      check_size((image.height, image.width), spec)
      if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
      image = image.convert("RGB")
  except PIL.UnidentifiedImageError as error:
    known = content.startswith(_IMAGE_SIGNATURES)
    formats = ", ".join(IMAGE_FORMATS)
    raise MediaError(
      "corrupt" if known else "not_media", f"no image that Pillow reads as one of {formats}"
    ) from error
  except Image.DecompressionBombError as error:
    raise MediaError("too_large", str(error)) from error
  except (OSError, SyntaxError, struct.error) as error:
    cut = "truncated" in str(error).lower()
    raise MediaError("truncated" if cut else "corrupt", str(error)) from error

  frames = {}
  for height, width in spec.resolutions:
    place = fit((image.height, image.width), (height, width))
    scaled = image.resize(place.scaled[::-1], Image.Resampling.BOX)
    top, left = place.offset
    frames[height, width] = np.asarray(scaled.crop((left, top, left + width, top + height)))[None]
  return Clip(frames=frames, fps=0.0, start_seconds=0.0, crop=place.crop, motion=0.0)


def container_signature(content: bytes) -> bool:
  """Whether the first bytes are those of a video container we read."""
  return (
    content[4:8] in _BOX_TYPES
    or content.startswith((b"\x1aE\xdf\xa3", b"\0\0\1\xba", b"\0\0\1\xb3", b"GIF8"))
    or (content.startswith(b"RIFF") and content[8:12] == b"AVI ")
    or (content[:1] == b"G" and content[188:189] == b"G")
  )


def is_cut_off(content: bytes) -> bool:
  """Whether a container's own sizes say that bytes are missing at its end; only MP4 and AVI can tell."""
  if content.startswith(b"RIFF"):
    return struct.unpack("<I", content[4:8].ljust(4, b"\0"))[0] + 8 > len(content)
  if content[4:8] not in _BOX_TYPES:
    return False
  position, seen = 0, set()
  while position + 8 <= len(content):
    size, kind = struct.unpack(">I4s", content[position : position + 8])
    seen.add(kind)
    if size == 1:
      size = int.from_bytes(content[position + 8 : position + 16], "big")
    elif size == 0:
      size = len(content) - position
    if size < 8 or position + size > len(content):
      return True
    position += size
  return position != len(content) or b"moov" not in seen
