"""Amount and steadiness of motion in a clip, computed from bytes without a network.

  change     = mean over t, pixels and channels of |x_{t+1} - x_t| / 255
  steadiness = sum |x_{t+2} - x_t| / sum (|x_{t+1} - x_t| + |x_{t+2} - x_{t+1}|)

"Change" is 0 for a still and grows with the speed of an object, as long as it moves by less than its size per frame.
"Steadiness" compares the net change of each value over two frames with the length of its path: 1 if every value
changes monotonically (steady motion, a cross-fade), 1/2 for independent frames, 0 for flicker between two images. It is
in [0, 1] by the triangle inequality.

Steadiness ignores values whose path over the two frames is shorter than `QUIET`: compression noise on a still
background is not motion. It is 1 if no values remain.

Neither is the dynamic degree or the motion smoothness of VBench (arXiv:2311.17982), which need an optical flow network
and a frame interpolation network.
"""

import numpy as np
from jaxtyping import UInt8

QUIET = 8


def _steps(video: np.ndarray, *, fewest: int, what: str) -> np.ndarray:
  if video.dtype != np.uint8 or video.ndim != 4 or len(video) < fewest:
    raise ValueError(
      f"{what} needs a uint8 clip [T, H, W, C] of at least {fewest} frames, got {video.dtype} {video.shape}."
    )
  return video.astype(np.int16)


def change(video: UInt8[np.ndarray, "T H W C"]) -> float:
  """Mean absolute change of a value from one frame to the next, in [0, 1]; raises ValueError for a lone frame."""
  x = _steps(video, fewest=2, what="change")
  return float(np.abs(np.diff(x, axis=0)).mean(dtype=np.float64) / 255)


def steadiness(video: UInt8[np.ndarray, "T H W C"]) -> float:
  """Net change divided by path length, summed over values, in [0, 1]; raises ValueError below three frames."""
  x = _steps(video, fewest=3, what="steadiness")
  steps = np.abs(np.diff(x, axis=0))
  path = steps[1:] + steps[:-1]
  moving = path >= QUIET
  went = int(path[moving].sum(dtype=np.int64))
  got = int(np.abs(x[2:] - x[:-2])[moving].sum(dtype=np.int64))
  return got / went if went else 1.0
