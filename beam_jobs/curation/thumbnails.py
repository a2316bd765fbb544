"""Small pictures of moments of videos. Runs in a decoding process."""

import numpy as np

from beam_jobs.curation.scanning import microseconds, scaled, shown_size
from walt_t5x.media.frames import opaque, orientation, stored_box
from walt_t5x.media.geometry import Crop
from walt_t5x.media.reading import Source, check_intact, open_video
from walt_t5x.media.scaling import Scaler

HEIGHT = 96
_WIDEST = 4 * HEIGHT


def thumbnail(source: Source, at: int, crop: Crop | None = None) -> np.ndarray:
  """The frame that is shown at a time in microseconds, cropped, upright, with square pixels: [96, W, 3] uint8.

  Raises:
    MediaError: if the video is damaged (`reading.open_video`).
  """
  with open_video(source) as video:
    shown = video.frames(at / 1e6)
    seconds, frame = next(shown)
    for following in shown:
      if microseconds(following[0]) > at:
        break
      seconds, frame = following
    check_intact(seconds, frame)
    box = stored_box(frame, crop)
    turned, frame = orientation(frame), opaque(frame)
    height, width = shown_size(box, video.aspect, turned)
    size = HEIGHT, min(_WIDEST, max(1, round(width * HEIGHT / height)))
    return scaled(Scaler(), frame, size, turned, box)
