"""Media and captions to TFRecords of latents and text embeddings.

  python -m beam_jobs.preprocess --manifest DIR/manifest.jsonl --output DIR --task shapes_pixels \\
    --content pixels --resolutions 32x32 --num_frames 9 --fps 8 --num_shards 4

writes pixels to train the VAE on; with the trained VAE,

  python -m beam_jobs.preprocess --manifest DIR/manifest.jsonl --output DIR --task shapes \\
    --vae_gin_file gin/models/vae_tiny.gin --vae_checkpoint DIR --text_encoder DIR \\
    --resolutions 32x32,64x64 --num_frames 9 --fps 8 --num_shards 4

writes <output>/<task>_images and <output>/<task>_videos, which seqio reads as cached tasks. Run it again to go on
after an interruption: whole shards are left alone. Other flags go to Beam (--runner, --direct_num_workers, ...).
docs/sources.md says what manifests may be (JSONL, CSV, Parquet, webdataset, class folders, Kinetics) and how to filter.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from beam_jobs import worker_flags
from beam_jobs.shards import LedgerError
from beam_jobs.sources import spec as source_spec

_MAX_MANIFEST_TO_COUNT = 1 << 30


def parse_arguments(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
  """Our flags, and what is left for Beam."""
  parser = argparse.ArgumentParser(
    prog="python -m beam_jobs.preprocess",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  source_spec.add_arguments(parser)
  add("--output", required=True, help="folder of the cached tasks")
  add("--task", required=True, help="name; the folders are <task>_images and <task>_videos")
  add(
    "--content",
    default="latents",
    choices=("latents", "pixels"),
    help="what the cache holds: latents and text (default), or pixels to train the VAE",
  )
  add("--vae_gin_file", help="binds the fields of autoencoder.CausalVae")
  add("--vae_checkpoint", help="checkpoint_<step> folder, or model_dir (newest)")
  add("--vae_ema", action="store_true", help="take the averaged weights of the checkpoint")
  add("--text_encoder", help="T5 folder: config.json, model.safetensors, spiece.model")
  add("--max_text_length", type=int, default=64, help="tokens of a caption, eos included (64)")
  add("--resolutions", required=True, type=_resolutions, help="HxW,HxW,...; any shapes")
  add("--num_frames", type=int, default=17, help="frames of a clip, 1 + T (17)")
  add("--fps", type=float, default=8.0, help="frame rate of a clip (8)")
  add(
    "--clip_position",
    default="centre",
    choices=("centre", "beginning", "random"),
    help="where a clip lies in media or windows that are longer; 'random' is drawn from the row's id",
  )
  add("--clip_seed", type=int, default=0, help="other seeds draw other clips (0)")
  add("--num_shards", type=int, default=16, help="shards of the train split, per task (16)")
  add("--num_validation_shards", type=int, default=1, help="shards of the validation split (1)")
  add("--min_motion", type=float, default=0.0, help="reject videos with less motion, 0 to 1")
  add(
    "--filter",
    action="append",
    default=[],
    metavar="RULE",
    help="'NAME OP NUMBER' that rows must hold, e.g. 'aesthetic>=5', 'aspect<=2.4', 'seconds>=2', 'caption_words>=3'; "
    "again for more (docs/sources.md)",
  )
  add(
    "--duplicates",
    default="none",
    choices=("none", "exact", "near"),
    help="what to reject within a shard: same media, or media that look the same too (none)",
  )
  add("--near_duplicate_bits", type=int, default=6, help="of 128 a picture, 0 to 63 (6)")
  add("--allow_upscale", action="store_true", help="take media smaller than a resolution")
  worker_flags.add_limits(parser)
  worker_flags.add_work(parser)
  add("--retry_dead", action="store_true", help="make shards with dead letters again")
  add("--dry_run", action="store_true", help="check flags, build the job's graph, run nothing")
  args, rest = parser.parse_known_args(argv)
  worker_flags.check(parser, args)
  for name in ("num_shards", "num_validation_shards"):
    if getattr(args, name) < 1:
      parser.error(f"--{name}: got {getattr(args, name)}, expected 1 or more")
  if not 0 <= args.near_duplicate_bits < 64:
    parser.error(f"--near_duplicate_bits: got {args.near_duplicate_bits}, expected 0 to 63")
  for name in ("vae_gin_file", "vae_checkpoint", "text_encoder"):
    if args.content == "latents" and not getattr(args, name):
      parser.error(f"--{name} is needed for --content=latents")
    if args.content == "pixels" and getattr(args, name):
      parser.error(f"--{name} does nothing with --content=pixels: leave it out")
  if args.content == "pixels" and (
    args.qa_samples or args.qa_mean or args.qa_std or args.qa_min_psnr is not None
  ):
    parser.error("--qa_* do nothing with --content=pixels: pixels are kept as they are")
  return args, rest


def run(argv: Sequence[str] | None = None) -> dict[str, Any]:
  """The whole job; returns what the last printed line holds as JSON.

  Raises:
    ValueError: on flags, a checkpoint or an output folder that do not fit, before any row is read.
    LedgerError: where rows are unaccounted for in the end.
  """
  args, rest = parse_arguments(argv)
  started = time.monotonic()
  import apache_beam as beam

  from beam_jobs import encoders, filters, ledger, pipeline, replays, settings, worker_deaths

  options = worker_flags.beam_options(rest)
  if args.dry_run:
    return dry_run(args, options)
  rules = filter_rules(args)
  source = source_spec.source_of(args, scores=filters.score_names(rules))
  config, clip, filtering = encoders_of(args), clip_of(args), filtering_of(args, rules)
  origin = {"fps": clip.fps, "num_frames": clip.num_frames}
  if args.content == "latents":
    loaded = encoders.get_encoders(config)
    check_resolutions(loaded.vae, args)
    origin |= encoders.origin(loaded)
  num_shards = {"train": args.num_shards, "validation": args.num_validation_shards}
  fingerprints = settings.settings_of(
    origin, clip, filtering, num_shards=num_shards, batch_sizes=config.batch_sizes
  )
  replays.refuse(args.output, args.task)
  settings.guard(args.output, args.task, fingerprints)
  job = pipeline.Job(
    output=args.output,
    task=args.task,
    manifest_folder=source.media_root,
    num_shards=num_shards,
    encoders=config,
    clip=clip,
    filtering=filtering,
    settings_digest=settings.settings_digest(fingerprints),
    retry_dead=args.retry_dead,
    **worker_flags.job_fields(args),
  )
  with reporter(args, options, ledger), worker_deaths.end_with_workers():
    # Leaving the block waits for the end of the job.
    with beam.Pipeline(options=options) as root:
      add_job(root, source, job)
  summary = ledger.finalise(
    args.output, args.task, settings_digest=job.settings_digest, origin=origin
  )
  return report(args.output, summary, seconds=time.monotonic() - started)


def add_job(root: Any, source: source_spec.SourceSpec, job: Any, *, look: bool = True) -> None:
  """The steps of the job; `look` as `ReadRows` has it."""
  import apache_beam as beam

  from beam_jobs import pipeline
  from beam_jobs.sources.read import ReadRows

  _ = (
    root
    | "Rows" >> ReadRows(source, look=look)
    | "Plan" >> pipeline.PlanShards(job)
    | "MakeShard" >> beam.ParDo(pipeline.MakeShard(job))
  )


def dry_run(args: argparse.Namespace, options: Any) -> dict[str, Any]:
  """Check the flags and build the job's graph; no encoder is loaded, no row read, nothing written or sent.

  Raises:
    ValueError: naming every flag that does not fit, with what to set.
  """
  import apache_beam as beam
  from apache_beam.options.pipeline_options import TestOptions

  from beam_jobs import dataflow, encoders, filters, pipeline

  remote = dataflow.is_dataflow(options)
  if remote:
    options.view_as(TestOptions).dry_run = True  # Beam's checks then ask no service.
    named = {"manifest": args.manifest, "output": args.output, "media_root": args.media_root}
    if problems := dataflow.problems(options, named):
      raise ValueError("\n".join(("Dataflow would not run this:", *(f"  {p}" for p in problems))))
  rules = filter_rules(args)
  source = source_spec.source_of(args, scores=filters.score_names(rules), look=not remote)
  config = encoders_of(args)
  if args.content == "latents":
    check_resolutions(encoders.build_vae(json.loads(config.vae_config)), args)
  job = pipeline.Job(
    output=args.output,
    task=args.task,
    manifest_folder=source.media_root,
    num_shards={"train": args.num_shards, "validation": args.num_validation_shards},
    encoders=config,
    clip=clip_of(args),
    filtering=filtering_of(args, rules),
    settings_digest="dry run",
    **worker_flags.job_fields(args),
  )
  root = beam.Pipeline(options=options)
  add_job(root, source, job, look=not remote)
  graph = dataflow.graph_of(root, options)
  result = dataflow.summary(graph)
  if remote:
    result["worker_pool"] = dataflow.worker_pool(graph, options)
    baked = {"vae_checkpoint": args.vae_checkpoint, "text_encoder": args.text_encoder}
    for note in dataflow.notes(options, baked):
      print(f"note: {note}")
    if result["worker_pool"] is None:
      print(
        "note: without the extra `gcp` the job description of Beam's Dataflow client was not made"
      )
  print(json.dumps(result), flush=True)
  return result


def filter_rules(args: argparse.Namespace) -> list[Any]:
  """The rules of --filter, without the one of --min_motion."""
  from beam_jobs import filters

  return [filters.Rule.parse(text) for text in args.filter]


def filtering_of(args: argparse.Namespace, rules: Sequence[Any]) -> Any:
  """All filters."""
  from beam_jobs import filters

  motion = ()
  if args.min_motion > 0:
    motion = (filters.Rule("motion", ">=", args.min_motion, code="low_motion"),)
  return filters.FilterSpec(
    rules=(*rules, *motion),
    duplicates=args.duplicates,
    near_duplicate_bits=args.near_duplicate_bits,
  )


def encoders_of(args: argparse.Namespace) -> Any:
  """Which encoders, not yet loaded.

  Raises:
    FileNotFoundError: where there is no gin file.
  """
  from beam_jobs import encoders, storage

  batch_sizes = {"batch_size": args.batch_size, "image_batch_size": args.image_batch_size}
  if args.content == "pixels":
    return encoders.PixelConfig(**batch_sizes)
  if not storage.exists(args.vae_gin_file):
    raise FileNotFoundError(f"--vae_gin_file: no file at {args.vae_gin_file}")
  return encoders.EncoderConfig(
    vae_config=json.dumps(vae_fields_of_gin(args.vae_gin_file), sort_keys=True),
    vae_checkpoint=args.vae_checkpoint,
    vae_ema=args.vae_ema,
    text_folder=args.text_encoder,
    max_text_length=args.max_text_length,
    **batch_sizes,
  )


def clip_of(args: argparse.Namespace) -> Any:
  """What to cut out of the media."""
  from beam_jobs.decoding import ClipSpec

  return ClipSpec(
    resolutions=args.resolutions,
    num_frames=args.num_frames,
    fps=args.fps,
    position=args.clip_position,
    seed=args.clip_seed,
    allow_upscale=args.allow_upscale,
    **{name: getattr(args, name) for name in worker_flags.LIMITS},
  )


def check_resolutions(vae: Any, args: argparse.Namespace) -> None:
  """Refuse clips whose shape the VAE does not take."""
  for height, width in args.resolutions:
    vae.latent_shape((args.num_frames, height, width))


def vae_fields_of_gin(path: str) -> dict[str, Any]:
  """CausalVae's fields as a gin file binds them, defaults filled in, as plain JSON values."""
  import gin
  from beam_jobs.encoders import vae_fields

  gin.clear_config()
  gin.parse_config_file(path)
  try:
    bindings = gin.get_bindings("CausalVae")
  except ValueError:  # Gin has not even seen the class.
    bindings = {}
  finally:
    gin.clear_config()
  if not bindings:
    raise ValueError(
      f"--vae_gin_file: {path} binds no CausalVae; expected `from walt_t5x.vae import autoencoder` "
      "and bindings like `autoencoder.CausalVae.base_channels = 16`"
    )
  return vae_fields(bindings)


