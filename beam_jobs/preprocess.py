"""Preprocesses media and captions to TFRecords of latents and text embeddings.

  python -m beam_jobs.preprocess --manifest DIR/manifest.jsonl --output DIR --task shapes_pixels \\
    --content pixels --resolutions 32x32 --num_frames 9 --fps 8 --num_shards 4

writes pixels for training the VAE; with the trained VAE,

  python -m beam_jobs.preprocess --manifest DIR/manifest.jsonl --output DIR --task shapes \\
    --vae_checkpoint DIR --text_encoder DIR \\
    --resolutions 32x32,64x64 --num_frames 9 --fps 8 --num_shards 4

writes <output>/<task>_images and <output>/<task>_videos, which seqio reads as cached tasks. Run the same command again
to resume after an interruption: complete shards are skipped. Other flags go to Beam (--runner, --direct_num_workers,
...). docs/sources.md describes manifests (JSONL, CSV, Parquet, webdataset, folders of media, Kinetics) and filters.
"""

import argparse
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from beam_jobs.filters import row_filters
from beam_jobs.runners import dataflow, job_flags, running
from beam_jobs.shards import encoders, ledger, settings, shard_files
from beam_jobs.shards.plan import Job
from beam_jobs.sources import folders
from beam_jobs.sources import spec as source_spec
from walt_t5x.config.waiting import waiting
from walt_t5x.files import storage
from walt_t5x.media.containers import is_hidden

_TABLES = ("jsonl", "csv", "kinetics", "parquet")
_LINES_TO_COUNT = 100_000


def run(argv: Sequence[str] | None = None) -> dict[str, Any]:
  """Runs the job; returns the contents of the JSON line that it prints last.

  Raises:
    ValueError: if flags, checkpoint or output folder do not match, before any row is read.
    LedgerError: if rows are unaccounted for at the end.
  """
  args, rest = job_flags.parse(argv, description=__doc__)
  started = time.monotonic()
  with waiting("preprocess", "importing Beam"):
    from beam_jobs.sources.read import ReadRows

  options = running.beam_options(rest, args)
  look = not (args.dry_run and dataflow.is_dataflow(options))
  if not look:
    _check_dataflow(args, options)
  filtering = job_flags.filtering_of(args)
  source = source_spec.source_of(args, scores=row_filters.score_names(filtering.rules), look=look)
  job = job_flags.job_of(args, filtering=filtering, source=source)
  if look and source.kind == "folder":
    _print_other_names(args.manifest)
  lines = ReadRows(source)
  if args.dry_run:
    return _dry_run(args, options, lines, job)
  origin = {"fps": job.clip.fps, "num_frames": job.clip.num_frames}
  if args.content == "latents":
    with waiting("preprocess", "loading the encoders"):
      origin |= encoders.origin(encoders.get_encoders(job.encoders))
  # With several clips, the number of rows depends on how many of them are videos.
  rows = expected_rows(source) if args.clips_per_video == 1 else None
  with running.alone("preprocess", args.output, args.task):
    summary = _make(args, options, lines, job, origin=origin, rows=rows)
  return report(args.output, summary, seconds=time.monotonic() - started)


def _make(
  args: argparse.Namespace, options: Any, lines: Any, job: Job, *, origin: Any, rows: Any
) -> ledger.Summary:
  """Makes the shards and the ledger."""
  from beam_jobs.runners import pipeline
  from beam_jobs.shards import replays

  made_with = settings.settings_of(origin, job)
  replays.reject_replayed(args.output, args.task)
  settings.discard_unwritten(args.output, args.task)
  settings.reject_fewer_clips(args.output, args.task, args.clips_per_video)
  settings.guard(args.output, args.task, made_with)
  digest = settings.settings_digest(made_with)
  job = dataclasses.replace(job, settings_digest=digest)
  pipeline.make_shards(lines, job, options, rows=rows)
  return ledger.finalize(args.output, args.task, settings_digest=digest, origin=origin)


def _print_other_names(root: str) -> None:
  """Says which files of a folder are not read, and where a manifest is among them."""
  names = [name for name in folders.other_names(root) if not is_hidden(name)]
  if names:
    more = f" and {len(names) - 3:,} others" if len(names) > 3 else ""
    print(
      f"preprocess: not read in {root}: {', '.join(names[:3])}{more}, as they are neither media nor captions of media",
      file=sys.stderr,
    )
  if tables := [n for n in names if "/" not in n and source_spec.is_manifest(n)]:
    print(
      f"preprocess: to read rows from {tables[0]} instead, set --manifest={storage.join(root, tables[0])}",
      file=sys.stderr,
    )


