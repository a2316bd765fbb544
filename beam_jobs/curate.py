"""Cuts long videos into clips: shots, scores, and a manifest that preprocessing reads.

  python -m beam_jobs.curate --manifest=videos.csv --output=curated --filter='seconds>=2' --filter='motion>=0.005'
  python -m beam_jobs.preprocess --config=curated/preprocess.toml --output=cache --task=corpus ...

Each video is read once, in the memory of its longest clip. --output gets clips.jsonl and clips.parquet (uri, start,
end, crop without black bars, scores), rejected.jsonl and dead.jsonl with reasons, preprocess.toml, summary.json, in
which the seconds of all videos are those of clips, rejected segments and dead videos, and page.html, on which
thresholds can be tried. The same command resumes after an interruption. Filters apply to scores that parts/ keeps: the
same command with other filters decodes only pictures for the page, and --refilter does not even read the manifest.
Other flags go to Beam (--runner, --direct_num_workers, ...). Scores: docs/curation.md.
"""

import argparse
import dataclasses
import functools
import importlib.util
import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from beam_jobs.curation.aspects import parse_groups
from beam_jobs.runners import running
from beam_jobs.sources import spec as source_spec
from walt_t5x.config import programs
from walt_t5x.config.waiting import waiting
from walt_t5x.files import storage
from walt_t5x.media.rules import Rule


def run(argv: Sequence[str] | None = None) -> dict[str, Any]:
  """Runs the job; returns the contents of the JSON line that it prints last.

  Raises:
    ValueError: if flags do not match, before any row is read.
    LedgerError: if seconds are unaccounted for at the end.
  """
  args, rest = _parse(argv)
  started = time.monotonic()
  rules = [Rule.parse(text) for text in args.filter]
  groups = parse_groups(args.groups)
  with waiting("curate", "importing Beam"):
    from beam_jobs.curation import page, parts

  options = running.beam_options(rest, args)
  source = None if args.refilter else source_spec.source_of(args, scores=())
  job = parts.job_there(args.output) if source is None else _job(args, source)
  with running.alone("curate", args.output, "curate"):
    if source:
      parts.reject_other_parts(job)
      if other := parts.other_settings(job):
        print(f"curate: {other}", file=sys.stderr)
      _make_parts(source, job, options)
    if args.duplicates != "none":
      _find_duplicates(args, job, rules, options)
    totals = page.finalize(
      job,
      rules,
      keep_bars=args.keep_bars,
      groups=groups,
      clips=args.page_clips,
      decoding=running.decoding_of(args),
      flags=_flags_again(args),
      keep=None if args.duplicates == "none" else args.keep,
    )
  return _report(args, totals, seconds=time.monotonic() - started)


def _flags_again(args: argparse.Namespace) -> list[str]:
  """The flags of the same command with other filters, next to --output and the filters."""
  flags = ["--refilter", *(["--keep_bars"] if args.keep_bars else [])]
  flags += [f"--groups={args.groups}"] if args.groups else []
  if args.duplicates == "none":
    return flags
  names = ("duplicates", "near_duplicate_bits", "semantic_similarity", "keep")
  return [*flags, *(f"--{name}={getattr(args, name)}" for name in names)]


