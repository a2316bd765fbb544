"""Filters: rules `name op number` on quantities of a row, each with its own reason in the ledger.

Rules are checked in three stages, cheapest first. Before the media are read: scores and captions of the manifest. After
the header is read, before decoding: size, shape and duration. After decoding: motion.

  quantity                    stage     meaning
  caption_chars               manifest  characters per caption; a caption that fails is dropped, a row with no captions
                                        left is rejected; rows that have only a label pass
  caption_words               manifest  words per caption, likewise
  height, width               header    pixels of the upright image, as stored
  short_side, pixels          header    min(height, width); height * width
  aspect                      header    displayed width / height, including the pixel aspect ratio
  seconds, source_fps         header    as the video's header states them; images pass
  motion                      clip      mean absolute luma change between adjacent frames; images pass
  any other name              manifest  a number in the row, or in its "scores"; a row without it is rejected
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from beam_jobs.sources.rows import Row
from walt_t5x.media.rules import HEADER_QUANTITIES, Rejected, Rule, check_value

CAPTION_QUANTITIES = ("caption_chars", "caption_words")
CLIP_QUANTITIES = ("motion",)
_KNOWN = CAPTION_QUANTITIES + HEADER_QUANTITIES + CLIP_QUANTITIES


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterSpec:
  """Everything that decides which valid rows are written: all rules must hold; `duplicates.Seen` explains the rest."""

  rules: tuple[Rule, ...] = ()
  duplicates: str = "none"
  near_duplicate_bits: int = 6


def check_row(row: Row, rules: Sequence[Rule]) -> Row:
  """The row without the captions that fail; raises `Rejected` by a score, or if no caption is left."""
  for rule in rules:
    if rule.name in CAPTION_QUANTITIES:
      row = _check_captions(row, rule)
    elif rule.name not in _KNOWN:
      value = score(row.raw, rule.name)
      if value is None:
        message = f"the row has no number {rule.name!r}, required by {rule}"
        raise Rejected(f"no_{rule.name}", message)
      check_value(rule, value)
  return row


def check_clip(row: Row, clip: Any, rules: Sequence[Rule]) -> None:
  """Raises `Rejected` by the first clip rule that a decoded clip fails."""
  for rule in rules:
    if rule.name in CLIP_QUANTITIES and row.modality == "video":
      check_value(rule, getattr(clip, rule.name))


def score(raw: Mapping[str, Any], name: str) -> float | None:
  """A number in a manifest row: a column, or one of its "scores"; numeric strings are converted."""
  scores = raw.get("scores")
  for place in (raw, scores if isinstance(scores, Mapping) else {}):
    value = place.get(name)
    if value is not None and not isinstance(value, bool):
      with contextlib.suppress(TypeError, ValueError, OverflowError):
        return float(value)
  return None


def score_names(rules: Iterable[Rule]) -> tuple[str, ...]:
  """Manifest columns that the rules read."""
  return tuple(dict.fromkeys(rule.name for rule in rules if rule.name not in _KNOWN))


def _check_captions(row: Row, rule: Rule) -> Row:
  if not row.captions:
    return row
  chars = rule.name == "caption_chars"
  sizes = [len(caption if chars else caption.split()) for caption in row.captions]
  holds = [rule.holds(size) for size in sizes]
  captions = tuple(itertools.compress(row.captions, holds))
  weights = tuple(itertools.compress(row.caption_weights, holds))
  if sum(weights) <= 0:
    raise Rejected(rule.reason, f"{rule.name} is {sizes}, expected {rule} for at least one caption")
  return dataclasses.replace(row, captions=captions, caption_weights=weights)
