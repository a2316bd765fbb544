"""The Beam transforms of a job: manifest lines to shards, shards to sidecars."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.metrics.metric import Metrics
from apache_beam.options.pipeline_options import DirectOptions, PortableOptions, StandardOptions

from beam_jobs.runners import dataflow, listening, local_worker, worker_deaths
from beam_jobs.shards import encoders, ledger, make_shard, progress
from beam_jobs.shards.plan import Job, assign, manifest_text, plan_path
from beam_jobs.shards.shard_files import ShardName, parse_shard, update
from walt_t5x.config import waiting
from walt_t5x.files import damage


def make_shards(
  lines: beam.PTransform, job: Job, options: Any, *, rows: tuple[int, bool] | None
) -> None:
  """Runs the pipeline to its end, with progress lines on stderr.

  `lines` reads (number of a clip or None, manifest line) from the pipeline's root; `rows` is the number of rows of
  the ledger and whether it is exact, None if unknown.
  """
  poll = rows_done(options, on_disk=lambda: ledger.rows_on_disk(job.output, job.task, job.replay))
  line = progress.line_of(rows, poll)
  run_to_end(lambda root: add_steps(root, lines, job), options, line=line, program="preprocess")


def rows_done(options: Any, *, on_disk: Callable[[], int]) -> Callable[[], tuple[int, int]]:
  """(rows done so far, those skipped among them): counted here if the workers are threads, else `on_disk`."""
  here = options.view_as(StandardOptions).runner.endswith(("FnApiRunner", "DirectRunner"))
  mode = options.view_as(DirectOptions).direct_running_mode
  threads = here and mode in ("in_memory", "multi_threading")
  return progress.ROWS if threads else lambda: (on_disk(), 0)


def run_to_end(
  add: Callable[[beam.Pipeline], None], options: Any, *, line: Callable[[], str], program: str
) -> None:
  """Runs the pipeline to which `add` adds the steps; `line` gives the program's progress lines on stderr."""
  pipeline = beam.Pipeline(options=options)

  def interrupted() -> str:
    if dataflow.is_dataflow(options):
      return dataflow.interrupted(options, pipeline)
    return worker_deaths.INTERRUPTED

  # A worker on another machine has to reach this process.
  external = options.view_as(PortableOptions).environment_type == "EXTERNAL"
  local = contextlib.nullcontext() if external else listening.on()
  with (
    local,
    waiting.reporting(line),
    worker_deaths.end_with_workers(interrupted, program=program),
  ):
    # Leaving the block waits for the job to finish.
    with local_worker.started_by_beam(), pipeline as root:
      add(root)


def add_steps(root: beam.Pipeline, lines: beam.PTransform, job: Job) -> None:
  """Adds the steps of `make_shards` to a pipeline: lines are grouped by shard, the plan is written, shards are made."""
  assigned = (
    root
    | "Rows" >> lines
    | "Text" >> beam.MapTuple(lambda clip, line: (clip, manifest_text(line)))
    | "SkipBlank" >> beam.Filter(lambda row: bool(row[1]))
    | "Assign" >> beam.FlatMap(_assigned, job).with_output_types(tuple[str, str])
  )
  # A shard without rows is written too, so that a missing file is not mistaken for an empty one.
  every_shard = (
    assigned
    | "Split" >> beam.MapTuple(lambda name, _: str(_shard(name, index=0)))
    | "DistinctSplits" >> beam.Distinct()
    | "EveryShard" >> beam.FlatMap(_every_shard, job=job)
  )
  everything = (assigned, every_shard) | beam.Flatten()
  path = plan_path(job.output, job.task, job.replay)
  _ = (
    everything
    | "One" >> beam.MapTuple(lambda name, line: (name, 1 if line else 0))
    | "CountRows" >> beam.CombinePerKey(sum)
    | "AsDict" >> beam.combiners.ToDict()
    | "WritePlan" >> beam.Map(lambda plan: update(path, damage.sealed_json(plan)))
  )
  _ = (
    everything
    | "ByShard" >> beam.GroupByKey()
    | "DropEmpty" >> beam.MapTuple(lambda name, lines: (name, list(filter(None, lines))))
    | "MakeShard" >> beam.ParDo(MakeShard(job))
  )


def _assigned(row: tuple[int | None, str], job: Job) -> Iterator[tuple[str, str]]:
  """(name of a shard, line) for every shard of a line."""
  clip, line = row
  return ((str(shard), line) for shard in assign(line, clip, job))


def _shard(name: str, **changes: int) -> ShardName:
  shard = parse_shard(name)
  assert shard is not None, "names are those of `assign`"
  return dataclasses.replace(shard, **changes)


def _every_shard(name: str, job: Job) -> Iterator[tuple[str, str]]:
  """Every shard of a split, each with an empty line."""
  for index in range(job.buckets[_shard(name).split]):
    yield str(_shard(name, index=index)), ""


class MakeShard(beam.DoFn):
  """(name of a shard, lines) to the shard's sidecar."""

  def __init__(self, job: Job):
    super().__init__()
    self._job = job

  def setup(self):
    encoders.get_encoders(self._job.encoders)

  def process(self, element):
    name, lines = element
    sidecar = make_shard.process_shard(_shard(name), lines, self._job)
    for kind in ("written", "rejected", "dead", "quarantined"):
      Metrics.counter("rows", kind).inc(sidecar[kind])
    Metrics.counter("captions", "cut").inc(sidecar.get("captions_cut", 0))
    for kind in ("rejected", "dead"):
      for reason, count in sidecar[f"{kind}_by_reason"].items():
        Metrics.counter(kind, reason).inc(count)
    yield sidecar
