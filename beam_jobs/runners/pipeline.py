"""The Beam transforms of a job: manifest lines to shards, shards to sidecars."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import apache_beam as beam
from apache_beam.metrics.metric import Metrics

from beam_jobs.shards import encoders, make_shard, shard_files
from beam_jobs.shards.plan import Job, assign, manifest_text, plan_path
from walt_t5x.files import storage


class PlanShards(beam.PTransform):
  """Manifest lines (bytes) to (shard, lines), for every shard of every split that has rows; writes the plan."""

  def __init__(self, job: Job):
    super().__init__()
    self._job = job

  def expand(self, lines):
    job = self._job
    assigned = (
      lines
      | "Text" >> beam.Map(manifest_text)
      | "SkipBlank" >> beam.Filter(bool)
      | "Assign" >> beam.Map(lambda line: (_key(assign(line, job)), line))
    )
    # A shard without rows is written too, so that a missing file is not mistaken for an empty one.
    every_shard = (
      assigned
      | "Split" >> beam.Map(lambda pair: _key(_shard(pair[0], index=0)))
      | "DistinctSplits" >> beam.Distinct()
      | "EveryShard" >> beam.FlatMap(_every_shard, job=job)
    )
    everything = (assigned, every_shard) | beam.Flatten()
    _ = (
      everything
      | "One" >> beam.Map(lambda pair: (pair[0], 0 if pair[1] is None else 1))
      | "CountRows" >> beam.CombinePerKey(sum)
      | "AsDict" >> beam.combiners.ToDict()
      | "WritePlan" >> beam.Map(_write_plan, job=job)
    )
    return (
      everything
      | "ByShard" >> beam.GroupByKey()
      | "DropEmpty" >> beam.MapTuple(lambda key, group: (key, [x for x in group if x is not None]))
    )


def _write_plan(counts: Mapping[tuple, int], job: Job) -> None:
  plan = {str(_shard(key)): rows for key, rows in counts.items()}
  storage.write_json(plan_path(job.output, job.task, job.replay), plan, indent=2, sort_keys=True)


class MakeShard(beam.DoFn):
  """(shard, lines) to the shard's sidecar."""

  def __init__(self, job: Job):
    super().__init__()
    self._job = job

  def setup(self):
    encoders.get_encoders(self._job.encoders)

  def process(self, element):
    key, lines = element
    sidecar = make_shard.process_shard(_shard(key), lines, self._job)
    for kind in ("written", "rejected", "dead", "quarantined"):
      Metrics.counter("rows", kind).inc(sidecar[kind])
    for kind in ("rejected", "dead"):
      for reason, count in sidecar[f"{kind}_by_reason"].items():
        Metrics.counter(kind, reason).inc(count)
    yield sidecar


def _key(shard: shard_files.ShardName) -> tuple:
  """A shard as a key that every runner can group by."""
  return dataclasses.astuple(shard)


def _shard(key: tuple, **changes: Any) -> shard_files.ShardName:
  names = (field.name for field in dataclasses.fields(shard_files.ShardName))
  return shard_files.ShardName(**dict(zip(names, key, strict=True)) | changes)


def _every_shard(key: tuple, job: Job) -> Iterator[tuple[tuple, None]]:
  """Every shard of a split, each without rows."""
  for index in range(job.buckets_of(_shard(key).split)):
    yield _key(_shard(key, index=index)), None