def _check_dataflow(args: argparse.Namespace, options: Any) -> None:
  """Raises ValueError naming every flag that Dataflow would reject and what to set."""
  from apache_beam.options.pipeline_options import TestOptions

  options.view_as(TestOptions).dry_run = True  # Beam's checks then call no service.
  named = {"manifest": args.manifest, "output": args.output, "media_root": args.media_root}
  if problems := dataflow.problems(options, named):
    raise ValueError("\n  ".join(("Dataflow would reject this job:", *problems)))


def _dry_run(args: argparse.Namespace, options: Any, lines: Any, job: Job) -> dict[str, Any]:
  """Builds the job's graph; loads no encoder, reads no row, and writes and sends nothing."""
  import apache_beam as beam

  from beam_jobs.runners import pipeline

  root = beam.Pipeline(options=options)
  pipeline.add_steps(root, lines, job)
  graph = dataflow.graph_of(root, options)
  result = dataflow.summary(graph)
  if dataflow.is_dataflow(options):
    result["worker_pool"] = dataflow.worker_pool(graph, options)
    baked = {"vae_checkpoint": args.vae_checkpoint, "text_encoder": args.text_encoder}
    for note in dataflow.notes(options, baked):
      print(f"note: {note}")
    if result["worker_pool"] is None:
      print("note: without the extra `gcp`, Beam's Dataflow client did not describe the job")
  print(json.dumps(result), flush=True)
  return result


def expected_rows(source: source_spec.SourceSpec) -> tuple[int, bool] | None:
  """(rows of a table, whether that is exact), from its first lines; None for media that the job itself lists."""
  from beam_jobs.sources.sampling import Scan

  if source.kind not in _TABLES:
    return None
  try:
    scan = Scan(source, limit=_LINES_TO_COUNT, seed=0, examples=0)
    for _ in scan.lines():
      pass
    return scan.total()
  except OSError:  # The job says what it cannot read.
    return None


def report(output: str, summary: ledger.Summary, *, seconds: float) -> dict[str, Any]:
  """Prints the table and the JSON line."""
  print(
    f"{'task':<24} {'split':<11} {'rows':>8} {'written':>8} {'rejected':>8} {'dead':>6} "
    f"{'quarantined':>11} {'MB':>9}"
  )
  for (task, split), totals in summary.splits.items():
    print(
      f"{task:<24} {split:<11} {totals.rows:>8} {totals.written:>8} {totals.rejected.total():>8} "
      f"{totals.dead.total():>6} {totals.quarantined:>11} {totals.bytes / 1e6:>9.2f}"
    )
  totals = summary.all
  for kind, reasons in (("rejected", totals.rejected), ("dead", totals.dead)):
    for reason, count in sorted(reasons.items()):
      print(f"  {kind} {reason}: {count}")
  if totals.rejected:
    print(f"  rejected rows: {output}/*/*{shard_files.REJECTED}")
  if totals.dead:
    print(f"  dead letters: {output}/*/*{shard_files.DEAD} (beam_jobs.replay runs them again)")
  if totals.dead["missing"]:
    print("  missing files: once they are there, the same command with --retry_dead reads them")
  if totals.captions_cut:
    print(
      f"  captions cut to --max_text_length: {totals.captions_cut} of {totals.captions} "
      f"({totals.captions_cut / totals.captions:.1%}), the longest has {totals.longest_caption} tokens"
    )
  if totals.without_condition:
    print(f"  written without caption and label: {totals.without_condition} of {totals.written}")
  for shard, violations in summary.quarantine.items():
    print(f"  quarantined {shard}: {'; '.join(violations[:3])}")
  for name, value in totals.to_json()["psnr"].items():
    print(f"  decode PSNR {name}: {value:.2f} dB")
  result = totals.to_json() | {
    "quarantined_shards": sorted(summary.quarantine),
    "completed": [f"{output}/{folder}" for folder in summary.completed],
    "seconds": round(seconds, 2),
  }
  print(json.dumps(result), flush=True)
  return result


main = functools.partial(running.exit_code, "preprocess", run)


if __name__ == "__main__":
  sys.exit(main())
