"""Requests that are checked against the cascade, and everything that determines their samples."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from walt_t5x.engine.checkpoints import committed
from walt_t5x.generation import checks, sample_files
from walt_t5x.generation.cascade import stage_size
from walt_t5x.generation.given_media import GivenMedia, read_clip, read_image
from walt_t5x.generation.loading import CascadeConfig
from walt_t5x.generation.requests import IMAGE, VIDEO, Request, check_requests
from walt_t5x.generation.sampling_run import SamplingSettings
from walt_t5x.generation.stage import StageInfo
from walt_t5x.media.geometry import FITS

# Up to this many files are read before anything is loaded, so that an unreadable one is reported early.
_READ_FIRST = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
  """Requests with their media.

  Attributes:
    requests: as given.
    settings: settings of the run.
    size: (H, W) of the last stage.
    conditioned: number of pixel frames that a clip is continued from.
  """

  requests: Sequence[Request]
  settings: SamplingSettings
  size: tuple[int, int]
  conditioned: int

  def given(self, request: Request) -> GivenMedia | None:
    """The media that the request starts from."""
    if request.kind is None:
      return None
    return _read(request.kind, request.given, self.size, self.settings, self.conditioned)

  def identity(self, infos: Sequence[StageInfo], gin_config: str) -> dict[str, Any]:
    """Everything that determines the samples; compared by `run_identity.begin`."""
    first = [self.given(r) for r in self.requests[:_READ_FIRST] if r.kind]
    settings = dataclasses.asdict(self.settings)
    return {
      **settings,
      "formats": sorted(settings["formats"]),
      "requests": [request.as_dict() for request in self.requests],
      "given_sha256": [media.sha256 for media in first if media],
      "stages": [info.config.name for info in infos],
      "checkpoints": [
        f"{info.config.name}: {info.checkpoint}, written {committed(info.checkpoint)}"
        for info in infos
      ],
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
  factor, kinds = config.vae.temporal_factor, {request.kind for request in requests}
  if IMAGE in kinds:
    checks.check_frames_given(config.stages, [1], "--image")
  if VIDEO in kinds:
    checks.check_frames_given(config.stages, [2], "--video")
  if settings.rounds > 1:
    checks.check_frames_given(config.stages, [2], f"--rounds={settings.rounds}")
  prepared = Prepared(
    requests=requests,
    settings=settings,
    size=stage_size(config.stages[-1], config.vae),
    conditioned=1 + factor,
  )
  for request in requests[:_READ_FIRST]:
    prepared.given(request)
  return prepared


@functools.lru_cache(maxsize=8)
def _read(
  kind: str, path: str, size: tuple[int, int], settings: SamplingSettings, conditioned: int
) -> GivenMedia:
  if kind == IMAGE:
    return read_image(path, size=size, fit=settings.fit)
  return read_clip(path, size=size, fps=settings.fps, conditioned=conditioned, fit=settings.fit)
