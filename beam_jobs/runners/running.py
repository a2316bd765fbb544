"""Common parts of the programs that make shards: the pipeline, its progress lines and its exit codes."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from beam_jobs.runners import worker_flags
from beam_jobs.shards.shard_files import LedgerError
from walt_t5x.files.storage import CannotWrite


def make_shards(lines: Any, job: Any, options: Any, *, rows: int | None) -> None:
  """Runs the pipeline to its end, with progress lines on stderr.

  Args:
    lines: transform from the pipeline's root to manifest lines, bytes.
    job: a `plan.Job`.
    options: Beam's pipeline options.
    rows: number of lines, None if unknown.
  """
  import apache_beam as beam

  from beam_jobs.runners import worker_deaths

  with _reporter(job, options, rows), worker_deaths.end_with_workers():
    # Leaving the block waits for the job to finish.
    with beam.Pipeline(options=options) as root:
      add_steps(root, lines, job)


def add_steps(root: Any, lines: Any, job: Any) -> None:
  """Adds the steps of `make_shards` to a pipeline."""
  import apache_beam as beam

  from beam_jobs.runners import pipeline

  _ = (
    root
    | "Rows" >> lines
    | "Plan" >> pipeline.PlanShards(job)
    | "MakeShard" >> beam.ParDo(pipeline.MakeShard(job))
  )


def _reporter(job: Any, options: Any, rows: int | None) -> Any:
  """Progress reporter; counts rows here if the workers are threads of this process, else in the sidecars."""
  from beam_jobs.shards import ledger, progress

  if worker_flags.in_this_process(options):
    return progress.Reporter(rows)
  return progress.Reporter(
    rows,
    poll=lambda: (ledger.rows_on_disk(job.output, job.task, job.replay), 0),
    every_seconds=20.0,
  )


def exit_code(
  program: str,
  run: Callable[[Sequence[str] | None], Any],
  argv: Sequence[str] | None = None,
) -> int:
  """Calls `run` and returns the exit code; errors that a user can fix are printed without a traceback."""
  try:
    run(argv)
  except (ValueError, FileNotFoundError) as error:
    print(f"{program}: {error}", file=sys.stderr)
    return 2
  except LedgerError as error:
    print(f"{program}: {error}", file=sys.stderr)
    return 1
  except (CannotWrite, RuntimeError) as error:
    # Beam passes on exceptions of workers as text.
    if CannotWrite.__name__ not in f"{type(error).__name__}: {error}":
      raise
    _, _, told = str(error).rpartition(f"{CannotWrite.__name__}: ")
    print(f"{program}: {told.strip()}", file=sys.stderr)
    return 1
  return 0
