"""Cuts media to pixels: one clip of 1+T frames, or one image, at every requested resolution.

The same bytes, `ClipSpec` and draw always give the same pixels. Damaged media and exceeded limits raise `MediaError`
with a reason; valid media that do not fit the spec raise `Rejected`.
"""

import math
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from walt_t5x.media.clips import Clip, ClipSpec, check_size, start_of_clip
from walt_t5x.media.containers import slack
from walt_t5x.media.frames import opaque, orientation, stored_box, turned_box, upright
from walt_t5x.media.geometry import EVERYTHING, Box, Crop, fit, pixels_of, union
from walt_t5x.media.pictures import open_picture
from walt_t5x.media.reading import (
  CLOCK_SLACK,
  MAX_PIXELS,
  MediaError,
  Video,
  check_intact,
  check_pixels,
  open_video,
)
from walt_t5x.media.rules import Rejected, Rule, check_header
from walt_t5x.media.scaling import Scaler

if TYPE_CHECKING:
  from av import VideoFrame

# With a smaller share of distinct frames the clip would contain too many repeated frames.
_MIN_DISTINCT = 0.75


def decode(
  content: bytes,
  modality: str,
  spec: ClipSpec,
  *,
  start_seconds: float | None = None,
  end_seconds: float | None = None,
  crop: Crop | None = None,
  draw: float = 0.5,
  clip: int = 0,
  rules: Sequence[Rule] = (),
  max_decode_seconds: float = math.inf,
) -> Clip:
  """Decodes the pixels of one row.

  Args:
    content: contents of the complete file.
    modality: 'image' or 'video'.
    spec: which clip to extract.
    start_seconds: time of the first frame; with `end_seconds`, the earliest start of the clip.
    end_seconds: latest end of the clip; in a window longer than the clip, `spec.position` places it.
    crop: the part of the upright picture that is used, as if the file had nothing else.
    draw: position of the first clip in [0, 1) if `spec.position` is 'random'.
    clip: number of the clip, from 0, if several are cut out of one video or window (`clips.start_of_clip`).
    rules: filters; header rules are checked before decoding.
    max_decode_seconds: limit in wall-clock time, checked between frames.

  Raises:
    MediaError: if the media are damaged (`reading.open_video`, `pictures.open_picture`) or exceed a limit:
      'too_large', 'too_long', 'too_many_frames' or 'decode_timeout'.
    Rejected: by a filter, or because the media are too small, too short or have too few frames per second for `spec`.
  """
  deadline = time.monotonic() + max_decode_seconds
  if len(content) > spec.max_bytes:
    raise MediaError("too_large", f"{len(content)} bytes, limit {spec.max_bytes} (--max_bytes)")
  if modality == "image":
    return _cut_image(content, spec, rules, crop)
  if modality != "video":
    raise ValueError(f"modality: got {modality!r}, expected 'image' or 'video'")
  with open_video(content, max_pixels=spec.max_pixels) as video:
    if video.seconds is not None and video.seconds > spec.max_seconds:
      raise MediaError(
        "too_long", f"{video.seconds:.0f} seconds, limit {spec.max_seconds} (--max_seconds)"
      )
    # The orientation is known only after the first frame, and with it the size of a crop.
    check_header(rules, None if crop else video.size, video=(video.seconds, video.rate))
    start = _start(spec, start_seconds, end_seconds, (video.begin, video.end), draw, clip)
    return _cut(video, _Resizer(video.aspect, spec, rules, crop), start=start, deadline=deadline)


