"""Runs dead letters again and writes them to new shards next to the old ones.

  python -m beam_jobs.replay --output DIR --task shapes --media_root DIR --reason missing --reason truncated

takes every dead letter with one of these reasons (--all: every reason except errors in the manifest) after the job that
made the cache has finished, and writes `train.tfrecord-replay01.<i>-of-<N>` with their own sidecars and dead letters;
the next replay writes replay02. SeqIO reads them with the rest of the task. The job's shards, latent statistics and
provenance do not change; `stats.<split>.json` counts each row of the manifest by its present state.

Run the same command again to resume after an interruption. The encoders must be those that the provenance names;
--vae_checkpoint and --text_encoder give their present location. Clips, filters and batch sizes are the job's; limits on
media may be raised. Other flags go to Beam.
"""

import argparse
import dataclasses
import functools
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from beam_jobs.filters import row_filters
from beam_jobs.runners import running
from beam_jobs.shards import encoders, settings
from beam_jobs.shards.ledger import Summary
from beam_jobs.shards.plan import Job
from beam_jobs.shards.shard_files import LedgerError
from beam_jobs.sources.rows import PROBLEMS
from data import provenance
from walt_t5x.config import programs
from walt_t5x.files import storage
from walt_t5x.files.mismatch import Mismatch
from walt_t5x.media.clips import ClipSpec
from walt_t5x.media.rules import Rule


