"""The files of one clip: videos, animations, PNG frames and raw latents."""

import hashlib
from collections.abc import Sequence

import numpy as np

from walt_t5x.files import storage
from walt_t5x.files.fingerprint import file_sha256
from walt_t5x.files.paths import AnyPath
from walt_t5x.media import pictures, reading, writing
from walt_t5x.media.pixels import clip_to_uint8, to_float

# Best first: evaluation reads the first one available.
READABLE = ("png", "mp4", "webm", "gif")
LATENTS = "latents"
FORMATS = (*READABLE, LATENTS)

# Clips with a smaller edge are enlarged by an integer factor, so that chroma subsampling does not change their colors.
_MIN_EDGE = 128


def check_formats(formats: Sequence[str]) -> None:
  """Raises ValueError unless every format is known and one of them is viewable."""
  unknown = [f for f in formats if f not in FORMATS]
  if unknown or not set(formats) & set(READABLE):
    raise ValueError(
      f"--formats={','.join(formats)}: expected some of {', '.join(FORMATS)}, and a viewable one among them"
    )


def scale_of(frames: np.ndarray, name: str) -> int:
  """The integer factor by which a format enlarges the pixels of [T, H, W, 3]."""
  if name in ("mp4", "webm"):
    return max(1, -(-_MIN_EDGE // min(frames.shape[1:3])))
  return 1


def write_clip(path: AnyPath, frames: np.ndarray, *, format: str, fps: float) -> str:
  """Writes one format of a clip atomically; returns the name of the file or folder.

  Args:
    path: path without suffix.
    frames: [T, H, W, 3], uint8 or float in [0, 1].
    format: one of READABLE; "png" is a folder of frames.
    fps: frame rate.
  """
  if format == "png":
    return _write_frames(path, clip_to_uint8(frames))
  file = path.with_name(f"{path.name}.{format}")
  writing.write_video(file, frames, fps=fps, scale=scale_of(frames, format))
  return file.name


def clip_sha256(path: AnyPath) -> str:
  """sha256 of a file of `write_clip`, or of the frames of its folder in their order."""
  if not path.is_dir():
    return file_sha256(path)
  frames = [file_sha256(file) for file in sorted(path.glob("*.png"))]
  return hashlib.sha256(" ".join(frames).encode()).hexdigest()


def write_latents(path: AnyPath, latents: np.ndarray) -> str:
  """Writes float32 [1 + extensions, t, h, w, c] as .npy; returns the name."""
  file = path.with_name(f"{path.name}.npy")
  with storage.writer(file) as stream:
    np.save(stream, np.asarray(latents, np.float32))
  return file.name


def read_clip(path: AnyPath, shape: Sequence[int], scale: int) -> np.ndarray:
  """Pixels [T, H, W, 3] in [0, 1] of a file or folder of `write_clip`, at the size at which they were generated."""
  if path.is_dir():
    files = sorted(path.glob("*.png"))
    frames = np.stack([np.asarray(pictures.open_picture(file)) for file in files])
  else:
    frames = reading.read_video(path).frames
  t, h, w, _ = shape
  frames = to_float(frames[:t, : h * scale, : w * scale])
  return frames.reshape(t, h, scale, w, scale, 3).mean((2, 4))


def _write_frames(path: AnyPath, frames: np.ndarray) -> str:
  from PIL import Image

  folder = path.with_name(f"{path.name}_frames")
  # Those of an interrupted run, whose sample was not finished, may be more.
  for left in folder.glob("*.png"):
    storage.delete(left)
  for i, frame in enumerate(frames):
    with storage.writer(folder / f"{i:05d}.png") as stream:
      Image.fromarray(frame).save(stream, format="PNG")
  return folder.name
