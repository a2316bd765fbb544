"""Selects the clips that a protocol scores, and reads them as the protocol says."""

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from walt_t5x.evaluation.media_files import Media, cropped, times_of
from walt_t5x.media import decoding, geometry, reading
from walt_t5x.media.clips import ClipSpec
from walt_t5x.media.containers import IMAGE_SUFFIXES
from walt_t5x.media.pixels import clip_to_uint8
from walt_t5x.media.rules import ReasonedError
from walt_t5x.metrics.network_input import resize_bilinear
from walt_t5x.metrics.protocols.protocol import ClipRule, Geometry, Protocol

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlannedClip:
  """The frames of one file that are scored as one clip of one fold.

  Attributes:
    number: index among the clips of the file.
    reference: the file that paired scores compare it with, by the same frames.
  """

  media: Media
  fold: int
  number: int
  reference: Media | None = None


def _generator(*parts: object) -> np.random.Generator:
  digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
  return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def plan_samples(media: Sequence[Media], protocol: Protocol) -> list[PlannedClip]:
  """One clip of each sample; fold k takes the k-th block of `sample_count`.

  Raises:
    ValueError: fewer samples than the protocol requires.
  """
  count = protocol.sample_count or len(media)
  if len(media) < count * protocol.folds:
    raise ValueError(
      f"{protocol.name} scores {protocol.folds} x {count} samples, got {len(media)}. Generate more, "
      "or set --count and --folds: the protocol hash then distinguishes the score."
    )
  return [
    PlannedClip(media=media[fold * count + i], fold=fold, number=0)
    for fold in range(protocol.folds)
    for i in range(count)
  ]


def with_references(
  clips: Sequence[PlannedClip], references: Sequence[Media], *, score: str
) -> list[PlannedClip]:
  """The clips, each with the reference of the same name.

  Raises:
    ValueError: a clip has no reference; the message names `score`.
  """
  by_name = {media.name: media for media in references}
  missing = [clip.media.name for clip in clips if clip.media.name not in by_name]
  if missing:
    raise ValueError(
      f"{score} compares files with equal names: {len(missing)} samples have no reference, for example "
      f"{missing[:3]}; the references are named {sorted(by_name)[:3]}."
    )
  return [dataclasses.replace(clip, reference=by_name[clip.media.name]) for clip in clips]


def plan_references(media: Sequence[Media], protocol: Protocol) -> list[PlannedClip]:
  """The reference clips of every fold.

  Assumption: with a count, each fold takes the first of `reference_clips_per_video` clips of every file in its own
  random order, and starts again with further clips of the files if they are not enough; without one it takes them all.

  Raises:
    ValueError: more clips than files are required, but all clips of a file would be equal.
  """
  clips = []
  several = protocol.reference_clip is ClipRule.RANDOM
  each = protocol.reference_clips_per_video
  pool = [(file, number) for number in range(each) for file in range(len(media))]
  for fold in range(protocol.folds):
    total = protocol.reference_count or len(pool)
    if total > len(media) and not several:
      raise ValueError(
        f"{protocol.name} takes {total} reference clips, one per file, got {len(media)} files. Set "
        "--reference_count: the protocol hash then distinguishes the score."
      )
    order = list(range(len(pool)))
    if protocol.reference_count is not None:
      order = _generator("order", protocol.seed, fold).permutation(len(pool)).tolist()
    for i in range(total):
      again, at = divmod(i, len(pool))
      file, number = pool[order[at]]
      clips.append(PlannedClip(media=media[file], fold=fold, number=number + again * each))
  return clips


_POSITIONS = {
  ClipRule.FIRST: "beginning",
  ClipRule.CENTRAL: "centre",
  ClipRule.RANDOM: "random",
}


