"""Reads a manifest before a long run: its contents, the rows that a job would not write, and the flags to set.

  python -m beam_jobs.preflight --manifest DIR/manifest.jsonl --resolutions 128x128 --num_frames 17 --fps 8

takes the flags of `beam_jobs.preprocess`; those of encoders and output change nothing here. It parses the lines of the
manifest as the job does, and decodes some rows: half of them the first ones, half by chance. It writes no cache. The
last line that it prints is JSON. Faults are findings, not errors: the exit code is 0.
"""

import argparse
import dataclasses
import functools
import json
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from beam_jobs.filters import row_filters
from beam_jobs.runners import job_flags, running
from beam_jobs.sources import spec as source_spec
from walt_t5x.config import programs
from walt_t5x.files import storage

# A command of `preprocess` may be pasted; without one, these flags are not needed.
_UNUSED = ("--output=preflight", "--task=preflight")
# Names that are not rows: reason and message.
_NAMES = {
  "hidden": "its name begins with a dot",
  "other_extension": "its extension is not that of an image or a video",
  "listed_but_missing": "it is in --validation_list, but not in the corpus",
}


def run(argv: Sequence[str] | None = None) -> dict[str, Any]:
  """Prints the report and a line of JSON, whose contents it returns; raises what `look` raises."""
  result = look(argv)
  print(json.dumps(result), flush=True)
  return result


def look(
  argv: Sequence[str] | None = None, *, on_row: Callable[[Any], None] | None = None
) -> dict[str, Any]:
  """Prints the report; returns its contents.

  Args:
    argv: flags.
    on_row: called with each row that a job would load, a `sources.rows.Row`.

  Raises:
    FileNotFoundError: a file that a flag names does not exist.
    ValueError: flags do not fit each other or the source.
  """
  args = _parse(argv)
  from beam_jobs.shards import findings, trial
  from beam_jobs.sources.sampling import Scan

  filtering = job_flags.filtering_of(args)
  source = source_spec.source_of(args, scores=row_filters.score_names(filtering.rules))
  job = job_flags.job_of(args, filtering=filtering, source=source)
  if not args.no_text:
    # Rows are admitted as by a job with text; no encoder is loaded.
    job = dataclasses.replace(job, encoders=dataclasses.replace(job.encoders, text_folder="text"))
  scan = Scan(source, limit=args.scan_rows, seed=args.seed, examples=args.examples)
  faults = trial.Faults(examples=args.examples)
  counts = findings.RowCounts(source.columns.class_names)
  first, chance, everything = _read(scan, job, faults, counts, args, on_row)
  tried = _tried(first + chance, job, faults, args)
  rows, exact = scan.total()
  # The first rows of a manifest are often alike: what a job would do follows from the rows by chance.
  fair = tried if everything else tried[len(first) :]
  captions = {"words": findings.summary_of(counts.words)}
  vocabulary = args.vocabulary or (args.text_encoder and f"{args.text_encoder}/spiece.model")
  if vocabulary:
    captions |= findings.tokens_of(tried, vocabulary, args.max_text_length)
  result = {
    "manifest": args.manifest,
    "source": source.kind,
    "rows": {"count": rows, "exact": exact, "read": counts.rows},
    **counts.to_json(),
    "captions": captions,
    "media": {"first": len(first), "by_chance": len(chance), "all": everything}
    | findings.media_of(tried),
    "faults": faults.listed(),
    "expected": findings.expected_of(rows, counts, fair, _latent_bytes(args)),
  }
  _print(result)
  if args.json:
    storage.write_json(args.json, result)
  return result


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = programs.parser("beam_jobs.preflight", __doc__, allow_abbrev=False)
  add = parser.add_argument
  add("--rows", type=running.positive, default=200, help="rows whose media are decoded (200)")
  add(
    "--scan_rows",
    type=running.positive,
    default=1_000_000,
    help="lines that are read of the manifest, in parts by chance if it is longer (1000000)",
  )
  add("--seed", type=int, default=0, help="seed of the rows by chance (0)")
  add("--examples", type=running.positive, default=2, help="examples of each fault (2)")
  add("--vocabulary", help="spiece.model, to count tokens without --text_encoder")
  add("--json", help="file for the report")
  job_flags.add_arguments(parser)
  given = sys.argv[1:] if argv is None else argv
  threads = f"--decode_threads={os.cpu_count()}"
  args, rest = running.parse(parser, [*_UNUSED, threads, *given])
  job_flags.check_clips(parser, args)
  if rest:
    running.beam_options(rest, args)  # Raises for flags that Beam does not know either.
  args.no_text = args.no_text or args.content == "pixels"
  # So that no encoder is loaded.
  args.content = "pixels"
  return args


