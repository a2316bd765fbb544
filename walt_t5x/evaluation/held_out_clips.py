"""The clips that `walt_t5x.reconstruct` reconstructs: from a pixel cache, or from media files."""

import dataclasses
import functools
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from walt_t5x.evaluation.reconstruction import HeldOutClip

_ID_DIGITS = 24
# Rates above this are placeholders of containers.
_MAX_RATE = 1000.0


class UnreadableClip(Exception):
  """A clip that cannot be reconstructed; the others can."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaRule:
  """The part of a media file that is used.

  Attributes:
    frames: number of frames per clip, from the start; None for the entire file.
    size: (H, W); None for the files' sizes.
    fit: how frames are resized, "exact" or "crop" (`media.geometry.fitted`).
    fps: frame rate that a file is resampled to; None for every frame.
    images: images instead of videos.
    check: called with (1, H, W) of each file; raises ValueError for sizes that the tokenizer does not support.
  """

  check: Callable[[tuple[int, int, int]], Any]
  frames: int | None = None
  size: tuple[int, int] | None = None
  fit: str = "crop"
  fps: float | None = None
  images: bool = False


def count_of_cache(folder: str, split: str) -> int:
  """Number of examples of a split, from the statistics that preprocessing wrote.

  Raises:
    FileNotFoundError: the statistics do not exist.
  """
  from walt_t5x.files import storage

  path = storage.join(folder, f"stats.{split}.json")
  if not storage.exists(path):
    raise FileNotFoundError(
      f"no stats.{split}.json in {folder}: expected --cache to be a cached task of pixels whose preprocessing has "
      "finished, such as CACHE/vae_pixels_videos, and --split one of its splits"
    )
  return int(json.loads(storage.read(path))["examples"])


def clips_of_cache(folder: str, *, split: str, field: str | None) -> Iterator[HeldOutClip]:
  """The records of a split of a cached pixel task, in the order of its shards; each is named by its id.

  Args:
    folder: folder such as CACHE/vae_pixels_videos; any path that Beam reads.
    split: split of the task.
    field: 'pixels/TxHxW'; None if records have only one.

  Raises:
    FileNotFoundError: the split has no shards.
    ValueError: records lack the field, or have several and `field` is None.
  """
  from data import schema, tfrecord
  from walt_t5x.files import storage
  from walt_t5x.html.inspection import SHARD_NAME

  matches = ((SHARD_NAME.fullmatch(name), name) for name in sorted(storage.names(folder)))
  shards = [name for match, name in matches if match and match["split"] == split]
  if not shards:
    raise FileNotFoundError(
      f"no {split}.tfrecord-* in {folder}: expected --cache to be a cached task of pixels, such as "
      "CACHE/vae_pixels_videos, and --split one of its splits"
    )
  for shard in shards:
    path = storage.join(folder, shard)
    with storage.open_raw(path) as stream:
      for payload in tfrecord.read_records(stream, name=path):
        record = schema.decode(payload)
        chosen = field or next(iter(record.pixels), None)
        several = field is None and len(record.pixels) > 1
        if chosen is None or chosen not in record.pixels or several:
          raise ValueError(
            f"{path}: records have the pixels {sorted(record.pixels)}, got --pixels={field}: set one of them; "
            "preprocess with --content=pixels if there are none"
          )
        pixels = record.pixels[chosen]
        yield HeldOutClip(
          name=record.id[:_ID_DIGITS],
          uri=record.uri,
          # An image has no frame rate.
          fps=record.fps or 1.0,
          frames=lambda pixels=pixels: pixels,
          length=len(pixels),
        )


def files_of(path: str, rule: MediaRule, *, split: str | None) -> list[Any]:
  """The `evaluation.clip_sources.Media` of a folder, or of a manifest's rows, named by their paths.

  Raises:
    FileNotFoundError: no media exist.
    ValueError: two files have the same name except for the suffix.
  """
  from walt_t5x.evaluation.clip_sources import find_media

  found: dict[str, Any] = {}
  for media in find_media(path, images=rule.images, split=split):
    # A manifest may have absolute paths; the output files are all inside the output folder.
    name = "/".join(part for part in Path(media.name).parts if part not in ("/", ".."))
    if name in found:
      raise ValueError(
        f"{media.path} and {found[name].path} have the same name except for the suffix: remove one"
      )
    found[name] = dataclasses.replace(media, name=name)
  return list(found.values())


def clips_of_files(files: Sequence[Any], rule: MediaRule) -> Iterator[HeldOutClip]:
  """The clip of each file, opened one at a time."""
  frames = 1 if rule.images else rule.frames
  for media in files:
    yield HeldOutClip(
      name=media.name,
      uri=str(media.path),
      fps=rule.fps or _rate(media, rule),
      frames=functools.partial(_first_frames, media, rule, frames),
      length=frames,
    )


def _first_frames(media: Any, rule: MediaRule, frames: int | None) -> Iterator[np.ndarray]:
  count, size = 0, (0, 0)
  try:
    for frame in itertools.islice(_frames_of(media, rule), frames):
      if not count:
        size = frame.shape[:2]
        rule.check((1, *size))
      if frame.shape[:2] != size:
        raise ValueError(
          f"got a frame of size {frame.shape[:2]} after frames of {size}: set --size"
        )
      count += 1
      yield frame
  except Exception as error:
    raise UnreadableClip(f"{type(error).__name__}: {error}") from error
  if frames is not None and count < frames:
    raise UnreadableClip(f"it has {count} frames, expected at least --frames={frames}")


def _frames_of(media: Any, rule: MediaRule) -> Iterator[np.ndarray]:
  from walt_t5x.media import geometry, reading

  if rule.images:
    found: Iterator[np.ndarray] = iter(media.read())
  elif rule.fps is None:
    found = (frame for _, frame in reading.iterate_frames(media.path))
  else:
    # Which frames are kept is known only once all times are; frames are not kept in the meantime.
    kept = reading.resampled(reading.frame_times(media.path), rule.fps)
    found = reading.frames_at(media.path, kept)
  for frame in found:
    size = rule.size or frame.shape[:2]
    yield geometry.fitted(frame[None], size=size, fit=rule.fit, what=str(media.path))[0]


def _rate(media: Any, rule: MediaRule) -> float:
  """The frame rate that the file states."""
  from walt_t5x.media import reading

  if rule.images:
    return 1.0
  try:
    with reading.open_video(media.path) as video:
      return video.rate if video.rate and video.rate <= _MAX_RATE else 1.0
  except (reading.MediaError, OSError):
    return 1.0  # Reading the file will report the error.
