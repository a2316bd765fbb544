"""Generates the samples of many requests, batch by batch, and resumes an interrupted run.

Sample i belongs to request i // num_samples. The samples' numbers determine the batches, regardless of what exists, so
an interrupted run ends with the same bytes: a batch with a missing sample is generated again in full, and only the
missing samples are written.
"""

import dataclasses
import hashlib
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from walt_t5x.generation.cascade import Batch, Cascade, Sample
from walt_t5x.generation.given_media import GivenMedia
from walt_t5x.generation.requests import Request
from walt_t5x.generation.sample_folder import SampleFolder

# Batches that a cascade with `one_at_a_time` runs before its stages are read again.
_BATCHES_A_LOAD = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingSettings:
  """Everything that determines the samples except models and requests.

  Attributes:
    seed: seed of the noise.
    num_samples: clips per request.
    rounds: rounds of each clip.
    fps: frame rate of the files.
    formats: formats of the files, `sample_files.FORMATS`.
    fit: how given media are resized, `media.geometry.FITS`.
    batch_size: clips that are generated together.
    decoded_given: start with the reconstruction of a clip's last frames instead of the entire clip.
  """

  seed: int = 0
  num_samples: int = 1
  rounds: int = 1
  fps: float = 8.0
  formats: Sequence[str] = ("mp4",)
  fit: str = "exact"
  batch_size: int = 32
  decoded_given: bool = False


def batches_of(count: int, batch_size: int, *, shard: int = 0, shards: int = 1) -> list[range]:
  """The sample numbers of each batch of a shard; batches are assigned to shards in turn."""
  starts = range(0, count, batch_size)
  found = [range(start, min(count, start + batch_size)) for start in starts]
  return found[shard::shards]


def make_samples(
  cascade: Cascade,
  requests: Sequence[Request],
  folder: SampleFolder,
  settings: SamplingSettings,
  *,
  read_given: Callable[[Request], GivenMedia | None],
  details: Mapping[str, Any],
  shard: int = 0,
  shards: int = 1,
  written: Callable[[Sample], None] = lambda sample: None,
) -> int:
  """Generates the missing samples; returns how many it wrote.

  Args:
    cascade: the models.
    requests: the requests.
    folder: the output folder.
    settings: see `SamplingSettings`.
    read_given: returns the media that a request starts from.
    details: additional fields of every sidecar.
    shard: this job's number.
    shards: number of jobs that share the samples.
    written: called with each sample once it is on disk.
  """
  count = len(requests) * settings.num_samples
  missing = {}
  for indices in batches_of(count, settings.batch_size, shard=shard, shards=shards):
    left = [i for i in indices if not folder.finished(i)]
    if left:
      missing[indices] = left
  todo = list(missing)
  step = _BATCHES_A_LOAD if cascade.one_at_a_time else 1
  made = 0
  with _Progress(cascade, len(todo) * settings.rounds) as progress:
    for start in range(0, len(todo), step):
      group = todo[start : start + step]
      batches = [_batch(requests, indices, settings, read_given) for indices in group]
      made_batches = cascade.run(
        batches,
        seed=settings.seed,
        rounds=settings.rounds,
        decoded_given=settings.decoded_given,
        progress=progress.update,
      )
      for indices, batch, samples in zip(group, batches, made_batches):
        for sample, given in zip(samples, batch.given):
          if sample.index in missing[indices]:
            request = requests[sample.index // settings.num_samples]
            write_sample(
              folder,
              cascade,
              sample,
              given=given,
              request=request,
              settings=settings,
              details=details,
            )
            written(sample)
            made += 1
  return made


def _batch(requests, indices: range, settings: SamplingSettings, read_given) -> Batch:
  chosen = [requests[i // settings.num_samples] for i in indices]
  by_request = {id(request): read_given(request) for request in chosen}
  labels = [request.label for request in chosen]
  return Batch(
    indices=list(indices),
    prompts=[request.prompt for request in chosen],
    labels=[] if None in labels else labels,
    given=[by_request[id(request)] for request in chosen],
  )


def write_sample(
  folder: SampleFolder,
  cascade: Cascade,
  sample: Sample,
  *,
  given: GivenMedia | None,
  request: Request,
  settings: SamplingSettings,
  details: Mapping[str, Any] | None = None,
) -> None:
  """Writes the files and the metadata of a sample.

  Args:
    folder: the output folder.
    cascade: the models that made it.
    sample: the clip.
    given: the media that it started from.
    request: its request.
    settings: settings of the run.
    details: additional fields of the sidecar.
  """
  rounded = {
    stage: {what: round(value, 3) for what, value in times.items()}
    for stage, times in sample.seconds.items()
  }
  folder.write(
    sample.index,
    prompt=sample.prompt,
    videos=sample.videos,
    latents=sample.latents,
    fps=settings.fps,
    seed=settings.seed,
    formats=settings.formats,
    steps={i.config.name: i.step for i in cascade.infos if i.config.name in sample.videos},
    fingerprints={"vae": cascade.infos[0].provenance.vae["fingerprint"], **cascade.fingerprints},
    details={
      "sample": sample.index % settings.num_samples,
      "rounds": settings.rounds,
      **({} if request.label is None else {"label": request.label}),
      **({} if given is None else {"given": {"kind": request.kind, **given.as_dict()}}),
      "samplers": {info.config.name: _sampler(info.config) for info in cascade.infos},
      "batch_size": settings.batch_size,
      "batch_seconds": rounded,
      **(details or {}),
    },
  )


def _sampler(config: Any) -> dict[str, Any]:
  sampler = config.model.sampler
  found = {"num_steps": sampler.num_steps, "guidance": repr(sampler.guidance)}
  if config.low_resolution:
    found["low_resolution_noise"] = config.model.sampling_low_resolution_noise
  return found


def digest(text: str) -> str:
  """sha256 hash of a text."""
  return hashlib.sha256(text.encode()).hexdigest()


class _Progress:
  """One progress bar per stage, with the remaining time."""

  def __init__(self, cascade: Cascade, total: int):
    self._names = [info.config.name for info in cascade.infos]
    self._total = total
    self._bars: dict[str, Any] = {}

  def __enter__(self) -> "_Progress":
    from tqdm import tqdm

    for position, name in enumerate(self._names if self._total else []):
      self._bars[name] = tqdm(
        total=self._total, desc=name, unit="batch", position=position, file=sys.stderr
      )
    self._started = time.monotonic()
    return self

  def update(self, stage: str, round: int) -> None:
    """Reports that one round of one stage of one batch is done."""
    self._bars[stage].update()

  def __exit__(self, *exc: Any) -> None:
    for bar in self._bars.values():
      bar.close()