def read_clip(clip: PlannedClip, protocol: Protocol, rule: ClipRule) -> np.ndarray:
  """The frames [T, H, W, 3], uint8, cut and resized according to the protocol.

  Of a media file only these frames are converted, with the functions of preprocessing: a real clip is the same pixels
  here and in the training data. Assumption: resizing rounds to bytes, because the networks are defined for the contents
  of files.

  Raises:
    ValueError: a file cannot be read, or has fewer frames than a clip, or frames at a lower rate than the protocol's.
  """
  if rule not in _POSITIONS:
    raise ValueError(f"No clip rule {rule!r}; expected one of {list(ClipRule)}.")
  draw = {ClipRule.FIRST: 0.0, ClipRule.CENTRAL: 0.5}.get(rule)
  if draw is None:
    draw = _generator("clip", protocol.seed, clip.media.name, clip.fold, clip.number).random()
  try:
    if clip.media.generated:
      found = clip.media.read()
      frames = found[_window(len(found), protocol.frames, draw)]
    else:
      frames = _cut_file(clip.media, protocol, rule, draw)
  except (ReasonedError, ValueError) as error:
    rate = "" if protocol.fps is None else f" at {protocol.fps:g} fps"
    raise ValueError(
      f"{clip.media.path}: {error}. {protocol.name} scores clips of {protocol.frames} frames{rate}: exclude the file, "
      "or set --frames or --fps, and the protocol hash distinguishes the score."
    ) from error
  if protocol.size is not None and frames.shape[1:3] != tuple(protocol.size):
    frames = _resized(frames, protocol)
  return np.ascontiguousarray(frames)


def _window(count: int, length: int, draw: float) -> slice:
  """Which frames of `count` make a clip; `draw` in [0, 1) places it."""
  if count < length:
    raise ValueError(f"it has {count} frames")
  # The center is rounded down; a random start is uniform.
  start = int(draw * (count - length + 1)) if draw != 0.5 else (count - length) // 2
  return slice(start, start + length)


def _cut_file(media: Media, protocol: Protocol, rule: ClipRule, draw: float) -> np.ndarray:
  size = protocol.source_size or protocol.size
  if protocol.geometry is Geometry.STRETCH:
    size = None
  content, excerpt = media.path.read_bytes(), media.excerpt
  image = media.path.suffix.lower() in IMAGE_SUFFIXES
  if image and size is None:
    return media.read()
  if size is not None and (image or protocol.fps is not None):
    return decoding.decode(
      content,
      "image" if image else "video",
      _spec(size, protocol, rule),
      start_seconds=excerpt.start_seconds,
      end_seconds=excerpt.end_seconds,
      crop=excerpt.crop,
      draw=draw,
    ).frames[size]
  # Native frames, or native sizes: frames are chosen by number.
  windowed = excerpt.start_seconds is not None or excerpt.end_seconds is not None
  if rule is ClipRule.FIRST and protocol.fps is None and not windowed:
    numbers = list(range(protocol.frames))
  else:
    first, times = times_of(content, excerpt)
    chosen = range(len(times)) if protocol.fps is None else reading.resampled(times, protocol.fps)
    # As in preprocessing, a row with a start and no end states where its clip begins.
    if excerpt.start_seconds is not None and excerpt.end_seconds is None:
      draw = 0.0
    window = _window(len(chosen), protocol.frames, draw)
    numbers = [first + number for number in chosen[window]]
  if size is None:
    frames = np.stack([cropped(one, excerpt) for one in reading.frames_at(content, numbers)])
  else:
    frames = decoding.native_frames(content, numbers, size=size, crop=excerpt.crop)
  if len(frames) < protocol.frames:
    raise ValueError(f"it has {len(frames)} frames")
  return frames


def _spec(size: tuple[int, int], protocol: Protocol, rule: ClipRule) -> ClipSpec:
  """What preprocessing would be asked for."""
  return ClipSpec(
    resolutions=(size,),
    num_frames=protocol.frames,
    fps=protocol.fps or 1.0,
    position=_POSITIONS[rule],
    allow_upscale=True,
    deinterlace=True,
  )


def _resized(frames: np.ndarray, protocol: Protocol) -> np.ndarray:
  """Frames at the protocol's size by its rule, cut at the center or stretched."""
  assert protocol.size is not None
  scaled, (top, left) = protocol.size, (0, 0)
  if protocol.geometry is Geometry.CROP:
    place = geometry.fit(frames.shape[1:3], protocol.size)
    scaled, (top, left) = place.scaled, place.offset
  resized = resize_bilinear(frames.astype(np.float32), scaled, rule=protocol.size_resize)
  height, width = protocol.size
  return clip_to_uint8(np.asarray(resized)[:, top : top + height, left : left + width] / 255)


def in_batches(items: Iterable[_T], size: int, *, key: Callable[[_T], Any]) -> Iterator[list[_T]]:
  """Consecutive items with equal keys, at most `size` at a time; holds one batch in memory."""
  for _, alike in itertools.groupby(items, key):
    while batch := list(itertools.islice(alike, size)):
      yield batch
