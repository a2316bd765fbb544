"""The image that a clip starts from, or the clip that is continued, as frames at the size of every stage."""

import dataclasses
import hashlib

import numpy as np

from walt_t5x.files.paths import as_path
from walt_t5x.media import pictures, reading
from walt_t5x.media.geometry import EXACT, fitted, resized


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConditioningMedia:
  """The media that a clip starts from.

  Attributes:
    sha256: hash of the file's bytes.
    frames: [T, H, W, 3] uint8 at the size of the last stage.
    conditioning_frames: number of its last frames that the model is conditioned on.
  """

  path: str
  sha256: str
  frames: np.ndarray
  conditioning_frames: int

  def at(self, size: tuple[int, int]) -> np.ndarray:
    """The frames at (H, W), resized by area averaging."""
    return np.stack([resized(frame, size) for frame in self.frames])

  def as_dict(self) -> dict[str, object]:
    """For the sidecar."""
    return {
      "file": self.path,
      "sha256": self.sha256,
      "frames": len(self.frames),
      "conditioned_frames": self.conditioning_frames,
    }


def read_image(path: str, *, size: tuple[int, int], fit: str = EXACT) -> ConditioningMedia:
  """Reads an image.

  Args:
    path: a file in one of `pictures.PICTURE_FORMATS`; transparent pixels are blended with white, as in preprocessing.
    size: (H, W) of the last stage.
    fit: "exact" rejects other sizes; "crop" center-crops to the aspect ratio and resizes.

  Raises:
    ValueError: the file is not an image, or has another size.
  """
  content = as_path(path).read_bytes()
  try:
    frame = np.asarray(pictures.open_picture(content))
  except reading.MediaError as error:
    raise ValueError(f"--image={path} cannot be read as an image: {error}") from error
  frames = fitted(frame[None], size=size, fit=fit, what=f"--image={path}")
  return _media(path, content, frames, 1)


def read_clip(
  path: str, *, size: tuple[int, int], fps: float, conditioning_frames: int, fit: str = EXACT
) -> ConditioningMedia:
  """Reads a clip at the frame rate of the model.

  Args:
    path: a file in one of `containers.CONTAINERS`.
    size, fit: see `read_image`.
    fps: frame rate of the model; a faster clip is resampled to it.
    conditioning_frames: number of frames that the model is conditioned on, from the end.

  Raises:
    ValueError: the file is not a video, is too short, or has another size.
  """
  content, what = as_path(path).read_bytes(), f"--video={path}"
  try:
    times = reading.frame_times(content)
  except reading.MediaError as error:
    raise ValueError(f"{what} cannot be read as a video: {error}") from error
  try:
    kept = reading.resampled(times, fps)
  except ValueError as error:
    raise ValueError(f"{what}: {error}") from error
  if len(kept) < conditioning_frames:
    raise ValueError(
      f"{what} has {len(kept)} frames at {fps:g} fps ({len(times)} in the file), expected at least "
      f"{conditioning_frames}, which the model continues from: give a longer clip, or an image with --image"
    )
  # Frame by frame, so that a long or large file takes only the memory of the frames that are kept.
  found = reading.frames_at(content, kept)
  frames = np.stack([fitted(frame[None], size=size, fit=fit, what=what)[0] for frame in found])
  return _media(path, content, frames, conditioning_frames)


def _media(path: str, content: bytes, frames: np.ndarray, count: int) -> ConditioningMedia:
  sha256 = hashlib.sha256(content).hexdigest()
  return ConditioningMedia(path=path, sha256=sha256, frames=frames, conditioning_frames=count)
