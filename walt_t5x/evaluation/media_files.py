"""The media that evaluation reads: in folders, in manifests, or in output folders of `generate`."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from walt_t5x.files import storage
from walt_t5x.files.damage import parsed
from walt_t5x.files.paths import AnyPath, as_path
from walt_t5x.generation.sample_folder import SampleFolder
from walt_t5x.media import geometry, pictures, reading
from walt_t5x.media.containers import IMAGE_SUFFIXES, VIDEO_SUFFIXES, is_hidden
from walt_t5x.media.excerpts import ENTIRE_FILE, Excerpt, excerpt_of
from walt_t5x.media.pixels import clip_to_uint8
from walt_t5x.media.rules import ReasonedError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Media:
  """One file, or the part of one that a row of a manifest names.

  Attributes:
    name: identifies it in pairs and random draws: the path inside the folder without suffix, and the part of the file.
    read: returns the frames of all of it, [T, H, W, 3] uint8.
    excerpt: the part of the file.
    generated: whether it is a sample of `generate`, whose frames are the clip; other files are cut like training data.
    size, fps: (height, width) and rate of a sample, from its sidecar.
  """

  name: str
  path: AnyPath
  read: Callable[[], np.ndarray]
  excerpt: Excerpt = ENTIRE_FILE
  generated: bool = False
  size: tuple[int, int] | None = None
  fps: float | None = None


def read_file(path: AnyPath, *, max_frames: int | None = None) -> np.ndarray:
  """Frames [T, H, W, 3] uint8, the first `max_frames` or all; an image is one frame."""
  if path.suffix.lower() in IMAGE_SUFFIXES:
    return np.asarray(pictures.open_picture(path))[None]
  return reading.read_video(path, max_frames=max_frames).frames


def _file(path: AnyPath, name: str, excerpt: Excerpt = ENTIRE_FILE) -> Media:
  media = Media(
    name=str(pathlib.PurePath(name).with_suffix("")) + _suffix(excerpt),
    path=path,
    read=lambda: np.stack(list(frames_of(media))),
    excerpt=excerpt,
  )
  return media


def frames_of(media: Media, *, fps: float | None = None) -> Iterator[np.ndarray]:
  """Frames [H, W, 3] of a file, or of its part that a manifest names; at most one is in memory.

  Args:
    media: not a sample of `generate`.
    fps: rate of the frames of a video; None for those of the file.

  Raises:
    MediaError: the file cannot be read.
    ValueError: it has fewer frames per second.
  """
  if media.path.suffix.lower() in IMAGE_SUFFIXES:
    frames: Iterable[np.ndarray] = read_file(media.path)
  elif fps is None and media.excerpt == ENTIRE_FILE:
    frames = (frame for _, frame in reading.iterate_frames(media.path))
  else:
    # Which frames are kept is known only once all times are; frames are not kept in the meantime.
    first, times = times_of(media.path, media.excerpt)
    kept = range(len(times)) if fps is None else reading.resampled(times, fps)
    frames = reading.frames_at(media.path, [first + number for number in kept])
  return (cropped(frame, media.excerpt) for frame in frames)


def times_of(source: reading.Source, excerpt: Excerpt) -> tuple[int, list[float]]:
  """Number of the first frame of an excerpt, and seconds since it of all frames. Errors: see `reading.window_times`."""
  if excerpt.start_seconds is None and excerpt.end_seconds is None:
    return 0, reading.frame_times(source)
  return reading.window_times(source, excerpt.start_seconds, excerpt.end_seconds)


def cropped(frame: np.ndarray, excerpt: Excerpt) -> np.ndarray:
  """The part of an upright frame [H, W, 3] that is inside of the crop, at least one pixel."""
  if excerpt.crop is None:
    return frame
  top, bottom, left, right = geometry.pixels_of(excerpt.crop, frame.shape[:2])
  return frame[top:bottom, left:right]


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
      suffix = pathlib.PurePath(row["uri"]).suffix.lower()
      guess = "image" if suffix in IMAGE_SUFFIXES else "video"
      # As in preprocessing, a row without a split is for training.
      here = row.get("modality") or guess, row.get("split") or "train"
      if here[0] == modality and split in (None, here[1]):
        try:
          found.append(_file(path.parent / row["uri"], row["uri"], excerpt_of(row)))
        except ReasonedError as error:
          raise ValueError(f"{path}:{number} has a wrong field: {error}") from error
  return found


def _suffix(excerpt: Excerpt) -> str:
  """An excerpt in a name, such as `_2.5-7.5s`; nothing for an entire file."""
  ends = [
    "" if end is None else f"{end:.15g}" for end in (excerpt.start_seconds, excerpt.end_seconds)
  ]
  window = f"_{'-'.join(ends)}s" if any(ends) else ""
  crop = "" if excerpt.crop is None else "_" + "-".join(f"{side:g}" for side in excerpt.crop)
  return window + crop


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
      files at any depth, or a `.jsonl` manifest whose rows have a `uri` relative to it, and maybe a time window and a
      crop (`excerpts.Excerpt`).
    images: look for images instead of videos.
    stage: stage of a generated cascade; None for the last.
    split: keep only the manifest rows of this split.

  Raises:
    FileNotFoundError: the path does not exist, or has no media.
    ValueError: a manifest row has no uri or a wrong window or crop, or the stage is unknown.
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