def _parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
  parser = programs.parser("beam_jobs.curate", __doc__, allow_abbrev=False)
  given = sys.argv[1:] if argv is None else argv
  source_spec.add_arguments(parser.add_argument_group("source"), required="--refilter" not in given)
  add = parser.add_argument_group("output").add_argument
  add("--output", required=True, help="folder of the results")
  add(
    "--num_parts", type=running.positive, default=16, help="files that videos are divided into (16)"
  )
  add("--retry_dead", action="store_true", help="make parts with dead videos again")
  add("--refilter", action="store_true", help="apply other filters to the parts that are there")
  add = parser.add_argument_group("shots").add_argument
  add(
    "--shot_weights", help="TransNet V2, from walt_t5x.metrics.import_weights; else PySceneDetect"
  )
  add(
    "--cut_threshold",
    type=float,
    help="change of a frame that is a cut, 0 to 255 (27), or TransNet V2's probability (0.5)",
  )
  add(
    "--max_clip_seconds",
    type=float,
    default=20.0,
    help="longer shots are cut where least moves (20)",
  )
  add = parser.add_argument_group("scores").add_argument
  add("--score_fps", type=float, default=4.0, help="frames per second that scores see (4)")
  add("--score_side", type=int, default=128, help="shorter side of those frames (128)")
  add(
    "--duplicates",
    default="none",
    choices=("none", "exact", "near", "semantic"),
    help="what to reject in the corpus: clips with the same pixels, also those that look the same, or also those "
    "whose embeddings are similar (none)",
  )
  add(
    "--near_duplicate_bits", type=float, default=18.0, help="out of 128 per frame, on average (18)"
  )
  add(
    "--semantic_similarity",
    type=float,
    default=0.95,
    help="least cosine between the embeddings of semantic duplicates (0.95)",
  )
  add("--embedding", default="", metavar="MODULE:CLASS", help="what gives a vector to a clip")
  add(
    "--keep",
    default="sharpness",
    metavar="SCORE",
    help="of duplicates, the largest is kept (sharpness)",
  )
  add("--score", action="append", default=[], metavar="MODULE:CLASS", help="a score of yours")
  add(
    "--filter",
    action="append",
    default=[],
    metavar="RULE",
    help="'NAME OP NUMBER' that clips must satisfy, e.g. 'seconds>=2', 'motion>=0.005', 'bars<=0.1'",
  )
  add(
    "--groups",
    default="",
    metavar="W:H,...",
    help="aspects, e.g. 16:9,1:1,9:16: a manifest for each, with the clips that are closest to it",
  )
  add("--keep_bars", action="store_true", help="do not crop clips with black bars at their edges")
  add(
    "--page_clips",
    type=int,
    default=24,
    help="clips on page.html next to thresholds, and of each of six videos; 0 for no page (24)",
  )
  running.add_reading(parser)
  args, rest = running.parse_known(parser, argv)
  if args.score_fps <= 0 or args.score_side < 8 or args.max_clip_seconds <= 0:
    parser.error("--score_fps and --max_clip_seconds must be above 0, --score_side at least 8")
  if args.duplicates == "semantic" and not (args.embedding or args.refilter):
    parser.error("--duplicates=semantic needs --embedding=MODULE:CLASS (docs/curation.md)")
  if not -1 < args.semantic_similarity <= 1:
    parser.error(
      f"--semantic_similarity: got {args.semantic_similarity}, expected a cosine up to 1"
    )
  if args.page_clips < 0:
    parser.error(f"--page_clips: got {args.page_clips}, expected 0 or more")
  return args, rest


def _job(args: argparse.Namespace, source: source_spec.SourceSpec) -> Any:
  """The worker's configuration."""
  from beam_jobs.curation import embeddings, scores
  from beam_jobs.curation.scanning import ScanSpec
  from beam_jobs.curation.videos import CurationJob, Scored

  for name in args.score:
    scores.load(name)
  embeddings.check(args.embedding)
  job = CurationJob(
    output=args.output,
    media_root=source.media_root,
    allowed=(source.folder, *args.allow_uri),
    parts=args.num_parts,
    scan=ScanSpec(fps=args.score_fps, side=args.score_side),
    detector=_detector(args),
    max_seconds=args.max_clip_seconds,
    score_names=tuple(args.score),
    embedding=args.embedding,
    decoding=running.decoding_of(args),
    retry_dead=args.retry_dead,
  )
  settings = {
    "--score_fps": job.scan.fps,
    "--score_side": job.scan.side,
    "--max_clip_seconds": job.max_seconds,
    "--shot_weights": getattr(job.detector, "fingerprint", ""),
    "--cut_threshold": job.detector.threshold,
    "--score": args.score,
    "scores": scores.names(),
    "max_pixels": job.scan.max_pixels,
    "recorded": list(Scored._fields),
  }
  if job.embedding:
    settings["--embedding"] = job.embedding
  return dataclasses.replace(job, settings=settings)


def _detector(args: argparse.Namespace) -> Any:
  """What finds cuts; raises ValueError if it is not installed, or the weights are not TransNet V2's."""
  from beam_jobs.curation import shots

  if args.shot_weights:
    threshold = 0.5 if args.cut_threshold is None else args.cut_threshold
    return shots.NetworkDetector.load(args.shot_weights, threshold)
  if importlib.util.find_spec("scenedetect") is None:
    raise ValueError(
      "cuts need --shot_weights (docs/curation.md) or PySceneDetect: pip install -r requirements-curate.lock"
    )
  return shots.ContentDetector(27.0 if args.cut_threshold is None else args.cut_threshold)