def reporter(args: argparse.Namespace, options: Any, ledger: Any) -> Any:
  """Progress lines; counted here where the workers are threads of this process, else from the sidecars."""
  from beam_jobs import progress, storage

  total = None
  plain = args.manifest.endswith(".jsonl") and storage.exists(args.manifest)
  if plain and storage.size(args.manifest) <= _MAX_MANIFEST_TO_COUNT:
    with storage.open_raw(args.manifest) as lines:
      total = sum(1 for line in lines if line.strip())
  if worker_flags.in_this_process(options):
    return progress.Reporter(total)
  return progress.Reporter(
    total, poll=lambda: (ledger.rows_on_disk(args.output, args.task), 0), every_seconds=20.0
  )


def report(output: str, summary: Any, *, seconds: float) -> dict[str, Any]:
  """Print the table and the JSON line."""
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
  if totals.dead:
    print(f"  dead letters: {output}/*/*.dead.jsonl (beam_jobs.replay runs them again)")
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


def _resolutions(text: str) -> tuple[tuple[int, int], ...]:
  try:
    pairs = tuple(tuple(int(n) for n in part.split("x")) for part in text.split(","))
    if all(len(pair) == 2 and min(pair) > 0 for pair in pairs) and len(set(pairs)) == len(pairs):
      return pairs
  except ValueError:
    pass
  raise argparse.ArgumentTypeError(f"got {text!r}, expected distinct HxW pairs like 32x32,64x64")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the program; errors that a user can mend come without a traceback."""
  try:
    run(argv)
  except (ValueError, FileNotFoundError) as error:
    print(f"preprocess: {error}", file=sys.stderr)
    return 2
  except LedgerError as error:
    print(f"preprocess: {error}", file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())
