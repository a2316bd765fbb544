"""Scenes with richer captions than `shapes`: speeds, bounces, two objects, occlusion and backgrounds.

  a red circle moves left slowly on a gray background
  a blue square bounces off the top edge
  a green triangle moves right behind a yellow circle on a white background
  a cyan square above a magenta triangle                                      (a still)

Every word changes what is seen by more than a small model's error: speeds and positions of two words are far apart, and
a background is far from every color. The captions of `shapes` are captions of this grammar too.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data.samples import shapes

Choice = Mapping[str, str]

# Words that follow the direction, and the displacement over the clip, in edges of the frame.
SPEEDS: dict[str, tuple[float, float]] = {
  "": (0.32, 0.40),
  " slowly": (0.14, 0.20),
  " quickly": (0.53, 0.58),
}
EDGES = {"left": "left", "right": "right", "up": "top", "down": "bottom"}
# Unit steps (x, y) from the second object to the first.
RELATIONS: dict[str, tuple[int, int]] = {
  "on the left of": (-1, 0),
  "on the right of": (1, 0),
  "above": (0, -1),
  "below": (0, 1),
}
DEPTHS = ("behind", "in front of")
# Words at the end of the caption, and the colors of the top and the bottom row.
BACKGROUNDS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
  "": ((14, 15, 26), (36, 40, 60)),
  " on a gray background": ((112, 116, 126), (146, 150, 158)),
  " on a white background": ((232, 234, 240), (252, 252, 252)),
}

MARGIN = 0.02
# Travel to the edge before a bounce, and when the edge is reached, in 16ths of the clip.
BOUNCE_RANGE = (0.32, 0.40)
BOUNCE_TIMES = (7, 8, 9)
# Travel of an object next to another that is at rest.
PAIR_TRAVEL_RANGE = (0.42, 0.54)
# Empty space between two objects across the direction of their order.
MIN_GAP = 0.05
SHADE_RANGE = (-5.0, 5.0)


def _product(*choices: Sequence[Choice]) -> list[Choice]:
  """All combinations of one entry of each."""
  return [
    {key: word for part in parts for key, word in part.items()}
    for parts in itertools.product(*choices)
  ]


def _words(key: str, values: Sequence[str]) -> list[Choice]:
  return [{key: value} for value in values]


_OBJECTS = _product(_words("color", list(shapes.COLORS)), _words("shape", shapes.SHAPES))
_PAIRS = [
  {**first, "other_color": second["color"], "other_shape": second["shape"]}
  for first, second in itertools.product(_OBJECTS, repeat=2)
  if first["color"] != second["color"]
]
_DIRECTIONS = _words("direction", list(shapes.DIRECTIONS))
# An object that moves along one axis keeps its order along the other.
_ORDERED_MOVES = [
  {"direction": direction, "relation": relation}
  for direction, step in shapes.DIRECTIONS.items()
  for relation, side in RELATIONS.items()
  if not np.dot(step, side)
]


@dataclass(frozen=True, kw_only=True)
class Pattern:
  """Captions of one form. A caption takes one entry of each of `choices`, and a background."""

  template: str
  moving: bool
  # Of every 20 clips, or of every 4 stills.
  share: int
  # Edge of an object's bounding box, in edges of the frame.
  extent: tuple[float, float]
  # The first holds the combinations of which some are in no training row.
  choices: tuple[Sequence[Choice], ...]


_PAIR_MOVES = "a {color} {shape} moves {direction} {relation} a {other_color} {other_shape}"
PATTERNS: dict[str, Pattern] = {
  "move": Pattern(
    template="a {color} {shape} moves {direction}{speed}",
    moving=True,
    share=7,
    extent=(0.32, 0.38),
    choices=(_product(_OBJECTS, _DIRECTIONS, _words("speed", list(SPEEDS))),),
  ),
  "bounce": Pattern(
    template="a {color} {shape} bounces off the {edge} edge",
    moving=True,
    share=3,
    extent=(0.32, 0.38),
    choices=(_product(_OBJECTS, [{"direction": d, "edge": e} for d, e in EDGES.items()]),),
  ),
  "pass": Pattern(
    template=_PAIR_MOVES,
    moving=True,
    share=5,
    extent=(0.26, 0.30),
    choices=(_PAIRS, _product(_DIRECTIONS, _words("relation", DEPTHS))),
  ),
  "next to": Pattern(
    template=_PAIR_MOVES,
    moving=True,
    share=5,
    extent=(0.30, 0.36),
    choices=(_PAIRS, _ORDERED_MOVES),
  ),
  "still": Pattern(
    template="a {color} {shape}",
    moving=False,
    share=1,
    extent=(0.32, 0.38),
    choices=(_OBJECTS,),
  ),
  "still pair": Pattern(
    template="a {color} {shape} {relation} a {other_color} {other_shape}",
    moving=False,
    share=3,
    extent=(0.30, 0.36),
    choices=(_PAIRS, _words("relation", list(RELATIONS))),
  ),
}
_BACKGROUNDS = _words("background", list(BACKGROUNDS))


@dataclass(frozen=True)
class Words:
  """The pattern of a caption and the words that fill it."""

  pattern: str
  fields: tuple[tuple[str, str], ...]

  def __getitem__(self, key: str) -> str:
    return dict(self.fields)[key]

  @property
  def caption(self) -> str:
    """The caption, e.g. "a red circle moves left slowly on a gray background"."""
    return PATTERNS[self.pattern].template.format(**dict(self.fields)) + self["background"]


def held_out(choice: Choice) -> bool:
  """Whether a combination of a pattern's first choices is in no training row.

  One sixth of (color, shape, motion) and one ninth of the pairs of objects, in either order and whatever they do. Every
  two words that occur together in a caption still do so in training.
  """
  colors, kinds = list(shapes.COLORS), shapes.SHAPES
  color, shape = colors.index(choice["color"]), kinds.index(choice["shape"])
  if "other_color" in choice:
    other = 3 * colors.index(choice["other_color"]) + kinds.index(choice["other_shape"])
    return (3 * color + shape + other) % 9 == 4
  if "direction" not in choice:
    return False
  speeds = list(SPEEDS)
  motion = 3 * list(shapes.DIRECTIONS).index(choice["direction"])
  motion += speeds.index(choice.get("speed", ""))
  return (color + 2 * shape + motion) % 6 == 0


def _shuffled(rng: np.random.Generator, items: Sequence) -> Iterator:
  """Endless; every len(items) consecutive elements have each item once."""
  while True:
    yield from (items[index] for index in rng.permutation(len(items)))


def _sequence(
  rng: np.random.Generator, name: str, choices: Sequence[Sequence[Choice]]
) -> Iterator[Words]:
  decks = [_shuffled(rng, entries) for entries in (*choices, _BACKGROUNDS)]
  for parts in zip(*decks):
    yield Words(name, tuple(item for part in parts for item in part.items()))


def balanced_vocabulary(
  rng: np.random.Generator,
  count: int,
  *,
  moving: bool,
  training: bool = False,
  only_held_out: bool = False,
) -> Iterator[Words]:
  """Yields words so that any prefix is balanced over patterns, and within a pattern over each of its choices.

  Args:
    rng: orders the words.
    count: number of items.
    moving: whether the scenes move.
    training: leave out the held-out combinations.
    only_held_out: yield nothing else, of the patterns that have any.
  """
  sequences, order = {}, []
  for name, pattern in PATTERNS.items():
    first, *others = pattern.choices
    allowed = [choice for choice in first if not training or not held_out(choice)]
    allowed = [choice for choice in allowed if not only_held_out or held_out(choice)]
    if pattern.moving == moving and allowed:
      sequences[name] = _sequence(rng, name, (allowed, *others))
      order += [name] * pattern.share
  return (next(sequences[name]) for name in itertools.islice(_shuffled(rng, order), count))


def held_out_captions(rng: np.random.Generator, count: int) -> list[str]:
  """Different captions of clips whose combinations are in no training row, balanced as training."""
  sequence = balanced_vocabulary(rng, 4 * count, moving=True, only_held_out=True)
  return list(dict.fromkeys(words.caption for words in sequence))[:count]


@dataclass(frozen=True, kw_only=True)
class Body:
  """One object and its path: (time in [0, 1], x, y) of its corners, joined by straight lines."""

  color: str
  shape: str
  extent: float
  path: tuple[tuple[float, float, float], ...]

  def center(self, time: float) -> tuple[float, float]:
    """Center (x, y) of the bounding box."""
    times, x, y = zip(*self.path)
    return float(np.interp(time, times, x)), float(np.interp(time, times, y))


@dataclass(frozen=True, kw_only=True)
class ShowcaseScene:
  """What a caption shows. A later body is in front of an earlier one."""

  words: Words
  bodies: tuple[Body, ...]
  # Added to the background, in levels of 255.
  shade: float

  @property
  def caption(self) -> str:
    """The caption."""
    return self.words.caption

  @property
  def label(self) -> int:
    """-1: the scenes have no classes."""
    return -1


def _axis(step: tuple[int, int]) -> int:
  return 0 if step[0] else 1


def _path(
  step: tuple[int, int], across: float, corners: Sequence[tuple[float, float]]
) -> tuple[tuple[float, float, float], ...]:
  """A path along one axis. Corners are (time, position from the edge that the step leads away from)."""
  path = []
  for time, along in corners:
    along = along if sum(step) > 0 else 1 - along
    path.append((time, along, across) if step[0] else (time, across, along))
  return tuple(path)


def _inside(rng: np.random.Generator, extent: float, travel: float = 0.0) -> float:
  """A start in [0, 1] such that an object of the extent stays inside while it travels."""
  low = extent / 2 + MARGIN
  return float(rng.uniform(low, max(low, 1 - low - travel)))


def _ordered(
  rng: np.random.Generator, first: float, second: float, *, swapped: bool
) -> tuple[float, float]:
  """Centers of two objects in a row, the first one before the second unless swapped."""
  pads = rng.dirichlet((1, 1, 1)) * (1 - 2 * MARGIN - MIN_GAP - first - second)
  start = MARGIN + pads[0] + first / 2
  end = start + first / 2 + MIN_GAP + pads[1] + second / 2
  return (1 - start, 1 - end) if swapped else (start, end)


def sample_scene(rng: np.random.Generator, words: Words) -> ShowcaseScene:
  """Samples sizes, positions and paths that show the words, every object entirely inside the frame."""
  fields, pattern = dict(words.fields), words.pattern
  extent, other = (float(edge) for edge in rng.uniform(*PATTERNS[pattern].extent, 2))
  step = shapes.DIRECTIONS[fields.get("direction", "right")]
  side = RELATIONS.get(fields.get("relation", ""), (1, 0))
  across, rest = _inside(rng, extent), ()
  if pattern == "move":
    travel = float(rng.uniform(*SPEEDS[fields["speed"]]))
    start = _inside(rng, extent, travel)
    path = _path(step, across, [(0, start), (1, start + travel)])
  elif pattern == "bounce":
    travel, turn = float(rng.uniform(*BOUNCE_RANGE)), rng.choice(BOUNCE_TIMES) / 16
    end = 1 - MARGIN / 2 - extent / 2
    path = _path(
      step, across, [(0, end - travel), (turn, end), (1, end - travel * (1 - turn) / turn)]
    )
  elif pattern == "pass":
    # Apart at both ends of the clip; in its middle one covers the other.
    pad = float(rng.uniform(MARGIN, 1.5 * MARGIN))
    start = pad + extent / 2
    path = _path(step, across, [(0, start), (1, 1 - start)])
    low = other / 2 + MARGIN
    level = float(np.clip(across + rng.uniform(-0.03, 0.03), low, 1 - low))
    rest = _path(step, level, [(0, 0.5 + float(rng.uniform(-0.015, 0.015)))])
  elif pattern == "next to":
    travel = float(rng.uniform(*PAIR_TRAVEL_RANGE))
    start = _inside(rng, extent, travel)
    across, level = _ordered(rng, extent, other, swapped=sum(side) > 0)
    path = _path(step, across, [(0, start), (1, start + travel)])
    rest = _path(step, level, [(0, _inside(rng, other))])
  elif pattern == "still pair":
    first, second = _ordered(rng, extent, other, swapped=sum(side) > 0)
    low = max(extent, other) / 2 + MARGIN
    level = float(np.clip(across + rng.uniform(-0.1, 0.1), low, 1 - low))
    across = float(np.clip(across, low, 1 - low))
    (path, rest) = (
      _path((abs(side[0]), abs(side[1])), line, [(0, along)])
      for line, along in ((across, first), (level, second))
    )
  elif pattern == "still":
    path = _path(step, across, [(0, _inside(rng, extent))])
  else:
    raise ValueError(f"Unknown pattern {pattern!r}; expected one of {tuple(PATTERNS)}.")
  bodies = [Body(color=fields["color"], shape=fields["shape"], extent=extent, path=path)]
  if "other_color" in fields:
    body = Body(color=fields["other_color"], shape=fields["other_shape"], extent=other, path=rest)
    bodies.insert(0 if fields["relation"] != "behind" else 1, body)
  return ShowcaseScene(words=words, bodies=tuple(bodies), shade=float(rng.uniform(*SHADE_RANGE)))


def continued_caption(scene: ShowcaseScene) -> str | None:
  """A caption of a clip that can start from a still: its object moves to where the frame has most room.

  None if the still has two objects, or too little room for the travel of a clip.
  """
  if scene.words.pattern != "still":
    return None
  (body,) = scene.bodies
  x, y = body.center(0)
  room = {"left": x, "right": 1 - x, "up": y, "down": 1 - y}
  direction = max(room, key=lambda name: room[name])
  if room[direction] < SPEEDS[""][1] + body.extent / 2 + MARGIN / 2:
    return None
  words = {**dict(scene.words.fields), "direction": direction, "speed": ""}
  return Words("move", tuple(words.items())).caption


def render(scene: ShowcaseScene, *, num_frames: int, size: int) -> np.ndarray:
  """Renders a scene at `num_frames` times, evenly spaced from 0 to 1.

  Args:
    scene: what to render.
    num_frames: T; 1 for a still.
    size: H = W in pixels.

  Returns:
    [T, size, size, 3] uint8 RGB.
  """
  moving = PATTERNS[scene.words.pattern].moving
  if num_frames < 1 + moving or size < 8:
    raise ValueError(
      "num_frames must be at least 1, or 2 for a moving scene, and size at least 8, got "
      f"{num_frames=}, {size=}."
    )
  top, bottom = (np.array(row, np.float32) for row in BACKGROUNDS[scene.words["background"]])
  height = ((np.arange(size, dtype=np.float32) + 0.5) / size)[:, None, None]
  rows = np.clip(top + (bottom - top) * height + np.float32(scene.shade), 0, 255)
  empty = np.broadcast_to(rows, (size, size, 3)).astype(np.float32)
  frames = np.empty((num_frames, size, size, 3), np.uint8)
  for index in range(num_frames):
    canvas = empty.copy()
    for body in scene.bodies:
      shapes.draw(
        canvas,
        color=body.color,
        shape=body.shape,
        center=body.center(index / max(1, num_frames - 1)),
        extent=body.extent,
      )
    frames[index] = np.rint(canvas)
  return frames
