"""The image that a clip starts from, or the clip that is continued, as frames at the size of every stage."""

import dataclasses
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from walt_t5x.media import video_io
from walt_t5x.media.image_modes import to_rgb

EXACT, CROP = "exact", "crop"
FITS = (EXACT, CROP)
# Images may come from the network (`walt_t5x.demo`): formats that make Pillow start another program are excluded.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF", "GIF")
# Containers round times to milliseconds; a frame that is late by at most this counts as shown, as in preprocessing.
_CLOCK_SLACK = 0.002


@dataclasses.dataclass(frozen=True, kw_only=True)
class GivenMedia:
  """The media that a clip starts from.

  Attributes:
    path: the file.
    sha256: hash of its bytes.
    frames: [T, H, W, 3] uint8 at the size of the last stage.
    conditioned: number of its last frames that are given to the model.
  """

  path: str
  sha256: str
  frames: np.ndarray
  conditioned: int

  def at(self, size: tuple[int, int]) -> np.ndarray:
    """The frames at (H, W), resized by area averaging."""
    return np.stack([_resize(frame, size) for frame in self.frames])

  def as_dict(self) -> dict[str, object]:
    """For the sidecar."""
    return {
      "file": self.path,
      "sha256": self.sha256,
      "frames": len(self.frames),
      "conditioned_frames": self.conditioned,
    }


def read_image(path: str, *, size: tuple[int, int], fit: str = EXACT) -> GivenMedia:
  """Reads an image.

  Args:
    path: a file in one of IMAGE_FORMATS; transparent pixels are blended with white, as in preprocessing.
    size: (H, W) of the last stage.
    fit: "exact" rejects other sizes; "crop" center-crops to the aspect ratio and resizes.

  Raises:
    ValueError: the file is not an image, or has another size.
  """
  from PIL import Image, ImageOps, UnidentifiedImageError

  content = Path(path).read_bytes()
  try:
    with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as opened:
      opened.load()
      # Convert the mode first, as in preprocessing: transposing supports fewer modes than opening.
      frame = np.asarray(ImageOps.exif_transpose(to_rgb(opened)))
  except UnidentifiedImageError as error:
    formats = ", ".join(IMAGE_FORMATS)
    raise ValueError(
      f"--image={path} cannot be read as an image: it is none of {formats}"
    ) from error
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
    raise ValueError(f"--image={path} cannot be read as an image: {error}") from error
  frames = fitted(frame[None], size=size, fit=fit, what=f"--image={path}")
  return GivenMedia(path=path, sha256=_sha256(content), frames=frames, conditioned=1)


def read_clip(
  path: str, *, size: tuple[int, int], fps: float, conditioned: int, fit: str = EXACT
) -> GivenMedia:
  """Reads a clip at the frame rate of the model.

  Args:
    path: any container of `video_io.read_video`.
    size: (H, W) of the last stage.
    fps: frame rate of the model; a faster clip is resampled to it.
    conditioned: number of frames that the model is given, from the end.
    fit: see `read_image`.

  Raises:
    ValueError: the file is not a video, is too short, or has another size.
  """
  content = Path(path).read_bytes()
  try:
    times = video_io.frame_times(content)
  except Exception as error:
    raise ValueError(f"--video={path} cannot be read as a video: {error}") from error
  try:
    kept = resampled(times, fps)
  except ValueError as error:
    raise ValueError(f"--video={path}: {error}") from error
  if len(kept) < conditioned:
    raise ValueError(
      f"--video={path} has {len(kept)} frames at {fps:g} fps ({len(times)} in the file), expected at least "
      f"{conditioned}, which the model continues from: give a longer clip, or an image with --image"
    )
  # Frame by frame, so that a long or large file takes only the memory of the frames that are kept.
  pictures = video_io.iterate_frames(content, only=set(kept))
  what = f"--video={path}"
  found = {
    number: fitted(frame[None], size=size, fit=fit, what=what)[0]
    for number, (_, frame) in zip(sorted(set(kept)), pictures)
  }
  frames = np.stack([found[number] for number in kept])
  return GivenMedia(path=path, sha256=_sha256(content), frames=frames, conditioned=conditioned)


def resampled(times: Sequence[float] | np.ndarray, fps: float) -> list[int]:
  """Indices of the frames shown at 0, 1 / fps, 2 / fps, ..., selected as in preprocessing.

  A clip at about that rate keeps every frame. If its rate varies, a frame with a long duration is repeated.

  Raises:
    ValueError: the clip is slower, so that its frames would have to be repeated.
  """
  times = np.asarray(times, np.float64)
  if len(times) < 2:
    return list(range(len(times)))
  steps = np.diff(times)
  step = np.median(steps)
  if step > 1.1 / fps:
    raise ValueError(f"got {1 / step:.3g} fps, expected at least {fps:g}, the model's rate")
  # Rates that differ by less than a tenth of a frame count as equal: timestamps are rounded.
  if step >= 0.9 / fps and np.all(np.abs(steps - step) < 0.5 * step):
    return list(range(len(times)))
  # The last frame is shown for as long as the others.
  wanted = np.arange(int(np.ceil((times[-1] + step - _CLOCK_SLACK) * fps))) / fps
  return (np.searchsorted(times, wanted + _CLOCK_SLACK, side="right") - 1).tolist()


def fitted(frames: np.ndarray, *, size: tuple[int, int], fit: str, what: str) -> np.ndarray:
  """Frames [T, H, W, 3] at (H, W) `size`; `fit` as in `read_image`, `what` names them in errors.

  Raises:
    ValueError: the size differs and `fit` is "exact", or `fit` is unknown.
  """
  height, width = frames.shape[1:3]
  if (height, width) == size:
    return frames
  if fit == EXACT:
    raise ValueError(
      f"{what} is {height}x{width} (height x width), expected {size[0]}x{size[1]}, the last stage's size: resize "
      "it, or set --fit=crop to crop its center"
    )
  if fit != CROP:
    raise ValueError(f"--fit={fit}: expected one of {FITS}")
  scale = min(height / size[0], width / size[1])
  h, w = min(height, round(size[0] * scale)), min(width, round(size[1] * scale))
  top, left = (height - h) // 2, (width - w) // 2
  cut = frames[:, top : top + h, left : left + w]
  return np.stack([_resize(frame, size) for frame in cut])


def _resize(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  from PIL import Image

  if frame.shape[:2] == size:
    return frame
  smaller = frame.shape[0] >= size[0] and frame.shape[1] >= size[1]
  rule = Image.Resampling.BOX if smaller else Image.Resampling.BICUBIC
  return np.asarray(Image.fromarray(frame).resize((size[1], size[0]), rule))


def _sha256(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()