def native_frames(
  content: bytes,
  numbers: Iterable[int],
  *,
  size: tuple[int, int],
  crop: Crop | None = None,
  max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
  """The frames with these numbers [T, H, W, 3] uint8, at no other rate, resized and cut as `decode` does.

  Args:
    content: contents of the complete file.
    numbers: increasing; fewer are returned if the file has fewer.
    size: (height, width).
    crop: the part of the upright picture that is used.
    max_pixels: see `open_video`.

  Raises:
    MediaError: see `reading.iterate_frames`.
  """
  spec = ClipSpec(resolutions=(size,), num_frames=1, fps=1.0, allow_upscale=True, deinterlace=True)
  wanted, pictures = set(numbers), []
  with open_video(content, max_pixels=max_pixels) as video:
    resizer = _Resizer(video.aspect, spec, (), crop)
    for number, (seconds, frame) in enumerate(video.frames(deinterlace=True)):
      if number > max(wanted, default=-1):
        break
      check_intact(seconds, frame)
      if number in wanted:
        pictures.append(resizer(frame)[size])
  return np.stack(pictures) if pictures else np.empty((0, *size, 3), np.uint8)


def _cut_image(content: bytes, spec: ClipSpec, rules: Sequence[Rule], crop: Crop | None) -> Clip:
  """Resizes with area averaging, like video frames."""
  from PIL.Image import Resampling

  def cropped(size: tuple[int, int]) -> tuple[Box, tuple[int, int]]:
    """A box of the picture, and its size, which is checked."""
    check_pixels(size, spec.max_pixels)
    box = pixels_of(crop or EVERYTHING, size)
    size = box[1] - box[0], box[3] - box[2]
    check_size(size, spec)
    return box, size

  def check(size: tuple[int, int]) -> None:
    check_header(rules, cropped(size)[1], pixel_aspect=1.0)

  image = open_picture(content, check=check)
  (upper, lower, first, last), size = cropped((image.height, image.width))
  image = image.crop((first, upper, last, lower))
  frames, crops = {}, []
  for height, width in spec.resolutions:
    place = fit(size, (height, width))
    scaled = image.resize((place.scaled[1], place.scaled[0]), Resampling.BOX)
    top, left = place.offset
    frames[height, width] = np.asarray(scaled.crop((left, top, left + width, top + height)))[None]
    crops.append(place.crop)
  used = _moved(union(crops), upper, first)
  return Clip(frames=frames, fps=0.0, start_seconds=0.0, crop=used, motion=0.0)


def _moved(crop: tuple[int, int, int, int], top: int, left: int) -> tuple[int, int, int, int]:
  """A (top, left, height, width) of a cropped picture, in the picture itself."""
  return crop[0] + top, crop[1] + left, *crop[2:]


def _start(
  spec: ClipSpec,
  start: float | None,
  end: float | None,
  stated: tuple[float, float | None],
  draw: float,
  clip: int,
) -> float:
  """Start time of a clip: `start` if only that is given, else by `spec.position` in the window or the video."""
  length = spec.num_frames / spec.fps
  if start is None or end is not None:
    first = max(start or 0.0, stated[0])
    stop = min((t for t in (end, stated[1]) if t is not None), default=first + length)
    spare = max(0.0, stop - length - first)
    after = {"beginning": 0.0, "centre": 0.5, "random": draw}[spec.position] * spare
    if clip:
      after = start_of_clip(clip, spare=spare, fps=spec.fps, first=after)
    start = round(first + after, 6)
  elif clip:
    raise Rejected("no_more_clips", "the row states a start and no end: it has one clip")
  if end is not None and start + (spec.num_frames - 1) / spec.fps > end - CLOCK_SLACK:
    raise Rejected(
      "too_short",
      f"the window {start:.3f} to {end:.3f} s has fewer than {spec.num_frames} frames at {spec.fps} fps",
    )
  return start


def _cut(video: Video, resizer: "_Resizer", *, start: float, deadline: float) -> Clip:
  """Frames displayed at start, start + 1/fps, ..., each resized by area averaging and center-cropped."""
  spec = resizer.spec
  pictures: list[dict] = []
  held: VideoFrame | None = None
  decoded, distinct, latest, end = 0, 0, -math.inf, 0.0

  def show_until(until: float) -> int:
    """Appends the held frame for every requested time before `until`; 1 if it was used, else 0."""
    before = len(pictures)
    while held is not None and len(pictures) < spec.num_frames:
      if start + len(pictures) / spec.fps + CLOCK_SLACK >= until:
        break
      pictures.append(pictures[-1] if len(pictures) > before else resizer(held))
    return int(len(pictures) > before)

  for shown, frame in video.frames(start, deinterlace=spec.deinterlace):
    if time.monotonic() > deadline:
      raise MediaError(
        "decode_timeout", f"{decoded} frames within the time limit (--decode_timeout)"
      )
    if shown <= latest:  # It would be shown for no time.
      continue
    latest, decoded = shown, decoded + 1
    if decoded == 1:
      resizer.check(frame)
      if start < video.begin - 1 / spec.fps:
        raise Rejected(
          "too_short", f"the clip starts at {start:.3f} s, its picture at {video.begin:.3f} s"
        )
    if decoded > spec.max_decoded_frames:
      raise MediaError(
        "too_many_frames",
        f"no complete clip within {spec.max_decoded_frames} frames (--max_decoded_frames)",
      )
    distinct += show_until(shown)
    if len(pictures) == spec.num_frames:
      break
    check_intact(shown, frame)
    held, end = frame, shown + video.duration(frame)
  # The last frame of a file is displayed for its own duration.
  distinct += show_until(end)
  if len(pictures) < spec.num_frames:
    cut = video.end is not None and end < video.end - slack(video.end - video.begin)
    raise (MediaError if cut else Rejected)(
      "truncated" if cut else "too_short",
      f"{len(pictures)} of {spec.num_frames} frames from {start:.3f} s at {spec.fps} fps; the video ends at {end:.3f} "
      f"s, its stated end is {'unknown' if video.end is None else f'{video.end:.3f} s'}",
    )
  if distinct < _MIN_DISTINCT * spec.num_frames:
    raise Rejected(
      "low_frame_rate",
      f"only {distinct} of {spec.num_frames} frames at {spec.fps} fps are different frames of the "
      "source (lower --fps)",
    )
  frames = {size: np.stack([shown[size] for shown in pictures]) for size in spec.resolutions}
  return Clip(
    frames=frames,
    fps=float(spec.fps),
    start_seconds=start,
    crop=resizer.crop,
    motion=motion(frames[min(spec.resolutions)]),
  )


class _Resizer:
  """Resizes a crop of the frames of one clip to every resolution, each with a reused filter."""

  def __init__(self, aspect: float, spec: ClipSpec, rules: Sequence[Rule], crop: Crop | None):
    self.spec, self.crop = spec, (0, 0, 0, 0)
    self._rules, self._aspect, self._cropped = rules, aspect, crop
    self._scalers = {size: Scaler() for size in spec.resolutions}

  def _upright(self, frame: "VideoFrame") -> tuple[Box, tuple[int, int], float]:
    """The box that is used of a frame as stored, and its upright size, which is checked, and pixel aspect ratio."""
    box = stored_box(frame, self._cropped)
    size, aspect = (box[1] - box[0], box[3] - box[2]), self._aspect
    if orientation(frame)[0] % 2:
      size, aspect = (size[1], size[0]), 1 / aspect
    check_size(size, self.spec, aspect=aspect)
    return box, size, aspect

  def check(self, frame: "VideoFrame") -> None:
    """Applies the rules to the size and aspect of the first frame."""
    _, size, aspect = self._upright(frame)
    check_header(self._rules, size, pixel_aspect=aspect)

  def __call__(self, frame: "VideoFrame") -> dict[tuple[int, int], np.ndarray]:
    # The frame size may change within a stream; the limits apply to every frame.
    box, size, aspect = self._upright(frame)
    if frame.interlaced_frame and not self.spec.deinterlace:
      raise Rejected(
        "interlaced",
        "the frames are marked as interlaced (--deinterlace accepts and deinterlaces them)",
      )
    turned, frame = orientation(frame), opaque(frame)
    shown_box = turned_box(box, (frame.height, frame.width), turned)
    pictures, crops = {}, []
    for target, scaler in self._scalers.items():
      place = fit(size, target, aspect=aspect)
      height, width = place.scaled[::-1] if turned[0] % 2 else place.scaled
      shown = upright(scaler(frame, width=width, height=height, box=box), turned)
      top, left = place.offset
      pictures[target] = shown[top : top + target[0], left : left + target[1]]
      crops.append(place.crop)
    self.crop = _moved(union(crops), shown_box[0], shown_box[2])
    return pictures


def motion(frames: np.ndarray) -> float:
  """Mean absolute luma change between adjacent frames, in [0, 1], where luma = (299 R + 587 G + 114 B) / 1000.

  The sum is of integers: floats would be rounded differently on different CPUs, and the value decides about rows.

  Args:
    frames: uint8 (frames, height, width, 3).
  """
  if len(frames) < 2:
    return 0.0
  red, green, blue = (frames[..., channel].astype(np.int32) for channel in range(3))
  changes = np.abs(np.diff(299 * red + 587 * green + 114 * blue, axis=0))
  return int(changes.sum(dtype=np.int64)) / (changes.size * 255_000)
