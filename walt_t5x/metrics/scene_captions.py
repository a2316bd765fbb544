"""Caption accuracy of scenes with one or two objects: what a caption says, compared with what the pixels show.

  a red circle moves left slowly on a gray background
  a blue square bounces off the top edge
  a green triangle moves right behind a yellow circle on a white background

A caption names some elements: "color" and "shape" (of all its objects), "direction", "speed", "bounce" (the edge),
"order" (of two objects) and "background". Captions that name only one color, shape and direction are judged by
`caption_accuracy`, so they are judged alike whatever else a corpus has.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

from walt_t5x.metrics import caption_accuracy, scene_reader, shape_reader
from walt_t5x.metrics.caption_counts import CaptionAccuracy, Verdict, compare, tally

# Displacement over the clip, in edges of the frame.
SPEEDS = {"slowly": (0.08, 0.26), "quickly": (0.46, 1.0)}
EDGES = ("left", "right", "top", "bottom")
# The elements that `caption_accuracy` does not judge.
SCENE_ELEMENTS = ("speed", "bounce", "order", "background")


def parse_caption(
  caption: str, *, palette: Mapping[str, object] = caption_accuracy.PALETTE
) -> dict[str, str]:
  """The elements that a caption names, element -> word; of two objects "red, blue", in the order of the caption."""
  text = " ".join(re.findall(r"[a-z]+", caption.lower()))

  def one_of(words: Iterable[str]) -> str:
    return f"({'|'.join(words)})"

  objects = re.findall(rf"\b{one_of(palette)} {one_of(shape_reader.SHAPES)}\b", text)
  named = {}
  if objects:
    named["color"], named["shape"] = (", ".join(words) for words in zip(*objects))
  patterns = {
    "direction": rf"\bmoves {one_of(caption_accuracy.DIRECTIONS)}\b",
    "speed": rf"\b{one_of(SPEEDS)}\b",
    "bounce": rf"\bbounces off the {one_of(EDGES)} edge\b",
    "order": rf"\b{one_of(scene_reader.ORDERS)} an? ",
    "background": rf"\bon an? {one_of(scene_reader.BACKGROUNDS)} background\b",
  }
  for element, pattern in patterns.items():
    if found := re.search(pattern, text):
      named[element] = found[1]
  return named


def judge(
  video: Float[np.ndarray, "T H W 3"],
  caption: str,
  *,
  palette: Mapping[str, Sequence[float]] = caption_accuracy.PALETTE,
) -> Verdict:
  """Compares a clip [T, H, W, 3] in [0, 1] with its caption.

  Raises:
    ValueError: as `caption_accuracy.read_clip`.
  """
  named = parse_caption(caption, palette=palette)
  if not set(named) & set(SCENE_ELEMENTS):
    return caption_accuracy.judge(video, caption, palette=palette)
  caption_accuracy.check_pixels(video)
  return compare(describe(scene_reader.read_scene(video, palette=palette), named), named)


def names_shape(caption: str) -> bool:
  """Whether a caption names a color and a shape: only clips with such captions can be judged."""
  return {"color", "shape"} <= parse_caption(caption).keys()


def score(clips: Iterable[tuple[np.ndarray, str]]) -> CaptionAccuracy:
  """Judges every (video [T, H, W, 3] in [0, 1], caption) and counts."""
  return tally(judge(video, caption) for video, caption in clips)


def describe(reading: scene_reader.SceneReading, named: Mapping[str, str]) -> dict[str, str | None]:
  """What a clip shows, element -> word, its objects in the order of a caption's, and None for what cannot be read."""
  shown: dict[str, str | None] = {"background": reading.background}
  if not reading.objects:
    return shown
  objects = _in_order(reading.objects, named)
  first, *others = objects
  shown["color"] = ", ".join(found.color for found in objects)
  shapes = [found.shape for found in objects]
  shown["shape"] = None if None in shapes else ", ".join(map(str, shapes))
  if first.motion and not any(other.motion for other in others):
    shown["direction"], shown["bounce"] = first.motion.direction, first.motion.bounce
    way = first.motion.displacement
    shown["speed"] = next((n for n, (low, high) in SPEEDS.items() if low <= way <= high), None)
  if others:
    shown["order"] = scene_reader.order(first, others[0])
  return shown


def _in_order(
  objects: Sequence[scene_reader.SceneObject], named: Mapping[str, str]
) -> list[scene_reader.SceneObject]:
  """The objects, first the one that agrees best with the caption's first object: color, then shape, then motion."""
  colors, shapes = (named.get(element, "").split(", ") for element in ("color", "shape"))
  moves = bool({"direction", "bounce"} & set(named))

  def agreement(order: Sequence[scene_reader.SceneObject]) -> tuple[int, int, bool]:
    return (
      sum(found.color == word for found, word in zip(order, colors)),
      sum(found.shape == word for found, word in zip(order, shapes)),
      moves and order[0].motion is not None,
    )

  return max((list(objects), list(objects)[::-1]), key=agreement)
