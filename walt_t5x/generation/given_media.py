"""The image that a clip starts from, or the clip that is continued, as frames at the size of every stage."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from walt_t5x.media import pictures, reading
from walt_t5x.media.geometry import EXACT, fitted, resized


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
    return np.stack([resized(frame, size) for frame in self.frames])

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
    path: a file in one of `pictures.PICTURE_FORMATS`; transparent pixels are blended with white, as in preprocessing.
    size: (H, W) of the last stage.
    fit: "exact" rejects other sizes; "crop" center-crops to the aspect ratio and resizes.

  Raises:
    ValueError: the file is not an image, or has another size.
  """
  content = Path(path).read_bytes()
  try:
    frame = np.asarray(pictures.open_picture(content))
  except reading.MediaError as error:
    raise ValueError(f"--image={path} cannot be read as an image: {error}") from error
  frames = fitted(frame[None], size=size, fit=fit, what=f"--image={path}")
  return GivenMedia(path=path, sha256=_sha256(content), frames=frames, conditioned=1)


def read_clip(
  path: str, *, size: tuple[int, int], fps: float, conditioned: int, fit: str = EXACT
) -> GivenMedia:
  """Reads a clip at the frame rate of the model.

  Args:
    path: a file in one of `reading.CONTAINERS`.
    size: (H, W) of the last stage.
    fps: frame rate of the model; a faster clip is resampled to it.
    conditioned: number of frames that the model is given, from the end.
    fit: see `read_image`.

  Raises:
    ValueError: the file is not a video, is too short, or has another size.
  """
  content, what = Path(path).read_bytes(), f"--video={path}"
  try:
    times = reading.frame_times(content)
  except reading.MediaError as error:
    raise ValueError(f"{what} cannot be read as a video: {error}") from error
  try:
    kept = reading.resampled(times, fps)
  except ValueError as error:
    raise ValueError(f"{what}: {error}") from error
  if len(kept) < conditioned:
    raise ValueError(
      f"{what} has {len(kept)} frames at {fps:g} fps ({len(times)} in the file), expected at least "
      f"{conditioned}, which the model continues from: give a longer clip, or an image with --image"
    )
  # Frame by frame, so that a long or large file takes only the memory of the frames that are kept.
  found = reading.frames_at(content, kept)
  frames = np.stack([fitted(frame[None], size=size, fit=fit, what=what)[0] for frame in found])
  return GivenMedia(path=path, sha256=_sha256(content), frames=frames, conditioned=conditioned)


def _sha256(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()
