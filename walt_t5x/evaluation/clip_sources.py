"""Selects the clips that a protocol scores: from folders of media, manifests, or output folders of `generate`."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from walt_t5x.files import storage
from walt_t5x.generation.sample_folder import SampleFolder
from walt_t5x.media import pictures, reading
from walt_t5x.media.containers import IMAGE_SUFFIXES, VIDEO_SUFFIXES, is_hidden
from walt_t5x.media.pixels import clip_to_uint8
from walt_t5x.metrics.network_input import resize_bilinear
from walt_t5x.metrics.protocols.protocol import ClipRule, Protocol

_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Media:
  """One file; `name`, its path inside the folder without suffix, identifies it in pairs and random draws.

  `read` returns its frames, [T, H, W, 3] uint8.
  """

  name: str
  path: Path
  read: Callable[[], np.ndarray]


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


def read_file(path: Path, *, max_frames: int | None = None) -> np.ndarray:
  """Frames [T, H, W, 3] uint8, the first `max_frames` or all; an image is one frame."""
  if path.suffix.lower() in IMAGE_SUFFIXES:
    return np.asarray(pictures.open_picture(path))[None]
  return reading.read_video(path, max_frames=max_frames).frames


def _file(path: Path, name: str) -> Media:
  return Media(name=str(Path(name).with_suffix("")), path=path, read=lambda: read_file(path))


def _from_sample_folder(path: Path, stage: str | None) -> list[Media]:
  folder, found = SampleFolder(path), []
  for sample in folder.samples():
    names = list(sample.files)
    chosen = stage or names[-1]
    if chosen not in names:
      raise ValueError(f"sample {sample.index} of {path} has stages {names}, got --stage={stage}.")

    def read(sample=sample, chosen=chosen) -> np.ndarray:
      return clip_to_uint8(folder.read(sample, chosen))

    found.append(Media(name=f"{sample.index:05d}", path=sample.files[chosen], read=read))
  return found


def _from_manifest(path: Path, *, images: bool, split: str | None) -> list[Media]:
  modality, found = "image" if images else "video", []
  with path.open(encoding="utf-8") as lines:
    for number, line in enumerate(lines, 1):
      row = json.loads(line)
      if "uri" not in row:
        raise ValueError(f"{path}:{number} has no 'uri'; got the fields {sorted(row)}.")
      if row.get("modality", modality) == modality and split in (None, row.get("split")):
        found.append(_file(path.parent / row["uri"], row["uri"]))
  return found


def _has_samples(folder: Path) -> bool:
  """Whether a folder has sidecars of samples; other programs name files by numbers too."""
  first = min(folder.glob("[0-9]*.json"), default=None)
  return first is not None and "stages" in storage.read_json(first)


def find_media(
  path: str | Path, *, images: bool = False, stage: str | None = None, split: str | None = None
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
  path = Path(path)
  if path.suffix == ".jsonl" and path.is_file():
    found = _from_manifest(path, images=images, split=split)
  elif path.is_dir() and _has_samples(path):
    found = _from_sample_folder(path, stage)
  else:
    suffixes = IMAGE_SUFFIXES if images else VIDEO_SUFFIXES
    files = sorted(f for f in path.rglob("*") if f.suffix.lower() in suffixes)
    found = [_file(f, n) for f in files if not is_hidden(n := str(f.relative_to(path)))]
  if not found:
    raise FileNotFoundError(
      f"No {'images' if images else 'videos'} under {path}: expected a folder of media, a .jsonl "
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

  Assumption: with a count, each fold iterates over the files in its own random order, repeatedly until it has
  enough; without one it takes `reference_clips_per_video` of every file.

  Raises:
    ValueError: more clips than files are required, but all clips of a file would be equal.
  """
  clips = []
  several = protocol.reference_clip is ClipRule.RANDOM
  for fold in range(protocol.folds):
    each = protocol.reference_clips_per_video
    total = protocol.reference_count or len(media) * each
    if total > len(media) and not several:
      raise ValueError(
        f"{protocol.name} takes {total} reference clips, one per file, got {len(media)} files. Set "
        "--reference_count: the protocol hash then distinguishes the score."
      )
    order = list(range(len(media)))
    if protocol.reference_count is not None:
      order = _generator("order", protocol.seed, fold).permutation(len(media)).tolist()
    for i in range(total):
      clips.append(
        PlannedClip(media=media[order[i % len(media)]], fold=fold, number=i // len(media))
      )
  return clips


def read_clip(clip: PlannedClip, protocol: Protocol, rule: ClipRule) -> np.ndarray:
  """The frames [T, H, W, 3], uint8, cut and resized according to the protocol.

  Assumption: resizing rounds to bytes, because the networks are defined for the contents of files.

  Raises:
    ValueError: a file has fewer frames than a clip.
  """
  frames = clip.media.read()
  spare = len(frames) - protocol.frames
  if spare < 0:
    raise ValueError(
      f"{clip.media.path} has {len(frames)} frames, {protocol.name} scores clips of "
      f"{protocol.frames}. Exclude it, or set --frames: the protocol hash then distinguishes the score."
    )
  if rule is ClipRule.FIRST:
    start = 0
  elif rule is ClipRule.CENTRAL:
    start = spare // 2
  elif rule is ClipRule.RANDOM:
    random = _generator("clip", protocol.seed, clip.media.name, clip.fold, clip.number)
    start = int(random.integers(spare + 1))
  else:
    raise ValueError(f"No clip rule {rule!r}; expected one of {list(ClipRule)}.")
  frames = frames[start : start + protocol.frames]
  if protocol.size is not None and frames.shape[1:3] != tuple(protocol.size):
    resized = resize_bilinear(frames.astype(np.float32), protocol.size, rule=protocol.size_resize)
    frames = clip_to_uint8(np.asarray(resized) / 255)
  return np.ascontiguousarray(frames)


def in_batches(items: Iterable[_T], size: int, *, key: Callable[[_T], Any]) -> Iterator[list[_T]]:
  """Consecutive items with equal keys, at most `size` at a time; holds one batch in memory."""
  for _, alike in itertools.groupby(items, key):
    while batch := list(itertools.islice(alike, size)):
      yield batch
