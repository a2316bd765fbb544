"""Compares what clips show with what their captions name, element by element, and counts.

An element is a property that captions name, such as "color". Which elements exist, and how they are
read, is up to the caller: both sides are mappings from element to word.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

# Counts captions of which every named element is right.
ALL = "all"


@dataclass(frozen=True)
class Verdict:
  """Comparison of one clip with its caption.

  Attributes:
    shown: what was read, element -> word; None for an element that cannot be read.
    right: whether each element that the caption names is the one shown.
  """

  shown: Mapping[str, str | None]
  right: Mapping[str, bool]


@dataclass(frozen=True)
class Count:
  """Captions that name an element: how many, for how many the clip shows it, and shows nothing readable."""

  right: int = 0
  total: int = 0
  unreadable: int = 0

  @property
  def accuracy(self) -> float:
    """The fraction that is right, in [0, 1]; NaN without such captions."""
    return self.right / self.total if self.total else float("nan")

  def __add__(self, other: "Count") -> "Count":
    return Count(
      self.right + other.right, self.total + other.total, self.unreadable + other.unreadable
    )


@dataclass(frozen=True, kw_only=True)
class CaptionAccuracy:
  """Counts over a set of clips, for each element that a caption names and for "all". `+` merges disjoint sets."""

  clips: int = 0
  counts: Mapping[str, Count] = field(default_factory=dict)

  def accuracy(self, element: str) -> float:
    """Fraction of captions with an element whose clip shows it, in [0, 1]; NaN without such captions."""
    return self.counts.get(element, Count()).accuracy

  def __add__(self, other: "CaptionAccuracy") -> "CaptionAccuracy":
    names = sorted({**self.counts, **other.counts}, key=lambda name: name == ALL)
    counts = {n: self.counts.get(n, Count()) + other.counts.get(n, Count()) for n in names}
    return CaptionAccuracy(clips=self.clips + other.clips, counts=counts)

  def as_dict(self) -> dict[str, float]:
    """Flat scalars for a metric writer or a JSON report; none of an element that no caption names."""
    scalars = {"clips": self.clips}
    for element, count in self.counts.items():
      for name in ("accuracy", "right", "total", "unreadable") if count.total else ():
        scalars[f"{element}_{name}"] = getattr(count, name)
    return {f"caption_accuracy/{name}": float(value) for name, value in scalars.items()}

  def __str__(self) -> str:
    named = {element: count for element, count in self.counts.items() if count.total}
    nothing = "" if named else ": none, as no caption names a color, shape or direction"
    lines = [f"caption accuracy over {self.clips} clips{nothing}"]
    for element, count in named.items():
      unreadable = f"  ({count.unreadable} unreadable)" if count.unreadable else ""
      lines.append(
        f"  {element:<10} {count.right:>5} of {count.total:<5} {count.accuracy:7.1%}{unreadable}"
      )
    return "\n".join(lines)


def compare(shown: Mapping[str, str | None], named: Mapping[str, str]) -> Verdict:
  """Compares a reading with the words of a caption; an element that is not read is wrong."""
  return Verdict(shown, {element: shown.get(element) == word for element, word in named.items()})


def tally(verdicts: Iterable[Verdict]) -> CaptionAccuracy:
  """Counts verdicts. "all" counts captions that name an element; all that they name must be right."""
  total, right, unreadable, clips = Counter[str](), Counter[str](), Counter[str](), 0
  for verdict in verdicts:
    clips += 1
    read = {element: verdict.shown.get(element) is not None for element in verdict.right}
    named = dict(verdict.right)
    if named:
      read[ALL], named[ALL] = all(read.values()), all(named.values())
    total.update(named.keys())
    right.update(element for element, fits in named.items() if fits)
    unreadable.update(element for element, found in read.items() if not found)
  names = sorted(total, key=lambda name: name == ALL)
  return CaptionAccuracy(
    clips=clips, counts={n: Count(right[n], total[n], unreadable[n]) for n in names}
  )
