"""Scores of a clip's frames. All are integers until the last division, so that every CPU gives the same value."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np

from beam_jobs.curation.shake import shake
from walt_t5x.files.mismatch import Mismatch
from walt_t5x.media.decoding import motion

_T = TypeVar("_T")
# A frame whose mean luma is lower is black; a row or column of a letterbox too. Of 255.
_BLACK = 20
# Adjacent frames that differ less in mean are the same picture. Of 255.
_SAME = 0.5


class ClipScore(Protocol):
  """Gives named numbers to a clip."""

  def __call__(self, frames: np.ndarray) -> Mapping[str, float]:
    """Scores by name, of frames uint8 [T, H, W, 3]; T is at least 1, and H and W are those of the scan."""
    ...


def luma(frames: np.ndarray) -> np.ndarray:
  """Luma of uint8 RGB [..., 3] as int32 [...] in thousandths: 299 R + 587 G + 114 B."""
  red, green, blue = (frames[..., channel].astype(np.int32) for channel in range(3))
  return 299 * red + 587 * green + 114 * blue


class MotionScore:
  """`motion`: mean absolute change of luma between sampled frames, in [0, 1]; `still`: share of pairs without any."""

  def __call__(self, frames: np.ndarray) -> Mapping[str, float]:
    values = luma(frames)
    pairs = np.abs(np.diff(values, axis=0)).sum((1, 2), dtype=np.int64)
    same = int((pairs < _SAME * 1000 * values[0].size).sum())
    return {"motion": motion(frames), "still": same / max(1, len(pairs))}


class LightScore:
  """`exposure`: mean luma in [0, 1]; `contrast`: its standard deviation over pixels; `black`: share of black frames."""

  def __call__(self, frames: np.ndarray) -> Mapping[str, float]:
    values = luma(frames).reshape(len(frames), -1).astype(np.int64)
    total, squares = int(values.sum()), int(np.square(values // 10).sum())
    mean = total / values.size / 255_000
    variance = squares / values.size / 25_500**2 - mean**2
    black = int((values.sum(1) < _BLACK * 1000 * values.shape[1]).sum())
    return {
      "exposure": mean,
      "contrast": max(0.0, variance) ** 0.5,
      "black": black / len(frames),
    }


class SharpnessScore:
  """`sharpness`: mean absolute Laplacian of luma, in [0, 1], of the sharpest frame."""

  def __call__(self, frames: np.ndarray) -> Mapping[str, float]:
    y = luma(frames)
    if min(y.shape[1:]) < 3:
      return {"sharpness": 0.0}
    around = y[:, :-2, 1:-1] + y[:, 2:, 1:-1] + y[:, 1:-1, :-2] + y[:, 1:-1, 2:]
    change = np.abs(4 * y[:, 1:-1, 1:-1] - around).reshape(len(y), -1)
    return {"sharpness": int(change.sum(1, dtype=np.int64).max()) / (change.shape[1] * 4 * 255_000)}


class LetterboxScore:
  """`bars`: share of the picture in black bars at its edges, in all frames."""

  def __call__(self, frames: np.ndarray) -> Mapping[str, float]:
    top, bottom, left, right = picture_in_bars(frames)
    return {"bars": 1 - (bottom - top) * (right - left) / (frames.shape[1] * frames.shape[2])}


class ShapeScore:
  """`aspect`: width over height of the picture, bars included."""

  def __call__(self, frames: np.ndarray) -> Mapping[str, float]:
    return {"aspect": frames.shape[2] / frames.shape[1]}


def lit(frames: np.ndarray) -> np.ndarray:
  """Which pixels of frames [..., 3] are not black."""
  return luma(frames) > _BLACK * 1000


def picture_in_bars(frames: np.ndarray) -> tuple[int, int, int, int]:
  """(top, bottom, left, right) of what is not in black bars; all of it if every pixel is black."""
  shown: np.ndarray = np.any(lit(frames), 0)
  rows, columns = (np.flatnonzero(np.any(shown, axis)) for axis in (1, 0))
  if not len(rows):
    return 0, shown.shape[0], 0, shown.shape[1]
  return int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1


BUILT_IN = (MotionScore, LightScore, SharpnessScore, LetterboxScore, ShapeScore)


def load(name: str, *, flag: str = "--score") -> Any:
  """The score `MODULE:CLASS`, made without arguments.

  Raises:
    ValueError: there is none.
  """
  module, _, attribute = name.partition(":")
  try:
    return getattr(importlib.import_module(module), attribute)()
  except (ImportError, AttributeError, TypeError) as error:
    raise ValueError(
      f"{flag}: got {name!r}, expected MODULE:CLASS of a class without arguments ({error})"
    ) from error


def score(
  frames: np.ndarray, scores: Sequence[ClipScore], *, times: Sequence[int], repeated: float
) -> dict[str, float]:
  """All scores of a clip, rounded to six digits.

  Args:
    frames: uint8 [T, H, W, 3].
    scores: those of the frames, by default and of a team.
    times: of the frames, in microseconds.
    repeated: a score of frames that are not among them.

  Raises:
    Mismatch: a score is not a finite number, or raises an error.
  """
  top, bottom, left, right = picture_in_bars(frames)
  picture = luma(frames[:, top:bottom, left:right]) // 1000
  found = {"shake": round(shake(picture, times), 6), "repeated": round(repeated, 6)}
  for one in scores:
    for name, value in called(one, frames).items():
      if not np.isfinite(value):
        raise Mismatch(f"{type(one).__name__}: {name} is {value}, expected a finite number")
      found[name] = round(float(value), 6)
  return found


def called(code: Callable[[np.ndarray], _T], frames: np.ndarray) -> _T:
  """What a class, perhaps a team's, returns for a clip.

  Raises:
    Mismatch: it raises an error, which is named.
  """
  try:
    return code(frames)
  except Exception as error:
    raise Mismatch(
      f"{type(code).__name__} raised {type(error).__name__}: {error}, for a clip of shape {frames.shape}; correct it "
      "and run the same command again, which keeps finished parts; --debug prints the traceback"
    ) from error


def names() -> list[str]:
  """Of the scores that every clip has."""
  black = np.zeros((1, 8, 8, 3), np.uint8)
  return sorted(score(black, [one() for one in BUILT_IN], times=[0], repeated=0.0))
