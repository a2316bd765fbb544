"""Filters: `name op number` rules over what is known of a row, each with its own reason in the ledger.

Three moments, cheapest first. Before the media are read: scores of the manifest and captions. When the header is
read, before anything is decoded: size, shape and duration. After decoding: motion.

  quantity                    known     meaning
  caption_chars               manifest  characters of a caption; a caption that fails is dropped, a row without any left
                                        is rejected; rows that have only a label pass
  caption_words               manifest  likewise, words
  height, width               header    pixels of the upright picture, as stored
  short_side, pixels          header    min(height, width); height * width
  aspect                      header    width over height as shown, pixel shape included
  seconds, source_fps         header    what the video claims; images pass
  motion                      clip      mean absolute luma change between neighbouring frames; images pass
  any other name              manifest  a number of the row, or of its "scores"; a row without it is rejected
"""

import dataclasses
import math
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from beam_jobs.sources import Row

CAPTION_QUANTITIES = ("caption_chars", "caption_words")
HEADER_QUANTITIES = ("height", "width", "short_side", "pixels", "aspect", "seconds", "source_fps")
CLIP_QUANTITIES = ("motion",)

_OPERATORS = {
  "<=": operator.le,
  ">=": operator.ge,
  "==": operator.eq,
  "!=": operator.ne,
  "<": operator.lt,
  ">": operator.gt,
}
_RULE = re.compile(r"\s*([A-Za-z_][\w.-]*)\s*(<=|>=|==|!=|<|>)\s*([-+.\w]+)\s*")


class Rejected(Exception):
  """A sound row that a filter turns away; `reason` is a code, the message explains."""

  def __init__(self, reason: str, message: str):
    super().__init__(reason, message)
    self.reason = reason

  def __str__(self) -> str:
    return self.args[1]


@dataclasses.dataclass(frozen=True)
class Rule:
  """What a row must hold to pass, such as `aesthetic>=5`.

  Args:
    name: a quantity of the table above, or a score.
    op: one of <, <=, ==, !=, >=, >.
    value: a finite number.
    code: reason in the ledger; empty is the rule itself.
  """

  name: str
  op: str
  value: float
  code: str = ""

  def __post_init__(self):
    if self.op not in _OPERATORS or not math.isfinite(self.value):
      raise ValueError(
        f"rule: got {self.name!r} {self.op!r} {self.value!r}, expected an operator of "
        f"{sorted(_OPERATORS)} and a finite number"
      )

  @classmethod
  def parse(cls, text: str) -> "Rule":
    """Rule of a flag.

    Raises:
      ValueError: on a text that is no rule.
    """
    try:
      if not (match := _RULE.fullmatch(text)):
        raise ValueError("no comparison")
      return cls(match[1], match[2], float(match[3]))
    except ValueError as error:
      raise ValueError(f"got {text!r}, expected NAME OP NUMBER like 'aesthetic>=5'") from error

  def __str__(self) -> str:
    return f"{self.name}{self.op}{self.value:g}"

  @property
  def reason(self) -> str:
    """Counter and reason in the ledger."""
    return self.code or str(self)

  def holds(self, value: float) -> bool:
    """Whether a value passes; NaN passes no rule but `!=`."""
    return _OPERATORS[self.op](value, self.value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FilterSpec:
  """Everything that decides which sound rows are written.

  Args:
    rules: all of them must hold.
    duplicates: 'none', 'exact' or 'near', as `duplicates.Seen`.
    near_duplicate_bits: of 128 bits a picture.
  """

  rules: tuple[Rule, ...] = ()
  duplicates: str = "none"
  near_duplicate_bits: int = 6


def check_row(row: Row, rules: Sequence[Rule]) -> Row:
  """The row without the captions that fail, before its media are read.

  Raises:
    Rejected: by a score, or because no caption is left.
  """
  for rule in rules:
    if rule.name in CAPTION_QUANTITIES:
      row = _check_captions(row, rule)
    elif rule.name not in HEADER_QUANTITIES + CLIP_QUANTITIES:
      value = score(row.raw, rule.name)
      if value is None:
        raise Rejected(f"no_{rule.name}", f"the row has no number {rule.name!r}, which {rule} asks")
      _check(rule, value)
  return row


def check_header(facts: Mapping[str, float | None], rules: Sequence[Rule]) -> None:
  """Judge a file by its header.

  Args:
    facts: what `header_facts` returned; None is unknown.
    rules: those of other moments are passed over.

  Raises:
    Rejected: by the first rule that fails, or whose quantity a video does not state.
  """
  for rule in rules:
    if rule.name in HEADER_QUANTITIES and rule.name in facts:
      value = facts[rule.name]
      if value is None:
        raise Rejected(f"no_{rule.name}", f"the file does not state {rule.name}, which {rule} asks")
      _check(rule, value)


def check_clip(row: Row, clip: Any, rules: Sequence[Rule]) -> None:
  """Judge a decoded clip.

  Raises:
    Rejected: by the first rule that fails.
  """
  for rule in rules:
    if rule.name in CLIP_QUANTITIES and row.modality == "video":
      _check(rule, getattr(clip, rule.name))


def header_facts(
  size: tuple[int, int], *, pixel_aspect: float, video: tuple[float | None, float | None] | None
) -> dict[str, float | None]:
  """Quantities of a header.

  Args:
    size: (height, width) of the upright picture in stored pixels.
    pixel_aspect: width of an upright pixel over its height.
    video: (seconds, frames a second), each None where not stated; None for an image.
  """
  height, width = size
  facts = {
    "height": height,
    "width": width,
    "short_side": min(size),
    "pixels": height * width,
    "aspect": width * pixel_aspect / height,
  }
  return facts | (dict(zip(("seconds", "source_fps"), video)) if video else {})


def score(raw: Mapping[str, Any], name: str) -> float | None:
  """A number of a manifest row: its own column, or one of its "scores"; digits in a string count."""
  scores = raw.get("scores")
  for place in (raw, scores if isinstance(scores, Mapping) else {}):
    value = place.get(name)
    if value is None or isinstance(value, bool):
      continue
    try:
      return float(value)
    except (TypeError, ValueError):
      continue
  return None


def score_names(rules: Iterable[Rule]) -> tuple[str, ...]:
  """Columns of the manifest that rules read."""
  known = CAPTION_QUANTITIES + HEADER_QUANTITIES + CLIP_QUANTITIES
  return tuple(dict.fromkeys(rule.name for rule in rules if rule.name not in known))


def _check(rule: Rule, value: float) -> None:
  if not rule.holds(value):
    raise Rejected(rule.reason, f"{rule.name} is {value:g}, expected {rule}")


def _check_captions(row: Row, rule: Rule) -> Row:
  if not row.captions:
    return row
  measure = len if rule.name == "caption_chars" else lambda caption: len(caption.split())
  kept = [
    (caption, weight)
    for caption, weight in zip(row.captions, row.caption_weights)
    if rule.holds(measure(caption))
  ]
  if not kept or sum(weight for _, weight in kept) <= 0:
    sizes = [measure(caption) for caption in row.captions]
    raise Rejected(rule.reason, f"{rule.name} is {sizes}, expected {rule} of at least one caption")
  captions, weights = zip(*kept)
  return dataclasses.replace(row, captions=captions, caption_weights=weights)
