"""What a project of `--like` trains: the published models, and the toy one of the quickstart.

Sizes are those of the gin files; rates and clips are those of docs/reproduce.md and docs/quickstart.md.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from walt_t5x.config import gin_text


class _Gin:
  """The values that a gin file and those that it includes bind."""

  def __init__(self, file: str):
    self._text = gin_text.Text()
    self._text.read_file(file, [gin_text.FOLDER])

  def of(self, name: str, parameter: str, default: Any = None) -> Any:
    """The value of a parameter of a class or function, in any scope; that of its macro if it is one."""
    values = self._text.values
    found = [value for (_, *key), value in values.items() if key == [name, parameter]]
    value = found[-1] if found else default
    return self.macro(value.name) if isinstance(value, gin_text.Macro) else value

  def macro(self, name: str) -> Any:
    """The value of a macro; None if nothing sets it."""
    return self._text.values.get(("", name, ""))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
  """A model that a project trains.

  Attributes:
    tokenizer, base: gin files.
    kinds: modalities that it can be trained on.
    fps: frame rate of a clip; None for images.
    clips: further flags of preprocessing, for pixels and latents.
    clips_per_video: different clips of a video whose latents are stored.
    text_encoder: size of its T5; None if it reads no text.
  """

  tokenizer: str
  base: str
  kinds: tuple[str, ...]
  fps: float | None = None
  clips: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  clips_per_video: int = 1
  text_encoder: str | None = None

  @functools.cached_property
  def _base(self) -> _Gin:
    return _Gin(self.base)

  @functools.cached_property
  def _tokenizer(self) -> _Gin:
    return _Gin(self.tokenizer)

  @property
  def shape(self) -> tuple[int, int, int]:
    """Frames, height and width of a clip."""
    frames, height, width = self._tokenizer.of("pixel_task", "pixels").partition("/")[2].split("x")
    return int(frames), int(height), int(width)

  @property
  def crops(self) -> bool:
    """Whether the tokenizer also reads crops of larger clips."""
    return bool(self._tokenizer.of("pixel_task", "crops_of"))

  @property
  def perceptual(self) -> bool:
    """Whether the tokenizer has a perceptual term, which needs weights."""
    return self._tokenizer.macro("PERCEPTUAL_WEIGHTS") is not None

  @property
  def latents(self) -> str:
    """The field of the latents."""
    return self._base.macro("LATENTS")

  @property
  def label(self) -> bool:
    """Whether it reads class labels."""
    return self._base.of("RowFormat", "label", False)

  @property
  def text_length(self) -> int:
    """Tokens of a caption."""
    return self._base.of("RowFormat", "text_length")

  @property
  def text_dim(self) -> int:
    """Width of the text embedding."""
    return self._base.of("WaltDenoiser", "text_dim")

  @property
  def window(self) -> tuple[int, int, int]:
    """The window that spans frames."""
    return self._base.of("WaltDenoiser", "spatiotemporal_window")


_RANDOM = {"clip_position": "random"}
RECIPES = {
  "ucf101": Recipe(
    tokenizer="gin/vae_ucf101.gin",
    base="gin/walt_l_ucf101.gin",
    kinds=("video",),
    fps=25,
    clips=_RANDOM | {"allow_upscale": True},
    clips_per_video=16,
  ),
  "k600": Recipe(
    tokenizer="gin/vae_k600.gin",
    base="gin/walt_l_k600.gin",
    kinds=("video",),
    fps=25,
    clips=_RANDOM,
    clips_per_video=4,
  ),
  "imagenet": Recipe(
    tokenizer="gin/vae_imagenet.gin",
    base="gin/walt_l_imagenet.gin",
    kinds=("image",),
    clips={"allow_upscale": True},
  ),
  "t2v": Recipe(
    tokenizer="gin/vae_t2v.gin",
    base="gin/walt_l_t2v.gin",
    kinds=("image", "video"),
    fps=8,
    clips=_RANDOM,
    text_encoder="xl",
  ),
  "tiny": Recipe(
    tokenizer="gin/tiny/vae.gin",
    base="gin/tiny/base.gin",
    kinds=("image", "video"),
    fps=8,
    text_encoder="tiny",
  ),
}
