"""Captions clips with a model behind a server that speaks OpenAI's chat completions API, such as vLLM's.

  python -m beam_jobs.caption --clips=curated/clips.jsonl --output=captioned --captioner=URL --model=NAME
  python -m beam_jobs.preprocess --config=captioned/preprocess.toml --output=cache --task=corpus ...

--clips takes any manifest. --output gets clips.jsonl, the rows with captions and caption_weights, dead.jsonl, the other
rows with reasons, preprocess.toml and summary.json. Answers are kept: the same command resumes after an interruption,
with other checks or further prompts it asks only for what is missing. The key of the server is read from the
environment: WALT_CAPTIONER_KEY, else OPENAI_API_KEY. More: docs/curation.md.
"""

import argparse
import contextlib
import json
import os
import sys
import time
import tomllib
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from beam_jobs.runners import running
from beam_jobs.sources import spec as source_spec
from walt_t5x.config import programs, waiting
from walt_t5x.files import damage, storage

PROMPT = "Describe the video in one sentence."
KEYS = ("WALT_CAPTIONER_KEY", "OPENAI_API_KEY")
CLIPS, DEAD, SUMMARY, PREPROCESS = "clips.jsonl", "dead.jsonl", "summary.json", "preprocess.toml"
# Rows that are captioned ahead of the one that is written next.
_AHEAD = 1000
# Fields of a request that are set here.
_RESERVED = {"messages", "model", "n", "stream"}


def run(argv: Sequence[str] | None = None) -> dict[str, Any]:
  """Runs the job; returns the contents of the JSON line that it prints last.

  Raises:
    ValueError: if flags do not match, before any request, or the server does not accept the key.
    ServerOutage: if the server has stopped answering.
    LedgerError: if rows are unaccounted for at the end.
  """
  args, prompts, parameters = _parse(argv)
  from beam_jobs.curation import captions, chat

  started = time.monotonic()
  key = next(filter(None, (os.environ.get(name, "").strip() for name in KEYS)), "")
  try:
    client = chat.ChatClient(args.captioner, key=key, timeout=args.request_timeout)
  except ValueError as error:
    raise ValueError(f"--captioner: {error}") from None
  args.media_root = args.media_root or _media_root(args.manifest)
  source = source_spec.source_of(args, scores=())
  job = captions.CaptionJob(
    output=args.output,
    media_root=source.media_root,
    allowed=(source.folder, *args.allow_uri),
    model=args.model,
    prompts=prompts,
    frames=args.frames,
    side=args.side,
    parameters=parameters,
    checks=captions.Checks(
      min_words=args.min_words, max_words=args.max_words, script=args.language
    ),
    attempts=args.attempts,
    decoding=running.decoding_of(args),
  )
  captioner = captions.Captioner(job, client, max_requests=args.max_requests)
  with running.alone("caption", args.output, "caption"):
    for name in storage.names(args.output):
      if name.startswith(storage.TEMPORARY):  # Of a killed run.
        storage.delete(storage.join(args.output, name))
    result = _write(source, job, captioner, args)
  return _report(result, args.output, captioner.requests, time.monotonic() - started)


def _parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, tuple[Any, ...], dict]:
  """Flags, prompts and further fields of requests."""
  parser = programs.parser("beam_jobs.caption", __doc__, allow_abbrev=False)
  source_spec.add_arguments(parser.add_argument_group("source"), manifest=("--clips", "--manifest"))
  add = parser.add_argument_group("output").add_argument
  add("--output", required=True, help="folder of the results")
  add(
    "--replace_captions",
    action="store_true",
    help="drop the captions that rows have, instead of adding to them",
  )
  add = parser.add_argument_group("model").add_argument
  add("--captioner", required=True, metavar="URL", help="base of the API: http://HOST:PORT/v1")
  add("--model", required=True, help="name of the model on the server")
  add(
    "--prompt",
    action="append",
    default=[],
    metavar="TEXT[=WEIGHT]",
    help=f"question that gives one caption, with its weight (1); may be repeated ('{PROMPT}')",
  )
  add("--frames", type=running.positive, default=4, help="frames per clip, evenly spaced (4)")
  add("--side", type=running.positive, default=448, help="their longer side in pixels (448)")
  add(
    "--parameters",
    default="{}",
    metavar="JSON",
    help='further fields of a request, such as \'{"temperature": 0, "max_tokens": 200}\'',
  )
  add = parser.add_argument_group("requests").add_argument
  add("--concurrency", type=running.positive, default=8, help="clips asked about at once (8)")
  add("--request_timeout", type=float, default=60.0, help="seconds for one request (60)")
  add("--attempts", type=running.positive, default=6, help="requests for one caption (6)")
  add("--max_requests", type=int, help="requests of this run, after which it ends (no limit)")
  add = parser.add_argument_group("checks").add_argument
  add("--min_words", type=int, default=3, help="words between spaces (3)")
  add("--max_words", type=int, default=120, help="words between spaces (120)")
  add("--language", default="any", metavar="SCRIPT", help="script of the letters (any)")
  running.add_reading(parser)
  args, rest = running.parse_known(parser, argv)
  if rest:
    parser.error(f"unknown flags {' '.join(rest)}")
  from beam_jobs.curation import captions

  if args.language not in ("any", *captions.SCRIPTS):
    parser.error(f"--language: got {args.language}, expected any, {', '.join(captions.SCRIPTS)}")
  if args.request_timeout <= 0 or (args.max_requests or 0) < 0:
    parser.error("--request_timeout must be above 0, --max_requests at least 0")
  prompts = tuple(map(captions.Prompt.parse, args.prompt or [PROMPT]))
  if len({prompt.text for prompt in prompts}) < len(prompts):
    parser.error("--prompt: the same text is given twice")
  return args, prompts, _parameters(args.parameters)


