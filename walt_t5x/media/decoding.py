"""Media bytes to pixels: one clip of 1+T frames, or one image, at every wanted resolution.

The same bytes, `ClipSpec` and draw always give the same pixels. Damage and limits are a `MediaError` with a reason,
sound media that do not suit are `Rejected`.
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
  """Pixels of one row.

  Args:
    content: the whole file.
    modality: 'image' or 'video'.
    spec: what to cut out.
    start_seconds: first frame; with `end_seconds`, the clip may start there.
    end_seconds: the clip lies before it; a window longer than the clip leaves the place to `spec.position`.
    draw: in [0, 1), where the clip lies with position 'random'.
    rules: filters; those of the header are judged before anything is decoded.
    max_decode_seconds: of the wall clock; looked at between frames.

  Raises:
    MediaError: with a reason.
    Rejected: by a filter, or because the media are too small, too short or too slow for `spec`.
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
