"""Rules on media, `name op number`: what a clip or its header must satisfy, and the rejection of those that do not.

The quantities of a header are known before anything is decoded:

  height, width       pixels of the upright picture, as stored
  short_side, pixels  min(height, width); height * width
  aspect              width over height as shown, pixel shape included
  seconds, source_fps what the video claims; images pass
"""

import dataclasses
import math
import operator
import re
from collections.abc import Sequence

HEADER_QUANTITIES = ("height", "width", "short_side", "pixels", "aspect", "seconds", "source_fps")

_OPERATORS = {
  "<=": operator.le,
  ">=": operator.ge,
  "==": operator.eq,
  "!=": operator.ne,
  "<": operator.lt,
  ">": operator.gt,
}
_RULE = re.compile(r"\s*([A-Za-z_][\w.-]*)\s*(<=|>=|==|!=|<|>)\s*([-+.\w]+)\s*")


class ReasonedError(Exception):
  """An error whose `reason` is a code; the message explains it."""

  def __init__(self, reason: str, message: str):
    # Both are in `args`, so that the exception can be pickled between processes.
    super().__init__(reason, message)
    self.reason = reason

  def __str__(self) -> str:
    return self.args[1]


class Rejected(ReasonedError):
  """A valid row that a filter rejects."""


@dataclasses.dataclass(frozen=True)
class Rule:
  """A condition that rows must satisfy, such as `aesthetic>=5`.

  Args:
    name: a quantity of the table above, or a score.
    op: one of <, <=, ==, !=, >=, >.
    value: a finite number.
    code: reason in the ledger; if empty, the rule itself.
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
    """Parses the rule of a flag; raises ValueError for other text."""
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
    """Name of the counter, and reason in the ledger."""
    return self.code or str(self)

  def holds(self, value: float) -> bool:
    """Whether a value passes; NaN passes only `!=`."""
    return _OPERATORS[self.op](value, self.value)


def check_header(
  rules: Sequence[Rule],
  size: tuple[int, int] | None,
  *,
  pixel_aspect: float | None = None,
  video: tuple[float | None, float | None] | None = None,
) -> None:
  """Applies the rules on the quantities of a header that are given; other rules are skipped.

  Args:
    rules: rules of any stage.
    size: (height, width) of the upright image in stored pixels, of what is used of it; None while it is unknown.
    pixel_aspect: width / height of an upright pixel; None while it is unknown whether `size` is upright.
    video: (seconds, frames per second), each None if not stated; None for an image.

  Raises:
    Rejected: by the first rule that fails, or whose quantity the header does not state.
  """
  facts: dict[str, float | None] = {}
  if size is not None:
    height, width = size
    facts |= {"short_side": min(size), "pixels": height * width}
    if pixel_aspect is not None:
      facts |= {"height": height, "width": width, "aspect": width * pixel_aspect / height}
  if video is not None:
    facts["seconds"], facts["source_fps"] = video
  for rule in rules:
    if rule.name in facts:
      value = facts[rule.name]
      if value is None:
        raise Rejected(
          f"no_{rule.name}", f"the file does not state {rule.name}, required by {rule}"
        )
      check_value(rule, value)


def check_value(rule: Rule, value: float) -> None:
  """Raises Rejected if the rule does not hold for a value."""
  if not rule.holds(value):
    raise Rejected(rule.reason, f"{rule.name} is {value:g}, expected {rule}")
