"""Frames of a clip as JPEG files, for models that look at pictures. Runs in a decoding process."""

import io
from typing import TYPE_CHECKING

from walt_t5x.media.frames import opaque, orientation, stored_box, upright
from walt_t5x.media.geometry import EVERYTHING, Crop, pixels_of
from walt_t5x.media.pictures import open_picture
from walt_t5x.media.reading import CLOCK_SLACK, MediaError, Source, check_intact, open_video
from walt_t5x.media.scaling import Scaler

if TYPE_CHECKING:
  from av import VideoFrame
  from PIL.Image import Image as Picture

_QUALITY = 90


def jpegs(
  source: Source,
  modality: str,
  *,
  count: int,
  side: int,
  start: float | None = None,
  end: float | None = None,
  crop: Crop | None = None,
) -> list[bytes]:
  """The frames that are displayed in the middle of `count` equal parts of a clip; of an image, one.

  Args:
    source: a local path or the bytes of a file.
    modality: 'image' or 'video'.
    count: number of frames.
    side: longer side in pixels, to which larger frames are scaled.
    start, end: seconds of a video, by default all of it.
    crop: the part of the picture that is shown, by default all of it.

  Raises:
    MediaError: the media are damaged (`reading.open_video`), or 'truncated', if the video ends before the last frame.
  """
  if modality == "image":
    picture = open_picture(source)
    top, bottom, left, right = pixels_of(crop or EVERYTHING, (picture.height, picture.width))
    return [_jpeg(picture.crop((left, top, right, bottom)), side)]
  begin, stop = _window(source, start, end)
  due = [begin + (number + 0.5) * (stop - begin) / count for number in range(count)]
  found: list[bytes] = []
  with open_video(source) as video:
    picture = _Pictures(video.aspect, side, crop)
    held, until = None, begin
    for seconds, frame in video.frames(begin, deinterlace=True):
      while held is not None and len(found) < count and due[len(found)] + CLOCK_SLACK < seconds:
        found.append(picture(held))
      if len(found) == count:
        return found
      check_intact(seconds, frame)
      held, until = frame, seconds + video.duration(frame)
    # The last frame of a file is displayed for its own duration.
    while held is not None and len(found) < count and due[len(found)] < until + CLOCK_SLACK:
      found.append(picture(held))
  if len(found) < count:
    raise MediaError(
      "truncated", f"a frame is due at {due[len(found)]:.3f} s, the video ends at {until:.3f} s"
    )
  return found


def _window(source: Source, start: float | None, end: float | None) -> tuple[float, float]:
  """(start, end) of a clip in seconds; a video that states no end is decoded to find it."""
  with open_video(source) as video:
    begin = max(start or 0.0, video.begin)
    stops = [seconds for seconds in (end, video.end) if seconds is not None]
    if not stops:
      stops = [seconds + video.duration(frame) for seconds, frame in video.frames(begin)][-1:]
  return begin, min(stops)


class _Pictures:
  """Encodes a crop of the frames of a video upright, with square pixels."""

  def __init__(self, aspect: float, side: int, crop: Crop | None):
    self._aspect, self._side, self._crop, self._scaler = aspect, side, crop, Scaler()

  def __call__(self, frame: "VideoFrame") -> bytes:
    from PIL import Image

    box = stored_box(frame, self._crop)
    width, height = (box[3] - box[2]) * self._aspect, float(box[1] - box[0])
    scale = min(1.0, self._side / max(width, height))
    turned, frame = orientation(frame), opaque(frame)
    size = {"width": max(1, round(width * scale)), "height": max(1, round(height * scale))}
    pixels = upright(self._scaler(frame, **size, box=box), turned)
    return _jpeg(Image.fromarray(pixels.copy()), self._side)


def _jpeg(picture: "Picture", side: int) -> bytes:
  from PIL.Image import Resampling

  picture.thumbnail((side, side), Resampling.BOX)  # Never enlarges.
  stream = io.BytesIO()
  picture.save(stream, "JPEG", quality=_QUALITY)
  return stream.getvalue()
