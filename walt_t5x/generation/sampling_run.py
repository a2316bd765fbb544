"""Generates the samples of many requests, batch by batch, and resumes an interrupted run.

Sample i belongs to request i // num_samples. The samples' numbers determine the batches, regardless of what exists, so
an interrupted run ends with the same bytes: a batch with a missing sample is generated again in full, and only the
missing samples are written.
"""

import collections
import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from walt_t5x.files.paths import AnyPath
from walt_t5x.generation.cascade import Cascade, Sample
from walt_t5x.generation.conditioning_media import ConditioningMedia
from walt_t5x.generation.prepared_requests import Prepared, SamplingSettings
from walt_t5x.generation.requests import Request
from walt_t5x.generation.sample_folder import SampleFolder

# Batches that a cascade with `one_at_a_time` runs before its stages are read again.
_BATCHES_A_LOAD = 16


def batches_of(count: int, batch_size: int, *, shard: int = 0, shards: int = 1) -> list[range]:
  """The sample numbers of each batch of a shard; batches are assigned to shards in turn."""
  starts = range(0, count, batch_size)
  found = [range(start, min(count, start + batch_size)) for start in starts]
  return found[shard::shards]


def make_samples(
  cascade: Cascade,
  prepared: Prepared,
  folder: SampleFolder,
  *,
  details: Mapping[str, Any],
  shard: tuple[int, int] = (0, 1),
  before_writing: Callable[[], None] = lambda: None,
  streamed: Callable[[int, str, AnyPath], None] | None = None,
) -> Iterator[Sample]:
  """Generates the missing samples of a shard (number, count); yields each one once it is on disk.

  Args:
    cascade, prepared, folder: what makes the samples, their requests, and where they are written.
    details: additional fields of every sidecar.
    shard: number and count.
    before_writing: called before the files of a batch, or of its stage, are written.
    streamed: called with (number of the sample, stage, file) when the clip of a stage is on disk, before the next
      stage starts. None writes the clips of all stages when the last one has finished. The bytes are the same.
  """
  settings = prepared.settings
  count = len(prepared.requests) * settings.num_samples
  missing = {}
  for indices in batches_of(count, settings.batch_size, shard=shard[0], shards=shard[1]):
    left = [i for i in indices if not folder.finished(i)]
    if left:
      missing[indices] = left
  todo = list(missing)
  step = _BATCHES_A_LOAD if cascade.one_at_a_time else 1
  wanted = {i for left in missing.values() for i in left}
  written: dict[int, dict[str, Any]] = collections.defaultdict(dict)

  def write_stage(stage: str, samples: Sequence[Sample]) -> None:
    assert streamed is not None
    before_writing()
    for sample in samples:
      if sample.index in wanted:
        entry = folder.write_stage(
          sample.index,
          stage,
          sample.videos[stage],
          fps=settings.fps,
          formats=settings.formats,
          latents=sample.latents[stage],
        )
        written[sample.index][stage] = entry
        streamed(sample.index, stage, folder.path / entry["file"])

  with contextlib.ExitStack() as stack:
    bars = {}
    for position, info in enumerate(cascade.infos if todo else ()):
      total, name = len(todo) * (1 + settings.extensions), info.config.name
      bar = tqdm(total=total, desc=name, unit="batch", position=position, file=sys.stderr)
      bars[name] = stack.enter_context(bar)
    for start in range(0, len(todo), step):
      group = todo[start : start + step]
      batches = [prepared.batch(indices) for indices in group]
      made = cascade.run(
        batches,
        progress=lambda stage, extension: bars[stage].update(),
        stage_finished=None if streamed is None else write_stage,
      )
      for indices, batch, samples in zip(group, batches, made):
        before_writing()
        for sample, media in zip(samples, batch.media):
          if sample.index in missing[indices]:
            write_sample(
              folder,
              cascade,
              sample,
              media=media,
              request=prepared.request(sample.index),
              settings=settings,
              details=details,
              written=written.pop(sample.index, None),
            )
            yield sample


def write_sample(
  folder: SampleFolder,
  cascade: Cascade,
  sample: Sample,
  *,
  media: ConditioningMedia | None,
  request: Request,
  settings: SamplingSettings,
  details: Mapping[str, Any] | None = None,
  written: Mapping[str, Any] | None = None,
) -> None:
  """Writes the files and the metadata of a sample.

  `details` are additional fields of its sidecar; `written` are its stages that `SampleFolder.write_stage` wrote.
  """
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
      "rounds": 1 + settings.extensions,
      **({} if request.label is None else {"label": request.label}),
      **({} if media is None else {"given": {"kind": request.kind, **media.as_dict()}}),
      "samplers": {info.config.name: sampler_of(info.config) for info in cascade.infos},
      "batch_size": settings.batch_size,
      "batch_seconds": {
        stage: {what: round(value, 3) for what, value in times.items()}
        for stage, times in sample.seconds.items()
      },
      **(details or {}),
    },
    written=written,
  )


def sampler_of(config: Any) -> dict[str, Any]:
  """What a sidecar says about the sampler of a stage."""
  sampler = config.model.sampler
  found = {"num_steps": sampler.num_steps, "guidance": repr(sampler.guidance)}
  found |= {"solver": repr(sampler.chosen_solver()), "grid": repr(sampler.grid)}
  if sampler.cache is not None:
    found["cache"] = repr(sampler.cache)
  if config.low_resolution:
    found["low_resolution_noise"] = config.model.sampling_low_resolution_noise
  return found