def _read(
  scan: Any,
  job: Any,
  faults: Any,
  counts: Any,
  args: argparse.Namespace,
  on_row: Callable[[Any], None] | None,
) -> tuple[list, list, bool]:
  """Parses the lines, and draws rows: (the first ones, others by chance, whether these are all)."""
  from tqdm import tqdm

  from beam_jobs.shards import make_shard, plan
  from beam_jobs.sources.rows import Row, parse_line
  from beam_jobs.sources.sampling import Draw

  draw, seen = Draw(args.rows, seed=args.seed), set()
  for line in tqdm(scan.lines(), "rows", unit="row", file=sys.stderr, disable=None):
    text = plan.manifest_text(line if isinstance(line, bytes) else line.encode())
    if not text:
      continue
    row = parse_line(text, job.manifest_folder)
    admitted = make_shard.admitted(row, seen, job)
    counts.add(row, clips=plan.clips_of(row, job), admitted=isinstance(admitted, Row))
    if isinstance(admitted, Row):
      draw.offer(admitted)
      if on_row:
        on_row(admitted)
    else:
      faults.add(row.uri, admitted, of="rows")
  for reason, names in zip(_NAMES, (scan.hidden, scan.other, scan.unlisted), strict=True):
    faults.add_names(reason, _NAMES[reason], names.examples, names.count)
  return draw.first, draw.chance, draw.everything


def _tried(rows: Sequence[Any], job: Any, faults: Any, args: argparse.Namespace) -> list[Any]:
  """Loads rows, each as one of its clips, and counts the failures."""
  from tqdm import tqdm

  from beam_jobs.shards import trial

  found = trial.outcomes(rows, job, seed=args.seed)
  tried = list(tqdm(found, "media", len(rows), unit="row", file=sys.stderr, disable=None))
  for one in tried:
    if one.failure:
      faults.add(one.row.uri, one.failure, of="sampled rows")
  return tried


def _latent_bytes(args: argparse.Namespace) -> Mapping[str, int]:
  """Bytes of the bfloat16 latents of a clip by its modality; empty without a VAE."""
  if not (args.vae_gin_file or args.vae_checkpoint):
    return {}
  from beam_jobs.shards import encoders

  vae = encoders.build_vae(job_flags.vae_of(args)[0])
  return {
    modality: sum(2 * math.prod(vae.latent_shape((frames, h, w))) for h, w in args.resolutions)
    for modality, frames in (("image", 1), ("video", args.num_frames))
  }


def _print(result: Mapping[str, Any]) -> None:
  rows, media, expected = result["rows"], result["media"], result["expected"]
  tried = media["first"] + media["by_chance"]

  def line(name: str, text: str) -> None:
    if text:
      print(f"{name:<15} {text}")

  exact = "exact" if rows["exact"] else "estimated"
  line("rows", f"{rows['count']:,} ({exact}), {rows['read']:,} read, source {result['source']}")
  line("splits", _counts(result["splits"]))
  line("modalities", _counts(result["modalities"]))
  classes = result["classes"]
  if classes["with_rows"]:
    of = f"{classes['with_rows']:,}" + (f" of {classes['named']:,}" if classes["named"] else "")
    line("classes", f"{of}, rows per class: {_range(classes['rows_per_class'])}")
  if result["repeated_uris"]:
    line("repeated uris", f"{result['repeated_uris']:,} rows name a file of an earlier row")
  captions = result["captions"]
  line("caption words", _range(captions["words"]))
  if "tokens" in captions:
    cut, count = captions["cut"], captions["captions"]
    share = f" ({cut / count:.1%}, the longest has {captions['tokens']['max']})" if cut else ""
    text = f"{cut:,} of {count:,}{share} are cut (--max_text_length)"
    line("caption tokens", f"{_range(captions['tokens'])}; {text}")
  which = f"the first {media['first']:,} and {media['by_chance']:,} by chance"
  line("media", f"{tried:,} rows, {'all' if media['all'] else which}")
  for name in ("containers", "codecs", "pixel_formats", "sizes", "rates"):
    line(f"  {name}", _counts(media[name]))
  for name in ("short_side", "seconds", "file_bytes"):
    line(f"  {name}", _range(media[name]))
  print("faults" if result["faults"] else "no faults found")
  for fault in result["faults"]:
    looked_at = {"rows": rows["read"], "sampled rows": tried}.get(fault["of"])
    of = f" of {looked_at:,} {fault['of']}" if looked_at else ""
    print(f"  {fault['reason']}: {fault['count']:,}{of}; {fault['remedy']}")
    for example in fault["examples"]:
      print(f"    {_shortened(example['where'])}: {_shortened(example['message'])}")
  share = f"{expected['written_percent']}% of {expected['clips']:,} clips"
  line("a job writes", f"about {expected['written']:,}, {share}")
  latents = expected.get("latent_bytes_per_clip")
  line("bytes per clip", f"{expected['pixel_bytes_per_clip']:,} as pixels")
  line("", f"{latents:,} as latents" if latents else "")


def _counts(counts: Mapping[str, int], most: int = 6) -> str:
  shown = [f"{name} {count:,}" for name, count in list(counts.items())[:most]]
  return ", ".join(shown) + (f", {len(counts) - most} others" if len(counts) > most else "")


def _range(summary: Mapping[str, float] | None) -> str:
  if summary is None:
    return ""
  low, median, high = (f"{round(summary[name], 2):,}" for name in ("min", "median", "max"))
  return low if low == high else f"{low} to {high}, median {median}"


def _shortened(text: str, most: int = 150) -> str:
  text = " ".join(text.split())
  return text if len(text) <= most else f"{text[: most - 3]}..."


main = functools.partial(running.exit_code, "preflight", run)


if __name__ == "__main__":
  sys.exit(main())
