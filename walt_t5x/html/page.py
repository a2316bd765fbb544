"""Self-contained HTML pages from the templates in `templates/`, light or dark by the reader's system setting.

Media are `data:` URIs and a content security policy blocks every request, so a page opens from disk, offline, and can
be mailed or archived.
"""

import base64
import io
import os
from dataclasses import dataclass
from typing import Any

import jinja2
import numpy as np

from walt_t5x.files import storage
from walt_t5x.files.paths import AnyPath, as_path
from walt_t5x.media import geometry, pixels, writing

_TEMPLATES = jinja2.Environment(
  loader=jinja2.PackageLoader("walt_t5x.html"),
  autoescape=True,
  undefined=jinja2.StrictUndefined,
  trim_blocks=True,
  lstrip_blocks=True,
)


@dataclass(frozen=True, kw_only=True)
class ShownClip:
  """One clip of a card, such as that of the base model or of a super-resolution stage.

  frames: [T, H, W, 3], float in [0, 1] or uint8; a single frame is shown as an image.
  file: name of the file that has the clip; the page saves the clip under this name.
  playable: an .mp4 or .webm file with these frames, which is embedded as it is instead of an encoding of them.
  """

  name: str
  frames: np.ndarray
  fps: float = 8.0
  note: str = ""
  file: str = ""
  playable: AnyPath | None = None


def write_page(path: str | os.PathLike[str], template: str, **values: Any) -> AnyPath:
  """Renders `templates/<template>.html.j2` and writes the page, a path that ends in .html, atomically.

  Iterators among the values are consumed while the page is written, so that one card at a time is in memory.
  """
  path = as_path(path)
  if path.suffix.lower() not in (".html", ".htm"):
    raise ValueError(f"--output: got {path}, expected an .html file")
  with storage.writer(path) as page:
    pieces = _TEMPLATES.get_template(f"{template}.html.j2").generate(values)
    page.writelines(piece.encode() for piece in pieces)
  return path


def data_uri(kind: str, content: bytes) -> str:
  """The content as a URI; `kind` is its media type, such as "video/mp4"."""
  return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _picture_uri(picture: np.ndarray) -> str:
  """A lossless image, [H, W, 3] uint8, as a URI."""
  from PIL import Image

  stream = io.BytesIO()
  Image.fromarray(picture).save(stream, format="PNG")
  return data_uri("image/png", stream.getvalue())


def embed(clip: ShownClip, *, edge: int, media: str = "mp4", strip: int = 0) -> dict[str, Any]:
  """The values of a clip for the macro of `clip.html.j2`.

  Args:
    clip: the clip.
    edge: a small clip is enlarged by an integer factor to about this edge, so that it stays sharp.
    media: "mp4" (a video with a poster) or "webp" (an animated image).
    strip: number of frames to show next to each other below a video; 0 for none.
  """
  frames = pixels.clip_to_uint8(clip.frames)
  count, height, width = frames.shape[:3]
  suffix = ".png" if count == 1 else f".{media}"
  scale = max(1, round(edge / max(height, width)))
  fps = clip.fps or 8.0
  values = {
    "name": clip.name,
    "note": clip.note,
    "file": clip.file,
    "download": as_path(clip.file).with_suffix(suffix).name if clip.file else "",
    "fps": f"{fps:g}",
    "verdict": {},
    "width": width * scale,
    "height": height * scale,
    "facts": f"{count}×{height}×{width}" + (f", {clip.fps:g}\u00a0fps" if count > 1 else ""),
    "video": "",
    "strip": "",
  }
  if count > 1 and media == "webp":
    content = writing.encode_video(frames, suffix=".webp", fps=fps, scale=scale)
    return values | {"image": data_uri("image/webp", content)}
  values["image"] = _picture_uri(geometry.upscale(frames[:1], scale)[0])
  if count > 1:
    if clip.playable:
      content, suffix = clip.playable.read_bytes(), clip.playable.suffix
      values["download"] = clip.playable.name
    else:
      content = writing.encode_video(frames, suffix=suffix, fps=fps, crf=16, scale=scale)
    values["video"] = data_uri(f"video/{suffix[1:]}", content)
    if strip:
      chosen = np.unique(np.linspace(0, count - 1, strip).round().astype(int))
      sheet = np.concatenate(frames[chosen], axis=1)
      values |= {"strip": _picture_uri(sheet), "strip_label": f"frames {chosen.tolist()}"}
  return values
