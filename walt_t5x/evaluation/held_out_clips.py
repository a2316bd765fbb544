"""Held-out clips from a pixel cache, or from media files."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from walt_t5x.evaluation.media_files import Media, find_media, frames_of
from walt_t5x.evaluation.reconstruction import HeldOutClip
from walt_t5x.media import geometry, reading

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
    check: called with (1, H, W) of each file; raises ValueError for sizes that the tokenizer does not support.
  """

  check: Callable[[tuple[int, int, int]], Any]
  frames: int | None = None
  size: tuple[int, int] | None = None
  fit: str = "crop"
  fps: float | None = None
  images: bool = False


def clips_of_cache(
  folder: str, *, split: str, field: str | None
) -> tuple[int, Iterator[HeldOutClip]]:
  """Number and records of a split of a cached pixel task, in the order of its shards; each is named by its id.

  Args:
    folder: folder such as CACHE/vae_pixels_videos; any path that Beam reads.
    field: 'pixels/TxHxW'; None if records have only one.

  Raises:
    FileNotFoundError: the split has no shards, or no statistics.
    ValueError: records lack the field, or have several and `field` is None.
  """
  from data import schema, tfrecord
  from walt_t5x.files import storage
  from walt_t5x.html.inspection import SHARD_NAME

  statistics = storage.join(folder, f"stats.{split}.json")
  matches = map(SHARD_NAME.fullmatch, sorted(storage.names(folder)))
  shards = [match[0] for match in matches if match and match["split"] == split]
  if not shards or not storage.exists(statistics):
    raise FileNotFoundError(
      f"no stats.{split}.json or no {split}.tfrecord-* in {folder}: expected --cache to be a cached task of pixels "
      "whose preprocessing has finished, such as CACHE/vae_pixels_videos, and --split one of its splits"
    )

  def clips() -> Iterator[HeldOutClip]:
    for path in (storage.join(folder, shard) for shard in shards):
      with storage.open_raw(path) as stream:
        for payload in tfrecord.read_records(stream, name=path):
          record = schema.decode(payload)
          names = [field] if field else list(record.pixels)
          if len(names) != 1 or names[0] not in record.pixels:
            raise ValueError(
              f"{path}: records have the pixels {sorted(record.pixels)}, expected {field or 'one, or --pixels'}: "
              "preprocess with --content=pixels and these --resolutions"
            )
          pixels = record.pixels[names[0]]
          yield HeldOutClip(
            name=record.id[:_ID_DIGITS],
            uri=record.uri,
            # An image has no frame rate.
            fps=record.fps or 1.0,
            frames=lambda pixels=pixels: pixels,
            caption=record.captions[0] if record.captions else "",
          )

  return int(storage.read_json(statistics)["examples"]), clips()


def clips_of_media(
  path: str, rule: MediaRule, *, split: str | None = None
) -> tuple[int, Iterator[HeldOutClip]]:
  """Number and clips of a folder's files, or of a manifest's rows, named by their paths; opened one at a time.

  Raises:
    FileNotFoundError: no media exist.
    ValueError: two files have the same name except for the suffix.
  """
  found: dict[str, Media] = {}
  for media in find_media(path, images=rule.images, split=split):
    # A manifest may have absolute paths; the output files are all inside the output folder.
    name = "/".join(part for part in Path(media.name).parts if part not in ("/", ".."))
    if name in found:
      raise ValueError(
        f"{media.path} and {found[name].path} have the same name except for the suffix: remove one"
      )
    found[name] = media
  frames = 1 if rule.images else rule.frames
  clips = (
    HeldOutClip(
      name=name,
      uri=str(media.path),
      fps=rule.fps or _rate(media, rule),
      frames=functools.partial(_first_frames, media, rule, frames),
    )
    for name, media in found.items()
  )
  return len(found), clips


def _first_frames(media: Media, rule: MediaRule, frames: int | None) -> Iterator[np.ndarray]:
  count, size = 0, (0, 0)
  try:
    for shown in itertools.islice(frames_of(media, fps=rule.fps), frames):
      target = rule.size or shown.shape[:2]
      frame = geometry.fitted(shown[None], size=target, fit=rule.fit, what=str(media.path))[0]
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


def _rate(media: Media, rule: MediaRule) -> float:
  """The frame rate that the file states."""
  if rule.images:
    return 1.0
  try:
    with reading.open_video(media.path) as video:
      return video.rate if video.rate and video.rate <= _MAX_RATE else 1.0
  except (reading.MediaError, OSError):
    return 1.0  # Reading the file will report the error.
