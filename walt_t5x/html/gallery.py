"""Writes generated clips as one self-contained HTML page that opens from disk, offline.

Media are `data:` URIs and a content security policy blocks every other request, so the page can be
mailed or archived. Only the visible clips play.
"""

import html
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from walt_t5x.html.embedded_media import data_uri, picture_uri
from walt_t5x.html.gallery_page import HEADER, STYLE, TAIL
from walt_t5x.html.offline_page import offline_page
from walt_t5x.media import video_io

# Small clips are enlarged by an integer factor to about this edge, so that they stay sharp, with chroma in every pixel.
_DISPLAY_EDGE = 192


@dataclass(frozen=True, kw_only=True)
class GalleryStage:
  """One clip of a card, such as that of the base model or of a super-resolution stage.

  frames: [T, H, W, 3], float in [0, 1] or uint8; a single frame is shown as an image.
  """

  name: str
  frames: np.ndarray
  fps: float = 8.0


@dataclass(frozen=True, kw_only=True)
class GalleryItem:
  """One card: a prompt, its stages next to each other, and their metadata.

  verdict: property -> right, wrong or (None) not scored, as {"colour": True, "direction": False}.
  details: additional values to print, name -> value.
  """

  prompt: str
  stages: Sequence[GalleryStage]
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
  """Writes the page atomically.

  Args:
    path: ends in .html.
    items: cards in order of appearance; an iterator is consumed one at a time.
    title: heading and window title.
    media: "mp4" (a video with a poster) or "webp" (an animated image, for viewers without H.264).

  Returns:
    The path.

  Raises:
    ValueError: `items` is empty, an item has no stages, or `media` is unknown.
  """
  path = Path(path)
  if media not in ("mp4", "webp"):
    raise ValueError(f"media is 'mp4' or 'webp', got {media!r}.")
  right: Counter[str] = Counter()
  judged: Counter[str] = Counter()
  count = 0
  with offline_page(path, title=title, style=STYLE) as page:
    page.write(HEADER.replace("{{title}}", html.escape(title)))
    for item in items:
      page.write(_card(item, media))
      count += 1
      for name, verdict in item.verdict.items():
        if verdict is not None:
          judged[name] += 1
          right[name] += verdict
    if not count:
      raise ValueError("A gallery needs at least one item.")
    shares = " · ".join(f"{name} {right[name]} of {total} right" for name, total in judged.items())
    # Inside a script, a JSON string; "<" must not end the script early.
    page.write(TAIL.replace("{{shares}}", json.dumps(shares).replace("<", "\\u003c")))
  return path


def _figure(stage: GalleryStage, media: str) -> str:
  frames = video_io.to_uint8(stage.frames)
  num_frames, height, width = frames.shape[:3]
  scale = max(1, round(_DISPLAY_EDGE / max(height, width)))
  poster = picture_uri(video_io.upscale(frames[:1], scale)[0])
  size = f'width="{width * scale}" height="{height * scale}"'
  alt = html.escape(stage.name, quote=True)
  if num_frames == 1:
    medium = f'<img {size} src="{poster}" alt="{alt}">'
  elif media == "webp":
    clip = video_io.encode_video(frames, suffix=".webp", fps=stage.fps, scale=scale)
    medium = f'<img {size} src="{data_uri("image/webp", clip)}" alt="{alt}">'
  else:
    clip = video_io.encode_video(frames, suffix=".mp4", fps=stage.fps, crf=16, scale=scale)
    source = data_uri("video/mp4", clip)
    medium = (
      f'<video {size} src="{source}" poster="{poster}" aria-label="{alt}" data-fps="{stage.fps:g}" '
      "autoplay loop muted playsinline></video>"
    )
  facts = f"{num_frames}×{height}×{width}" + (f", {stage.fps:g} fps" if num_frames > 1 else "")
  name = html.escape(stage.name)
  return f"<figure>{medium}<figcaption><b>{name}</b> {facts}</figcaption></figure>"


def _card(item: GalleryItem, media: str) -> str:
  if not item.stages:
    raise ValueError(f"The item {item.prompt!r} has no stages: give at least one clip.")
  prompt = html.escape(item.prompt, quote=True)
  verdicts = {name: right for name, right in item.verdict.items() if right is not None}
  state = "none" if not verdicts else "right" if all(verdicts.values()) else "wrong"
  looks = {True: ("right", "✓"), False: ("wrong", "✗")}
  badges = "".join(
    f'<span class="{looks[right][0]}">{looks[right][1]} {html.escape(name)}</span>'
    for name, right in verdicts.items()
  )
  facts = {"seed": item.seed, "step": item.step, **item.details}
  printed = " · ".join(
    f"{html.escape(name)} {html.escape(str(value))}"
    for name, value in facts.items()
    if value is not None
  )
  figures = "".join(_figure(stage, media) for stage in item.stages)
  return (
    f'<article data-prompt="{prompt.lower()}" data-verdict="{state}"><h2>{prompt}</h2>'
    f'<div class="stages">{figures}</div><p class="facts">{printed}</p>'
    f'<p class="badges">{badges}</p></article>\n'
  )
