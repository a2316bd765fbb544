"""Writes generated clips as one self-contained HTML page that opens from disk; only the visible clips play."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from walt_t5x.files.paths import AnyPath
from walt_t5x.html.page import ShownClip, embed, write_page

# Chroma is then in every pixel.
_DISPLAY_EDGE = 192


@dataclass(frozen=True, kw_only=True)
class GalleryItem:
  """One card: a prompt, its stages next to each other, and their metadata.

  number: number of the sample.
  verdict: stage -> element of the prompt -> whether the clip shows it, as {"base": {"color": True}}.
  details: additional values to print, name -> value.
  """

  prompt: str
  stages: Sequence[ShownClip]
  number: int | None = None
  seed: int | None = None
  step: int | None = None
  verdict: Mapping[str, Mapping[str, bool]] = field(default_factory=dict)
  details: Mapping[str, object] = field(default_factory=dict)


def write_gallery(
  path: str | os.PathLike[str],
  items: Iterable[GalleryItem],
  *,
  title: str = "Generated clips",
  media: str = "mp4",
  remarks: Mapping[str, Sequence[str]] | None = None,
) -> AnyPath:
  """Writes the page atomically and returns its path.

  Args:
    path: ends in .html.
    items: cards in order of appearance; an iterator is consumed one at a time.
    title: heading and window title.
    media: "mp4" (a video with a poster) or "webp" (an animated image, for viewers without H.264).
    remarks: heading -> lines, shown above the cards.

  Raises:
    ValueError: `items` is empty, an item has no stages, or `media` is unknown.
  """
  if media not in ("mp4", "webp"):
    raise ValueError(f"media is 'mp4' or 'webp', got {media!r}.")
  right, judged = Counter[tuple[str, str]](), Counter[tuple[str, str]]()

  def cards() -> Iterator[dict[str, Any]]:
    item = None
    for item in items:
      for stage, verdict in item.verdict.items():
        judged.update((stage, element) for element in verdict)
        right.update((stage, element) for element, fits in verdict.items() if fits)
      yield card(item, media)
    if item is None:
      raise ValueError("A gallery needs at least one item.")

  def shares() -> list[str]:
    """A line for each stage, such as "base: color 28/32, shape 20/32"."""
    lines: dict[str, list[str]] = {}
    for (stage, element), total in judged.items():
      lines.setdefault(stage, []).append(f"{element} {right[stage, element]}/{total}")
    return [f"{stage}: {', '.join(counts)}" for stage, counts in lines.items()]

  return write_page(
    path, "gallery", title=title, cards=cards(), shares=shares, remarks=remarks or {}
  )


def card(item: GalleryItem, media: str = "mp4") -> dict[str, Any]:
  """The values of a card for the macro of `card.html.j2`; raises ValueError if the item has no stages."""
  if not item.stages:
    raise ValueError(f"The item {item.prompt!r} has no stages: give at least one clip.")
  verdicts = [fits for verdict in item.verdict.values() for fits in verdict.values()]
  facts = {"seed": item.seed, "step": item.step, **item.details}
  return {
    "prompt": item.prompt,
    "searched": item.prompt.lower(),
    "number": item.number,
    "state": "none" if not verdicts else "right" if all(verdicts) else "wrong",
    "facts": " · ".join(f"{name} {value}" for name, value in facts.items() if value is not None),
    "clips": [
      embed(stage, edge=_DISPLAY_EDGE, media=media) | {"verdict": item.verdict.get(stage.name, {})}
      for stage in item.stages
    ],
  }
