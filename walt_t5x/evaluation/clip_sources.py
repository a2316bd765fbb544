"""Selects the clips that a protocol scores: from folders of media, manifests, or output folders of `generate`."""

import dataclasses
import hashlib
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from walt_t5x.files import storage
from walt_t5x.files.damage import parsed
from walt_t5x.files.paths import AnyPath, as_path
from walt_t5x.generation.sample_folder import SampleFolder
from walt_t5x.media import decoding, geometry, pictures, reading
from walt_t5x.media.clips import ClipSpec
from walt_t5x.media.containers import IMAGE_SUFFIXES, VIDEO_SUFFIXES, is_hidden
from walt_t5x.media.pixels import clip_to_uint8
from walt_t5x.media.rules import ReasonedError
from walt_t5x.metrics.network_input import resize_bilinear
from walt_t5x.metrics.protocols.protocol import ClipRule, Geometry, Protocol

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Media:
  """One file; `name`, its path inside the folder without suffix, identifies it in pairs and random draws.

  `read` returns its frames, [T, H, W, 3] uint8. `generated` marks a sample of `generate`, whose frames are the clip,
  with the (height, width) and rate of its sidecar; other files are cut like training data.
  """

  name: str
  path: AnyPath
  read: Callable[[], np.ndarray]
  generated: bool = False
  size: tuple[int, int] | None = None
  fps: float | None = None


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


def read_file(path: AnyPath, *, max_frames: int | None = None) -> np.ndarray:
  """Frames [T, H, W, 3] uint8, the first `max_frames` or all; an image is one frame."""
  if path.suffix.lower() in IMAGE_SUFFIXES:
    return np.asarray(pictures.open_picture(path))[None]
  return reading.read_video(path, max_frames=max_frames).frames


def _file(path: AnyPath, name: str) -> Media:
  return Media(
    name=str(pathlib.PurePath(name).with_suffix("")), path=path, read=lambda: read_file(path)
  )


def _from_sample_folder(path: AnyPath, stage: str | None) -> list[Media]:
  folder, found = SampleFolder(path), []
  for sample in folder.samples():
    names = list(sample.files)
    chosen = stage or names[-1]
    if chosen not in names:
      raise ValueError(f"sample {sample.index} of {path} has stages {names}, got --stage={stage}.")

    def read(sample=sample, chosen=chosen) -> np.ndarray:
      return clip_to_uint8(folder.read(sample, chosen))

    _, height, width, _ = sample.sidecar["stages"][chosen]["shape"]
    found.append(
      Media(
        name=f"{sample.index:05d}",
        path=sample.files[chosen],
        read=read,
        generated=True,
        size=(height, width),
        fps=sample.sidecar["fps"],
      )
    )
  return found


def _from_manifest(path: AnyPath, *, images: bool, split: str | None) -> list[Media]:
  modality, found = "image" if images else "video", []
  with path.open(encoding="utf-8") as lines:
    for number, line in enumerate(lines, 1):
      row = parsed(line, name=f"{path}:{number}")
      if "uri" not in row:
        raise ValueError(f"{path}:{number} has no 'uri'; got the fields {sorted(row)}.")
      if row.get("modality", modality) == modality and split in (None, row.get("split")):
        found.append(_file(path.parent / row["uri"], row["uri"]))
  return found


def _from_folder(path: AnyPath, suffixes: Sequence[str]) -> list[Media]:
  files = sorted(f for f in path.rglob("*") if f.suffix.lower() in suffixes)
  return [_file(f, n) for f in files if not is_hidden(n := str(f.relative_to(path)))]


def _has_samples(folder: AnyPath) -> bool:
  """Whether a folder has sidecars of samples; other programs name files by numbers too."""
  first = min(folder.glob("[0-9]*.json"), default=None)
  return first is not None and "stages" in storage.read_json(first)


def is_ours(folder: AnyPath) -> bool:
  """Whether a folder of media was written by `generate` or `reconstruct`, so that results may be added to it."""
  made = folder.parent / "sidecars", folder.parent / "run.json"
  return _has_samples(folder) or all(path.exists() for path in made)


def find_media(
  path: str | AnyPath, *, images: bool = False, stage: str | None = None, split: str | None = None
) -> list[Media]:
  """The media under a path, in the order of their names; those of a manifest in its order.

  Args:
    path: an output folder of `python -m walt_t5x.generate` (recognized by its sidecars), a folder of media
      files at any depth, or a `.jsonl` manifest whose rows have a `uri` relative to it.
    images: look for images instead of videos.
    stage: stage of a generated cascade; None for the last.
    split: keep only the manifest rows of this split.

  Raises:
    FileNotFoundError: the path does not exist, or has no media.
    ValueError: a manifest row has no uri, or the stage is unknown.
  """
  path = as_path(path)
  if path.suffix == ".jsonl" and path.is_file():
    found = _from_manifest(path, images=images, split=split)
  elif path.is_dir() and _has_samples(path):
    found = _from_sample_folder(path, stage)
  else:
    found = _from_folder(path, IMAGE_SUFFIXES if images else VIDEO_SUFFIXES)
  if not found:
    kinds = ("images", "videos") if images else ("videos", "images")
    others = path.is_dir() and _from_folder(path, VIDEO_SUFFIXES if images else IMAGE_SUFFIXES)
    there = f", only {len(others):,} {kinds[1]}" if others else ""
    raise FileNotFoundError(
      f"No {kinds[0]} under {path}{there}: expected a folder of media, a .jsonl "
      "manifest, or the --output of `python -m walt_t5x.generate`."
    )
  return found


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
  content = media.path.read_bytes()
  if media.path.suffix.lower() in IMAGE_SUFFIXES:
    if size is None:
      return media.read()
    return decoding.decode(content, "image", _spec(size, protocol, rule)).frames[size]
  if size is not None and protocol.fps is not None:
    spec = _spec(size, protocol, rule)
    return decoding.decode(content, "video", spec, draw=draw).frames[size]
  # Native frames, or native sizes: frames are chosen by number.
  if rule is ClipRule.FIRST and protocol.fps is None:
    numbers = list(range(protocol.frames))
  else:
    times = reading.frame_times(content)
    chosen = range(len(times)) if protocol.fps is None else reading.resampled(times, protocol.fps)
    numbers = list(chosen[_window(len(chosen), protocol.frames, draw)])
  if size is None:
    frames = np.stack(list(reading.frames_at(content, numbers)))
  else:
    frames = decoding.native_frames(content, numbers, size=size)
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
