"""Checks requests against a cascade, and generates the clips of several of them at once."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from data import schema
from walt_t5x.files import storage
from walt_t5x.generation import checks
from walt_t5x.generation.cascade import Cascade, stage_size
from walt_t5x.generation.loading import CascadeConfig
from walt_t5x.generation.prepared_requests import SamplingSettings, prepare
from walt_t5x.generation.requests import Request
from walt_t5x.generation.sample_folder import SampleFolder
from walt_t5x.generation.sampling_run import write_sample
from walt_t5x.generation.serving.jobs import ClipJob, ClipRequest
from walt_t5x.media import pictures
from walt_t5x.media.reading import MediaError, check_pixels

MAX_PROMPT, MAX_SEED, MAX_EXTENSIONS = 2000, 2**32 - 1, 7
MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS = 20 << 20, 1 << 25


class FieldError(ValueError):
  """A field of a request is not what it has to be; `field` is its name."""

  def __init__(self, field: str, problem: str):
    super().__init__(f"{field}: {problem}")
    self.field = field


class ClipMaker:
  """The requests that a cascade can fulfill, and their clips, stored in a `SampleFolder`.

  Args:
    config: of the cascade.
    fps: frame rate of the clips.
    details: additional fields of every sidecar.
  """

  def __init__(
    self,
    cascade: Cascade,
    config: CascadeConfig,
    samples: SampleFolder,
    *,
    fps: float,
    details: Mapping[str, Any] | None = None,
  ):
    self._cascade, self._config, self._samples, self._fps = cascade, config, samples, fps
    self._details = dict(details or {})
    self.stages = [info.config.name for info in cascade.infos]
    self.takes_frames = all(stage.module.frame_prediction for stage in config.stages)

  def size(self, stage: str) -> str:
    """WIDTHxHEIGHT of a stage's clips, in pixels."""
    height, width = stage_size(self._config.stages[self.stages.index(stage)], self._config.vae)
    return f"{width}x{height}"

  def frames(self, extensions: int) -> int:
    """Number of frames of a clip: 1 + k f_t, and k f_t - f_t more with each extension."""
    factor = self._config.vae.temporal_factor
    latent_frames, _, _ = schema.latents_shape(self._config.stages[0].latents)
    first = 1 + (latent_frames - 1) * factor
    return first + extensions * (first - 1 - factor)

  def seconds(self, extensions: int) -> float:
    """Duration of a clip."""
    return self.frames(extensions) / self._fps

  def checked(
    self,
    prompt: str,
    *,
    seed: Any,
    stage: str,
    extensions: Any = 0,
    image: bytes | None = None,
  ) -> ClipRequest:
    """A request that this cascade fulfills.

    Args:
      seed, extensions: integers, as int or float.
      image: the content of the image that the clip starts from; the job has its path.

    Raises:
      FieldError: a field is out of its range, or the stages were not trained for it.
      ValueError: the cascade needs something else, such as a class.
    """
    prompt = prompt.strip()
    if len(prompt) > MAX_PROMPT:
      problem = f"got {len(prompt):,} characters, expected at most {MAX_PROMPT:,}"
      raise FieldError("prompt", problem)
    if self._config.reads_text and not prompt:
      raise FieldError("prompt", "got no prompt, expected text")
    try:
      prompt.encode()
    except UnicodeEncodeError as error:
      problem = "got half of a surrogate pair, expected Unicode text"
      raise FieldError("prompt", problem) from error
    seed = _integer("seed", seed, MAX_SEED)
    extensions = _integer("extensions", extensions, MAX_EXTENSIONS)
    if stage not in self.stages:
      raise FieldError("stage", f"got {stage!r}, expected one of {self.stages}")
    config = self._up_to(stage)
    for field, needed, latent_frames, why in (
      ("image", image is not None, 1, "an image"),
      ("extensions", extensions > 0, 2, f"--extensions={extensions}"),
    ):
      try:
        if needed:
          checks.check_conditioning_frames(config.stages, latent_frames, why)
      except ValueError as error:
        raise FieldError(field, str(error)) from error
    if image is not None:
      _check_image(image)
    prepare([Request(prompt=prompt)], config, SamplingSettings())
    return ClipRequest(prompt=prompt, seed=seed, stage=stage, extensions=extensions)

  def make(
    self,
    jobs: Sequence[ClipJob],
    progress: Callable[[int, int, str], None] = lambda done, total, what: None,
  ) -> Mapping[str, Mapping[str, float]]:
    """Generates and stores the clips of jobs of one kind, each of which depends on its own request only.

    Args:
      progress: called with (steps done, steps, what was done last).

    Returns:
      Stage -> part of the work -> seconds.

    Raises:
      ValueError: this is not the cascade of the requests.
    """
    first = jobs[0].request
    if first.stage not in self.stages:
      raise ValueError(f"got the stage {first.stage!r}, expected one of {self.stages}")
    count = self.stages.index(first.stage) + 1
    settings = SamplingSettings(
      extensions=first.extensions, fps=self._fps, fit="crop", batch_size=len(jobs)
    )
    requests = [Request(prompt=job.request.prompt, image=job.request.image) for job in jobs]
    batch = prepare(requests, self._up_to(first.stage), settings).batch(range(len(jobs)))
    # Always number 0, so that a prompt and a seed always give the same clip.
    seeds = [job.request.seed for job in jobs]
    batch = dataclasses.replace(batch, indices=[0] * len(jobs), seeds=seeds)
    done, total = 0, count * (1 + first.extensions)

    def update(name: str, extension: int) -> None:
      nonlocal done
      done += 1
      of_all = f"{name}, extension {extension} of {first.extensions}"
      progress(done, total, of_all if extension else name)

    progress(0, total, "started")
    (samples,) = self._cascade.run([batch], stages=count, progress=update)
    for job, request, media, sample in zip(jobs, requests, batch.media, samples):
      write_sample(
        self._samples,
        self._cascade,
        dataclasses.replace(sample, index=job.index),
        media=media,
        request=request,
        settings=dataclasses.replace(settings, seed=job.request.seed),
        details=self._details | {"job": job.id, "completed_at": round(time.time(), 3)},
      )
    return samples[0].seconds

  def _up_to(self, stage: str) -> CascadeConfig:
    """The configuration of the stages up to one of them."""
    count = self.stages.index(stage) + 1
    return dataclasses.replace(self._config, stages=self._config.stages[:count])


def read_image(path: str) -> bytes:
  """The content of an image file for a request.

  Raises:
    FieldError: the file is too large.
  """
  try:
    return storage.read(path, max_bytes=MAX_IMAGE_BYTES)
  except storage.TooLarge as error:
    problem = f"got more than {MAX_IMAGE_BYTES:,} bytes, expected a smaller file"
    raise FieldError("image", problem) from error


def _check_image(image: bytes) -> None:
  """Raises FieldError unless the bytes are those of an image of a reasonable size."""

  if len(image) > MAX_IMAGE_BYTES:
    raise FieldError("image", f"got {len(image):,} bytes, expected at most {MAX_IMAGE_BYTES:,}")
  try:
    pictures.open_picture(image, check=lambda size: check_pixels(size, MAX_IMAGE_PIXELS))
  except MediaError as error:
    raise FieldError("image", f"cannot be read as an image: {error}") from error


def _integer(name: str, value: Any, most: int) -> int:
  """A number of a page or of JSON, which may be a float or missing, as an integer from 0."""
  if isinstance(value, int | float) and not isinstance(value, bool):
    if 0 <= value <= most and value == int(value):
      return int(value)
  raise FieldError(name, f"got {value!r:.40}, expected an integer from 0 to {most:,}")
