"""Writes generated clips as one self-contained HTML page that opens from disk; only the visible clips play."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from walt_t5x.html.page import ShownClip, embed, write_page

# Chroma is then in every pixel.
_DISPLAY_EDGE = 192


@dataclass(frozen=True, kw_only=True)
class GalleryItem:
  """One card: a prompt, its stages next to each other, and their metadata.

  verdict: property -> right, wrong or (None) not scored, as {"color": True, "direction": False}.
  details: additional values to print, name -> value.
  """

  prompt: str
  stages: Sequence[ShownClip]
  seed: int | None = None
  step: int | None = None
  verdict: Mapping[str, bool | None] = field(default_factory=dict)
  details: Mapping[str, object] = field(default_factory=dict)


def write_gallery(
  path: str | os.PathLike[str],
  items: Iterable[GalleryItem],
  *,
  title: str = "Generated clips",
  media: str = "mp4",
) -> Path:
  """Writes the page atomically and returns its path.

  Args:
    path: ends in .html.
    items: cards in order of appearance; an iterator is consumed one at a time.
    title: heading and window title.
    media: "mp4" (a video with a poster) or "webp" (an animated image, for viewers without H.264).

  Raises:
    ValueError: `items` is empty, an item has no stages, or `media` is unknown.
  """
  if media not in ("mp4", "webp"):
    raise ValueError(f"media is 'mp4' or 'webp', got {media!r}.")
  right, judged = Counter[str](), Counter[str]()

  def cards() -> Iterator[dict[str, Any]]:
    item = None
    for item in items:
      verdicts = {name: bool(fits) for name, fits in item.verdict.items() if fits is not None}
      judged.update(verdicts.keys())
      right.update(name for name, fits in verdicts.items() if fits)
      yield _card(item, verdicts, media)
    if item is None:
      raise ValueError("A gallery needs at least one item.")

  def shares() -> str:
    return " · ".join(f"{name} {right[name]} of {total} right" for name, total in judged.items())

  return write_page(path, "gallery", title=title, cards=cards(), shares=shares)


def _card(item: GalleryItem, verdicts: Mapping[str, bool], media: str) -> dict[str, Any]:
  if not item.stages:
    raise ValueError(f"The item {item.prompt!r} has no stages: give at least one clip.")
  facts = {"seed": item.seed, "step": item.step, **item.details}
  return {
    "prompt": item.prompt,
    "state": "none" if not verdicts else "right" if all(verdicts.values()) else "wrong",
    "verdicts": verdicts,
    "facts": " · ".join(f"{name} {value}" for name, value in facts.items() if value is not None),
    "clips": [embed(stage, edge=_DISPLAY_EDGE, media=media) for stage in item.stages],
  }
