"""How much a clip moves, and how steadily; from bytes alone, without a network.

  change     = mean over t, pixels and channels of |x_{t+1} - x_t| / 255
  steadiness = sum |x_{t+2} - x_t| / sum (|x_{t+1} - x_t| + |x_{t+2} - x_{t+1}|)

Change is 0 of a still and grows with the speed of what moves, as long as it moves by less than its own size in a frame.
Steadiness compares, over two frames, how far each value got with how far it went: 1 where every value rises or falls on
(steady motion, a cross-fade), 1/2 of frames that know nothing of each other, 0 of a flicker between two pictures. It
lies in [0, 1] by the triangle inequality.

Values that went less than `QUIET` bytes over the two frames are not counted in steadiness: what a video codec does to
a still ground is no motion. A clip of which nothing is left is steady, 1.

Neither is the dynamic degree or the motion smoothness of VBench (arXiv:2311.17982), which need an optical flow network
and a frame interpolation network.
"""

import numpy as np
from jaxtyping import UInt8

QUIET = 8


def _steps(video: np.ndarray, *, fewest: int, what: str) -> np.ndarray:
  if video.dtype != np.uint8 or video.ndim != 4 or len(video) < fewest:
    raise ValueError(
      f"{what} takes a uint8 clip [T, H, W, C] of at least {fewest} frames, got {video.dtype} {video.shape}."
    )
  return video.astype(np.int16)


def change(video: UInt8[np.ndarray, "T H W C"]) -> float:
  """Mean absolute change of a value from one frame to the next, in [0, 1].

  Raises:
    ValueError: fewer than two frames, or no bytes.
  """
  x = _steps(video, fewest=2, what="change")
  return float(np.abs(np.diff(x, axis=0)).mean(dtype=np.float64) / 255)


def steadiness(video: UInt8[np.ndarray, "T H W C"]) -> float:
  """Distance over path of all values in steps of two frames, in [0, 1].

  Raises:
    ValueError: fewer than three frames, or no bytes.
  """
  x = _steps(video, fewest=3, what="steadiness")
  steps = np.abs(np.diff(x, axis=0))
  path = steps[1:] + steps[:-1]
  moving = path >= QUIET
  went = int(path[moving].sum(dtype=np.int64))
  got = int(np.abs(x[2:] - x[:-2])[moving].sum(dtype=np.int64))
  return got / went if went else 1.0
