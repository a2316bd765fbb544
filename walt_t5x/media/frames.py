"""What a decoded frame shows: upright by its display matrix, opaque over white."""

import math
import struct
from typing import TYPE_CHECKING, Any

import numpy as np

from walt_t5x.media.geometry import EVERYTHING, Box, Crop, pixels_of

if TYPE_CHECKING:
  from av import VideoFrame


def orientation(frame: "VideoFrame") -> tuple[int, bool]:
  """Counterclockwise quarter turns, and whether to mirror left and right after them, by the file's display matrix."""
  from av.sidedata.sidedata import SideDataContainer, Type

  # `frame.side_data` would keep the pixels until the garbage collector runs: the two reference each other.
  side_data: Any = SideDataContainer
  stored = side_data(frame).get(Type.DISPLAYMATRIX)
  if stored is None:
    return 0, False
  # (x, y) is shown at (a x + c y, b x + d y), with y downwards.
  a, b, _, c, d = struct.unpack("=5i", bytes(stored)[:20])
  mirrored = a * d - b * c < 0
  clockwise = math.degrees(math.atan2(b, -a if mirrored else a))
  return round(-clockwise / 90) % 4, mirrored


def upright(pixels: np.ndarray, turned: tuple[int, bool]) -> np.ndarray:
  """Pixels [H, W, C] as shown, for the `orientation` of their frame."""
  turns, mirrored = turned
  pixels = np.rot90(pixels, turns)
  return pixels[:, ::-1] if mirrored else pixels


def turned_box(box: Any, size: tuple[int, int], turned: tuple[int, bool]) -> Any:
  """A (top, bottom, left, right) of a picture of this (height, width), in the picture as `upright` shows it."""
  (top, bottom, left, right), (height, width), (turns, mirrored) = box, size, turned
  for _ in range(turns):
    top, bottom, left, right = width - right, width - left, top, bottom
    height, width = width, height
  if mirrored:
    left, right = width - right, width - left
  return top, bottom, left, right


def stored_box(frame: "VideoFrame", crop: Crop | None) -> Box:
  """The pixels of a frame, as stored, that a crop of the upright picture leaves.

  Edges inside of the frame are rounded inward, to even pixels or further, so that no sample of color is divided.
  """
  turns, mirrored = orientation(frame)
  # The inverse of turns with a mirror is the same turns with a mirror.
  stored = turned_box(crop or EVERYTHING, (1, 1), (turns if mirrored else -turns % 4, mirrored))
  rows, columns = frame.format.chroma_height(4), frame.format.chroma_width(4)
  steps = max(2, 4 // rows), max(2, 4 // columns)
  return pixels_of(stored, (frame.height, frame.width), steps=steps)


def opaque(frame: "VideoFrame") -> "VideoFrame":
  """The frame without its alpha channel, composited over white like images; its rotation is lost then."""
  import av

  if not any(component.is_alpha for component in frame.format.components):
    return frame
  rgba = frame.to_ndarray(format="rgba").astype(np.uint16)
  alpha = rgba[..., 3:]
  over_white = (rgba[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
  return av.VideoFrame.from_ndarray(over_white.astype(np.uint8), format="rgb24")
