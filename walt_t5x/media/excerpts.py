"""The part of a media file that a row of a manifest names: a time window, and a crop of the picture."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from walt_t5x.media.geometry import EVERYTHING, Crop
from walt_t5x.media.rules import ReasonedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Excerpt:
  """Fields `start_seconds`, `end_seconds` and `crop` of a row; None where it has none.

  Attributes:
    start_seconds: time of the first frame; with `end_seconds`, the earliest start of a clip.
    end_seconds: latest end of a clip.
    crop: the part of the upright picture that is used, in fractions with six digits.
  """

  start_seconds: float | None = None
  end_seconds: float | None = None
  crop: Crop | None = None


ENTIRE_FILE = Excerpt()


def excerpt_of(row: Mapping[str, Any]) -> Excerpt:
  """The excerpt that a row names.

  Raises:
    ReasonedError: 'bad_window' or 'bad_crop'.
  """
  start, end = _seconds(row, "start_seconds"), _seconds(row, "end_seconds")
  if start is not None and end is not None and end <= start:
    raise ReasonedError(
      "bad_window", f"end_seconds: got {end}, expected more than start_seconds {start}"
    )
  return Excerpt(start_seconds=start, end_seconds=end, crop=_crop(row))


def _seconds(row: Mapping[str, Any], name: str) -> float | None:
  value = row.get(name)
  if value is None:
    return None
  if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e7:
    raise ReasonedError("bad_window", f"{name}: got {value!r}, expected seconds >= 0")
  return float(value)


def _crop(row: Mapping[str, Any]) -> Crop | None:
  """The crop of a row; None if it is the entire picture."""
  crop = row.get("crop")
  if crop is None:
    return None
  numbers = isinstance(crop, list) and all(
    isinstance(one, int | float) and not isinstance(one, bool) and 0 <= one <= 1 for one in crop
  )
  top, bottom, left, right = (
    [round(float(one), 6) for one in crop] if numbers and len(crop) == 4 else (0.0,) * 4
  )
  if not (top < bottom and left < right):
    raise ReasonedError(
      "bad_crop",
      f"crop: got {crop!r}, expected [top, bottom, left, right] in fractions of the height and width, "
      "0 <= top < bottom <= 1 and 0 <= left < right <= 1",
    )
  found = (top, bottom, left, right)
  return None if found == EVERYTHING else found
