"""Decodes media bytes to pixels: one clip of 1+T frames, or one image, at every requested resolution.

The same bytes, `ClipSpec` and draw always give the same pixels. Damaged media and exceeded limits raise `MediaError`
with a reason; valid media that do not fit the spec raise `Rejected`.
"""

import math
from collections.abc import Sequence

from walt_t5x.media.clips import Clip, ClipSpec, MediaError
from walt_t5x.media.rules import Rule


def decode(
  content: bytes,
  modality: str,
  spec: ClipSpec,
  *,
  start_seconds: float | None = None,
  end_seconds: float | None = None,
  draw: float = 0.5,
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
    draw: position of the clip in [0, 1) if `spec.position` is 'random'.
    rules: filters; header rules are checked before decoding.
    max_decode_seconds: limit in wall-clock time, checked between frames.

  Raises:
    MediaError: if the media are damaged or exceed a limit.
    Rejected: by a filter, or because the media are too small, too short or have too few frames per second for `spec`.
  """
  if not content:
    raise MediaError("empty", "the file has no bytes")
  if len(content) > spec.max_bytes:
    raise MediaError("too_large", f"{len(content)} bytes, limit {spec.max_bytes} (--max_bytes)")
  if modality == "image":
    from walt_t5x.media.image_decoding import decode_image

    return decode_image(content, spec, rules=rules)
  if modality == "video":
    from walt_t5x.media.video_decoding import decode_video

    return decode_video(
      content,
      spec,
      start_seconds=start_seconds,
      end_seconds=end_seconds,
      draw=draw,
      rules=rules,
      max_decode_seconds=max_decode_seconds,
    )
  raise ValueError(f"modality: got {modality!r}, expected 'image' or 'video'")
