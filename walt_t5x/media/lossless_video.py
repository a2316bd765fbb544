"""Lossless clips: FFV1 in Matroska for videos, PNG for images.

H.264 with 4:2:0 chroma is unsuitable for measurements: its loss would be attributed to the tokenizer.
`video_io.read_video` reads both kinds of clip. The same frames give the same bytes.
"""

import os
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

SUFFIX = ".mkv"


class LosslessWriter:
  """Writes one video, a few frames at a time, so that memory does not grow with its length.

  The file appears complete when the `with` block ends, and not at all if it raises.

  Args:
    path: ends in .mkv.
    fps: frames per second.

  Raises:
    ValueError: the path has another suffix, or the rate is out of range.
  """

  def __init__(self, path: str | os.PathLike[str], *, fps: float):
    self._path = Path(path)
    if self._path.suffix != SUFFIX:
      raise ValueError(f"LosslessWriter: got {path}, expected a name that ends in {SUFFIX}.")
    if not 0 < fps <= 1000:
      raise ValueError(f"LosslessWriter: got fps={fps}, expected a rate between 0 and 1000.")
    self._rate = Fraction(fps).limit_denominator(1001)
    self._temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
    self._container: Any = None
    self._stream: Any = None

  def __enter__(self) -> "LosslessWriter":
    import av

    self._path.parent.mkdir(parents=True, exist_ok=True)
    # Bit-exact: no random identifiers and no library version.
    self._container = av.open(
      str(self._temporary), mode="w", format="matroska", options={"fflags": "+bitexact"}
    )
    return self

  def append(self, frames: np.ndarray) -> None:
    """Writes the next frames, uint8 [T, H, W, 3], all of one size.

    Raises:
      ValueError: the frames have another dtype, rank or size.
    """
    import av

    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
      raise ValueError(
        f"LosslessWriter: got {frames.dtype} {frames.shape}, expected uint8 [T, H, W, 3]."
      )
    if self._stream is None:
      self._stream = self._container.add_stream("ffv1", rate=self._rate)
      self._stream.height, self._stream.width = frames.shape[1:3]
      self._stream.pix_fmt = "bgr0"
      self._stream.codec_context.thread_count = 1
    size = self._stream.height, self._stream.width
    if frames.shape[1:3] != size:
      raise ValueError(f"LosslessWriter: got frames of {frames.shape[1:3]} after frames of {size}.")
    for image in frames:
      frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
      self._container.mux(self._stream.encode(frame.reformat(format="bgr0")))

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    try:
      if kind is None:
        if self._stream is None:
          raise ValueError(f"LosslessWriter: {self._path} has no frames.")
        self._container.mux(self._stream.encode(None))
      self._container.close()
      if kind is None:
        os.replace(self._temporary, self._path)
    finally:
      self._temporary.unlink(missing_ok=True)


def write_picture(path: str | os.PathLike[str], picture: np.ndarray) -> None:
  """Writes uint8 [H, W, 3] as a PNG, atomically."""
  from PIL import Image

  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    Image.fromarray(picture).save(temporary, format="PNG")
    os.replace(temporary, path)
  finally:
    temporary.unlink(missing_ok=True)
