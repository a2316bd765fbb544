"""Requests that are checked against the cascade, and everything that determines their samples."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from walt_t5x.engine.checkpoints import identity
from walt_t5x.generation import checks, sample_files
from walt_t5x.generation.cascade import Batch, stage_size
from walt_t5x.generation.conditioning_media import ConditioningMedia, read_clip, read_image
from walt_t5x.generation.loading import CascadeConfig
from walt_t5x.generation.requests import IMAGE, VIDEO, Request, check_requests
from walt_t5x.generation.stage import StageInfo
from walt_t5x.media.geometry import FITS

# Up to this many files are read before anything is loaded, so that an unreadable one is reported early.
_READ_FIRST = 256
_read_image, _read_clip = (functools.lru_cache(maxsize=8)(read) for read in (read_image, read_clip))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingSettings:
  """Everything that determines the samples except models and requests.

  Attributes:
    num_samples: clips per request.
    extensions: extensions of each clip.
    fps: frame rate of the files.
    formats: formats of the files, `sample_files.FORMATS`.
    fit: how conditioning media are resized, `media.geometry.FITS`.
    batch_size: clips that are generated together.
    decoded_conditioning: start with the reconstruction of a clip's last frames instead of the entire clip.
  """

  seed: int = 0
  num_samples: int = 1
  extensions: int = 0
  fps: float = 8.0
  formats: Sequence[str] = ("mp4",)
  fit: str = "exact"
  batch_size: int = 32
  decoded_conditioning: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
  """Requests with their media.

  Attributes:
    size: (H, W) of the last stage.
    conditioning_frames: number of pixel frames that a clip is continued from.
  """

  requests: Sequence[Request]
  settings: SamplingSettings
  size: tuple[int, int]
  conditioning_frames: int

  def request(self, index: int) -> Request:
    """The request of a sample."""
    return self.requests[index // self.settings.num_samples]

  def media(self, request: Request) -> ConditioningMedia | None:
    """The media that the request starts from."""
    size, fit, frames = self.size, self.settings.fit, self.conditioning_frames
    if request.image:
      return _read_image(request.image, size=size, fit=fit)
    if request.video:
      fps = self.settings.fps
      return _read_clip(request.video, size=size, fps=fps, conditioning_frames=frames, fit=fit)
    return None

  def batch(self, indices: Sequence[int]) -> Batch:
    """The samples of these numbers, with their media."""
    chosen = [self.request(i) for i in indices]
    media = {id(request): self.media(request) for request in chosen}
    labels = [request.label for request in chosen]
    return Batch(
      indices=list(indices),
      prompts=[request.prompt for request in chosen],
      labels=[label for label in labels if label is not None],
      media=[media[id(request)] for request in chosen],
      seed=self.settings.seed,
      extensions=self.settings.extensions,
      decoded_conditioning=self.settings.decoded_conditioning,
    )

  def identity(self, infos: Sequence[StageInfo], gin_config: str) -> dict[str, Any]:
    """Everything that determines the samples, in the names of `run.json`; compared by `run_identity.begin`."""
    first = [self.media(request) for request in self.requests[:_READ_FIRST]]
    return {
      **dataclasses.asdict(self.settings),
      "formats": sorted(self.settings.formats),
      "requests": [request.as_dict() for request in self.requests],
      "given_sha256": [media.sha256 for media in first if media],
      "stages": [info.config.name for info in infos],
      "checkpoints": [f"{info.config.name}: {identity(info.checkpoint)}" for info in infos],
      "vae": infos[0].provenance.vae["fingerprint"],
      "text_encoder": infos[0].provenance.text_encoder.get("fingerprint"),
      "gin": gin_config,
    }


def prepare(
  requests: Sequence[Request], config: CascadeConfig, settings: SamplingSettings
) -> Prepared:
  """Checks requests, formats and media against the stages' outputs and training; reads no checkpoint.

  Raises:
    ValueError: names the request or the setting.
  """
  sample_files.check_formats(settings.formats)
  if settings.fit not in FITS:
    raise ValueError(f"--fit={settings.fit}: expected one of {FITS}")
  check_requests(requests, text=config.reads_text, classes=config.classes)
  kinds = {request.kind for request in requests}
  for flag, used, latent_frames in (
    ("--image", IMAGE in kinds, 1),
    ("--video", VIDEO in kinds, 2),
    (f"--extensions={settings.extensions}", settings.extensions > 0, 2),
  ):
    if used:
      checks.check_conditioning_frames(config.stages, latent_frames, flag)
  prepared = Prepared(
    requests=requests,
    settings=settings,
    size=stage_size(config.stages[-1], config.vae),
    conditioning_frames=1 + config.vae.temporal_factor,
  )
  for request in requests[:_READ_FIRST]:
    prepared.media(request)
  return prepared