def _parameters(text: str) -> dict[str, Any]:
  found = None
  with contextlib.suppress(ValueError):
    found = json.loads(text)
  if not isinstance(found, dict) or _RESERVED & set(found):
    reserved = ", ".join(sorted(_RESERVED))
    raise ValueError(f"--parameters: got {text}, expected a JSON object without {reserved}")
  return found


def _media_root(manifest: str) -> str | None:
  """The base of relative uris that `curate` wrote next to its clips, if there is one."""
  path = storage.join(storage.parent(manifest), PREPROCESS)
  if os.path.basename(manifest) != CLIPS or not storage.exists(path):
    return None
  return tomllib.loads(storage.read(path).decode()).get("media_root")


def _rows(source: source_spec.SourceSpec) -> Iterator[Any]:
  """The rows of a source in order."""
  from beam_jobs.shards.plan import manifest_text
  from beam_jobs.sources.parts import lines_of, parts_of
  from beam_jobs.sources.rows import parse_line

  for part in parts_of(source):
    for line in lines_of(part.key, source):
      if text := manifest_text(line if isinstance(line, bytes) else line.encode()):
        yield parse_line(text, source.media_root)


def _in_order(
  rows: Iterator[Any], captioner: Any, key_of: Any, threads: int
) -> Iterator[tuple[Any, Any]]:
  """Rows with their captions or failures; rows of the same clip that are near each other share a call."""
  ahead: deque[tuple[Any, Any, str]] = deque()
  shared: dict[str, Any] = {}
  with ThreadPoolExecutor(threads) as pool:
    try:
      for row in rows:
        key = "" if row.problem else key_of(row)
        call = shared.get(key) if key else None
        call = call or pool.submit(captioner, row)
        shared[key] = call
        ahead.append((row, call, key))
        if len(ahead) > max(_AHEAD, 4 * threads):
          first, call, key = ahead.popleft()
          yield first, call.result()
          shared.pop(key, None)
      while ahead:
        first, call, _ = ahead.popleft()
        yield first, call.result()
    except BaseException as error:
      captioner.stop(error)
      pool.shutdown(wait=False, cancel_futures=True)
      raise


def _write(
  source: source_spec.SourceSpec, job: Any, captioner: Any, args: argparse.Namespace
) -> dict[str, Any]:
  """Captions all rows and writes the results; returns the summary."""
  from beam_jobs.curation import captions
  from beam_jobs.shards import progress
  from beam_jobs.shards.shard_files import LedgerError

  with waiting.waiting("caption", "reading the manifest"):
    count = sum(1 for _ in _rows(source))
  written, dead = 0, Counter[str]()
  line = progress.line_of((count, True), progress.ROWS, program="caption")
  with (
    waiting.reporting(line),
    contextlib.closing(captioner),
    storage.writer(storage.join(args.output, CLIPS)) as clips,
    storage.writer(storage.join(args.output, DEAD)) as others,
  ):
    try:
      for row, found in _in_order(_rows(source), captioner, job.key_of, args.concurrency):
        if isinstance(found, list):
          new = captions.captioned(row, found, job.prompts, replace=args.replace_captions)
          clips.write((json.dumps(new) + "\n").encode())
          written += 1
        else:
          why = {"stage": found.stage, "reason": found.reason, "message": found.message}
          others.write((json.dumps({**row.raw, **why}) + "\n").encode())
          dead[found.reason] += 1
    except captions.Stopped:
      raise captioner.error from None
    if written + dead.total() != count:
      raise LedgerError(
        f"{args.manifest} had {count} rows, of which {written} have captions and {dead.total()} are dead: it has "
        "changed meanwhile; run the same command again"
      )
  toml = {"manifest": storage.join(args.output, CLIPS), "media_root": job.media_root}
  toml["allow_uri"] = [one for one in job.allowed if one and one != job.media_root]
  storage.write(
    storage.join(args.output, PREPROCESS),
    "".join(f"{name} = {json.dumps(value)}\n" for name, value in toml.items() if value),
  )
  summary = {
    "rows": count,
    "captioned": written,
    "dead": dict(sorted(dead.items())),
    "model": job.model,
    "prompts": [[prompt.text, prompt.weight] for prompt in job.prompts],
    "frames": job.frames,
    "side": job.side,
    "parameters": job.parameters,
  }
  storage.write(storage.join(args.output, SUMMARY), damage.sealed_json(summary))
  return summary


def _report(summary: dict[str, Any], output: str, requests: int, seconds: float) -> dict[str, Any]:
  """Prints the counts and the JSON line."""
  print(
    f"{summary['captioned']:,} of {summary['rows']:,} clips have captions, {requests:,} requests"
  )
  for reason, count in summary["dead"].items():
    print(f"  dead: {reason} {count}; see {storage.join(output, DEAD)}")
  counts = {name: summary[name] for name in ("rows", "captioned", "dead")}
  result = counts | {"requests": requests, "clips_file": storage.join(output, CLIPS)}
  result["took"] = round(seconds, 2)
  print(json.dumps(result), flush=True)
  return result


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the job; returns the exit code, 1 after an outage of the server."""
  from beam_jobs.curation.captions import ServerOutage

  try:
    return running.exit_code("caption", run, argv)
  except ServerOutage as error:
    print(
      f"caption: {error}\nAnswers so far are kept: run the same command again.", file=sys.stderr
    )
    return 1


if __name__ == "__main__":
  sys.exit(main())