def parse_arguments(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
  """(our flags, the remaining arguments for Beam)."""
  parser = programs.parser("beam_jobs.replay", __doc__, allow_abbrev=False)
  add = parser.add_argument
  add("--output", required=True, help="folder of the cached tasks, as given to the job")
  add("--task", required=True, help="as given to the job")
  add(
    "--media_root", required=True, help="base of relative uris: the job's, or its manifest's folder"
  )
  which = parser.add_mutually_exclusive_group(required=True)
  which.add_argument(
    "--reason",
    action="append",
    default=[],
    help="reason of dead letters (missing, ...); may be repeated",
  )
  which.add_argument("--all", action="store_true", help="all reasons except errors in the manifest")
  add("--vae_checkpoint", help="where the job's VAE is now (where it was)")
  add("--vae_ema", action="store_true", help="as given to the job")
  add("--text_encoder", help="where the job's text encoder is now (where it was)")
  add(
    "--num_shards",
    type=running.positive,
    help="new shards per split (as many rows per shard as the job's)",
  )
  return running.parse(parser, argv)


def run(argv: Sequence[str] | None = None) -> dict[str, Any]:
  """Runs the replay; returns the contents of the JSON line that it prints last.

  Raises:
    ValueError: if flags or encoders do not match the cache, before any row is read.
    LedgerError: if the job has not finished, or rows are unaccounted for.
  """
  args, rest = parse_arguments(argv)
  started = time.monotonic()
  options = running.beam_options(rest, args)
  job_settings = settings.read(args.output, args.task)
  with running.alone("replay", args.output, args.task):
    return _report(*_replay(args, options, job_settings), seconds=time.monotonic() - started)


def _replay(
  args: argparse.Namespace, options: Any, job_settings: dict[str, Any]
) -> tuple[Any, Summary, dict[Any, Counter], Summary]:
  """(the replay or None, totals before, the rows that it took, totals after)."""
  from beam_jobs.runners import pipeline
  from beam_jobs.shards import replays

  history = replays.read_all(args.output, args.task)
  pending = history.pop() if history and not history[-1].finished else None
  before = replays.account(args.output, args.task, history)
  for folder in before.completed if not pending else ():
    if not storage.exists(storage.join(args.output, folder, "COMPLETED")):
      raise LedgerError(
        f"{args.output}/{folder} has no COMPLETED: finish `python -m beam_jobs.preprocess` first"
      )
  limits = running.given(args, running.LIMITS)
  replay = replays.Replay(
    number=len(history) + 1,
    reasons=_reasons(args),
    buckets={},
    settings={**job_settings, "clip": {**job_settings["clip"], **limits}},
  )
  found = {where: replay.taken(totals.dead) for where, totals in before.splits.items()}
  taken = {where: counts for where, counts in found.items() if counts}
  replay = dataclasses.replace(
    replay, buckets=_buckets(before, taken, job_settings["num_shards"], args.num_shards)
  )
  if pending:
    number = f"{pending.number:02d}"
    settings.reject_differences(
      pending.decisive,
      replay.decisive,
      f"replay {number} of {args.output} has not finished, and was started with other flags:",
      f"finish it with those flags, or delete *.replay{number}.* and */*.tfrecord-replay{number}.* there",
    )
  if not taken:
    return None, before, {}, before
  for folder, _ in taken:
    if folder not in before.completed:
      raise LedgerError(
        f"{args.output}/{folder} has no record of the job, so it has no latent statistics; run "
        "`python -m beam_jobs.preprocess ... --retry_dead` instead"
      )
  job = _job_of(args, replay, before.completed[0])
  replay.write(args.output, args.task)
  for folder, _ in taken:
    # The folder is not complete for readers until finalize has run again.
    storage.delete(storage.join(args.output, folder, "COMPLETED"))
  lines = replays.TakenLines(args.output, args.task, replay=replay, history=history)
  rows = sum(counts.total() for counts in taken.values())
  pipeline.make_shards(lines, job, options, rows=(rows, True))
  after = replays.finalize(args.output, args.task, [*history, replay])
  return replay, before, taken, after


def _reasons(args: argparse.Namespace) -> tuple[str, ...] | None:
  if broken := sorted(set(args.reason) & PROBLEMS):
    raise ValueError(
      f"--reason: got {broken}, which are errors in the manifest; fix the manifest and run the job again: "
      "complete shards are skipped"
    )
  return None if args.all else tuple(sorted(set(args.reason)))


def _buckets(
  before: Summary, taken: Mapping[Any, Counter], num_shards: Mapping[str, int], wanted: int | None
) -> dict[str, int]:
  """Shards per split: `wanted`, or as many as give the job's rows per shard; at most the job's number."""
  buckets = {}
  for split, count in num_shards.items():
    full = [
      math.ceil(counts.total() * count / before.splits[where].rows)
      for where, counts in taken.items()
      if where[1] == split
    ]
    buckets[split] = min(count, wanted or max(full, default=1))
  return buckets


def _job_of(args: argparse.Namespace, replay: Any, folder: str) -> Job:
  """The job of a replay, with the clips, filters and encoders of the job; other encoders are rejected."""
  before = replay.settings
  clip, filters = before["clip"], before["filters"]
  config: dict[str, Any] = dict(_batch_sizes(args, before))
  if before["vae"]:
    saved = storage.read(storage.join(args.output, folder, provenance.FILE_NAME))
    made_by = provenance.Provenance.from_json(saved.decode())
    config |= {
      "vae_config": json.dumps(before["vae"]["config"], sort_keys=True),
      "vae_checkpoint": args.vae_checkpoint or made_by.vae["checkpoint"],
      "vae_ema": args.vae_ema,
      "text_folder": args.text_encoder or made_by.text_encoder.get("folder", ""),
      "max_text_length": before["text_encoder"].get("max_length", 64),
    }
  elif args.vae_checkpoint or args.text_encoder:
    raise ValueError(
      f"{args.output} is a cache of pixels: remove --vae_checkpoint and --text_encoder"
    )
  job = Job(
    output=args.output,
    task=args.task,
    manifest_folder=args.media_root,
    allowed=tuple(args.allow_uri),
    num_shards=before["num_shards"],
    encoders=encoders.EncoderConfig(**config),
    clip=ClipSpec(**{**clip, "resolutions": tuple(map(tuple, clip["resolutions"]))}),
    filtering=row_filters.FilterSpec(
      **{**filters, "rules": tuple(Rule(**rule) for rule in filters["rules"])}
    ),
    settings_digest=replay.digest,
    replay=replay.number,
    buckets=replay.buckets,
    **running.job_fields(args),
  )
  settings.reject_differences(
    # Older caches do not record batch sizes, so there is nothing to compare.
    {"batch_sizes": job.encoders.batch_sizes, **before},
    settings.settings_of(
      encoders.origin(encoders.get_encoders(job.encoders)) if before["vae"] else {}, job
    ),
    f"the encoders of this replay differ from those of {args.output}:",
    "set --vae_checkpoint (and --vae_ema) and --text_encoder to those that made the cache",
  )
  return job


def _batch_sizes(args: argparse.Namespace, before: Mapping[str, Any]) -> dict[str, int]:
  """The job's batch sizes, so that latents round as in the job."""
  given = running.given(args, running.BATCH_SIZES)
  if not before["vae"]:
    return given  # Pixels do not depend on them.
  sizes = dict(before.get("batch_sizes", given))
  if len(sizes) < 2:
    raise ValueError(
      f"{args.output} does not record its batch sizes: set --batch_size and --image_batch_size to "
      "those of the job (8 and 32 unless it set others)"
    )
  for name, value in given.items():
    if value != sizes[name]:
      raise Mismatch(
        f"--{name}: got {value}, but {args.output} was made with {sizes[name]}, and latents of another batch "
        "size may round differently; remove the flag"
      )
  return sizes


def _report(
  replay: Any, before: Summary, taken: Mapping[Any, Counter], after: Summary, *, seconds: float
) -> dict[str, Any]:
  """Prints the table and the JSON line."""
  left = after.all.dead
  if replay is None:
    print(f"nothing to replay; dead letters: {dict(sorted(left.items())) or 'none'}")
  else:
    print(f"{'task':<24} {'split':<11} {'taken':>8} {'written':>8} {'rejected':>8} {'dead':>6}")
  result: dict[str, Any] = dict.fromkeys(("rows", "written", "rejected", "dead", "quarantined"), 0)
  for (folder, split), counts in sorted(taken.items()):
    old, new = (summary.splits[folder, split].to_json() for summary in (before, after))
    mine = {name: new[name] - old[name] for name in result}
    # The dead letters that it took are no longer counted.
    mine |= {"rows": counts.total(), "dead": mine["dead"] + counts.total()}
    result = {name: count + mine[name] for name, count in result.items()}
    print(
      f"{folder:<24} {split:<11} {mine['rows']:>8} {mine['written']:>8} {mine['rejected']:>8} {mine['dead']:>6}"
    )
  result |= {
    "replay": replay.number if replay else None,
    "dead_letters_left": dict(sorted(left.items())),
    "seconds": round(seconds, 2),
  }
  print(json.dumps(result), flush=True)
  return result


main = functools.partial(running.exit_code, "replay", run)


if __name__ == "__main__":
  sys.exit(main())