def _make_parts(source: source_spec.SourceSpec, job: Any, options: Any) -> None:
  """Groups the rows by part and makes each part."""
  import apache_beam as beam

  from beam_jobs import preprocess
  from beam_jobs.curation import parts
  from beam_jobs.runners import pipeline
  from beam_jobs.shards import progress
  from beam_jobs.sources.read import ReadRows

  def add(root: beam.Pipeline) -> None:
    rows = (
      root
      | "Rows" >> ReadRows(source)
      | "Assign" >> beam.FlatMap(_assigned, job).with_output_types(tuple[int, str])
    )
    # A part without videos is written too, so that a missing file is not mistaken for an empty one.
    empty = root | "EveryPart" >> beam.Create([(index, "") for index in range(job.parts)])
    _ = (
      (rows, empty)
      | beam.Flatten()
      | "ByPart" >> beam.GroupByKey()
      | "MakePart" >> beam.MapTuple(functools.partial(_make, job=job))
    )

  def on_disk() -> int:
    return sum(len(part["videos"]) for part in parts.finished(job.output))

  poll = pipeline.rows_done(options, on_disk=on_disk)
  line = progress.line_of(preprocess.expected_rows(source), poll, program="curate")
  pipeline.run_to_end(add, options, line=line, program="curate")


def _find_duplicates(
  args: argparse.Namespace, job: Any, rules: Sequence[Rule], options: Any
) -> None:
  """Writes the duplicates among the clips of all parts, by part."""
  from beam_jobs.curation import duplicate_files
  from beam_jobs.runners import pipeline

  similarity = args.semantic_similarity if args.duplicates == "semantic" else None
  if similarity is not None:
    duplicate_files.require_embeddings(job)
  write = duplicate_files.WriteDuplicates(
    job,
    rules,
    quality=args.keep,
    near_bits=None if args.duplicates == "exact" else args.near_duplicate_bits,
    similarity=similarity,
  )

  def add(root: Any) -> None:
    _ = root | write

  pipeline.run_to_end(add, options, line=lambda: "curate: comparing clips", program="curate")
  duplicate_files.name_kept_clips(job)


def _assigned(row: tuple[None, bytes], job: Any) -> Iterator[tuple[int, str]]:
  """(part, line) of a manifest line; none of a blank one."""
  from beam_jobs.shards.plan import manifest_text
  from beam_jobs.sources.rows import parse_line

  if text := manifest_text(row[1]):
    yield int(parse_line(text, job.media_root).shard_key[:16], 16) % job.parts, text


def _make(index: int, lines: Any, job: Any) -> Any:
  from apache_beam.metrics.metric import Metrics

  from beam_jobs.curation import parts

  counts = parts.make_part(index, list(filter(None, lines)), job)
  for name, count in counts.items():
    Metrics.counter("curate", name).inc(count)
  return index


def _report(args: argparse.Namespace, totals: Any, *, seconds: float) -> dict[str, Any]:
  """Prints the table and the JSON line."""
  output = args.output
  printed = totals.to_json()
  rows = [("clips", f"{totals.clips:,}", printed["seconds_in_clips"])]
  rows += [(f"rejected: {name}", "", value) for name, value in printed["seconds_rejected"].items()]
  rows += [("dead", str(sum(totals.dead_videos.values())), printed["seconds_dead"])]
  rows += [("all videos", f"{totals.videos:,}", printed["seconds"])]
  print(f"{'':<28} {'number':>9} {'seconds':>12}")
  for name, count, value in rows:
    print(f"{name:<28} {count:>9} {value:>12,.1f}")
  for reason, count in printed["dead_videos"].items():
    print(f"  dead: {reason} {count}; see {storage.join(output, 'dead.jsonl')}")
  cropped = f", {totals.cropped:,} of them cropped (--keep_bars keeps black bars)"
  print(f"clips: {storage.join(output, 'clips.jsonl')}{cropped if totals.cropped else ''}")
  for name, found in printed["groups"].items():
    path = storage.join(output, f"clips-{name}.jsonl")
    print(f"  {name}: {found['clips']:,} clips, {found['seconds']:,.1f} s: {path}")
  if args.page_clips:
    print(f"page: {storage.join(output, 'page.html')}")
  result = printed | {"clips_file": storage.join(output, "clips.jsonl"), "took": round(seconds, 2)}
  print(json.dumps(result), flush=True)
  return result


main = functools.partial(running.exit_code, "curate", run)


if __name__ == "__main__":
  sys.exit(main())
