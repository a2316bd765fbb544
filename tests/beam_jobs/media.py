"""Media files for the tests, generated without files of the repository and without network."""

import io
import pathlib
import tempfile

import av
import numpy as np
from PIL import Image


def gradient(frame: int, height: int, width: int) -> np.ndarray:
  """A smooth image whose red channel encodes the frame number: uint8 (height, width, 3)."""
  y, x = np.mgrid[0:height, 0:width]
  red = np.full((height, width), 10 * frame % 250)
  return np.stack([red, 200 * x / width, 200 * y / height], axis=-1).astype(np.uint8)


def video(
  *,
  num_frames: int = 24,
  height: int = 64,
  width: int = 64,
  fps: int = 12,
  container: str = "mp4",
  codec: str = "libx264",
  options: dict[str, str] | None = None,
  seed: int = 0,
  noise: int = 0,
  step: int = 1,
) -> bytes:
  """A video whose frame k is `gradient(k * step + seed)`, plus noise that makes the file larger."""
  random = np.random.default_rng(seed)
  # A file instead of memory: "faststart" opens it a second time.
  with (
    tempfile.NamedTemporaryFile() as file,
    av.open(file.name, "w", format=container, options=options or {}) as output,
  ):
    track = output.add_stream(codec, rate=fps)
    track.width, track.height, track.pix_fmt = width, height, "yuv420p"
    track.bit_rate = 4_000_000
    for k in range(num_frames):
      picture = gradient(k * step + seed, height, width).astype(np.int64)
      picture += random.integers(0, noise + 1, picture.shape)
      frame = av.VideoFrame.from_ndarray(np.clip(picture, 0, 255).astype(np.uint8), format="rgb24")
      output.mux(track.encode(frame))
    output.mux(track.encode())
    output.close()
    return pathlib.Path(file.name).read_bytes()


def audio(*, seconds: int = 1) -> bytes:
  """An MP4 with only an AAC track."""
  stream = io.BytesIO()
  with av.open(stream, "w", format="mp4") as output:
    track = output.add_stream("aac", rate=16000)
    track.layout = "mono"
    frame = av.AudioFrame.from_ndarray(
      np.zeros((1, 16000 * seconds), np.int16), format="s16", layout="mono"
    )
    frame.sample_rate, frame.pts = 16000, 0
    output.mux(track.encode(frame))
    output.mux(track.encode())
  return stream.getvalue()


def image(
  *, height: int = 64, width: int = 64, seed: int = 0, kind: str = "PNG", noise: int = 0
) -> bytes:
  """An image."""
  stream = io.BytesIO()
  picture = gradient(seed, height, width).astype(np.int64)
  picture += np.random.default_rng(seed).integers(0, noise + 1, picture.shape)
  Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(stream, kind)
  return stream.getvalue()


def floats() -> bytes:
  """A TIFF of 32-bit floats."""
  stream = io.BytesIO()
  Image.fromarray(np.full((64, 64), 0.5, np.float32)).save(stream, "TIFF")
  return stream.getvalue()
