"""What the programs share: flags of limits, batches, decoding and quality, Beam's options, exit codes."""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from beam_jobs.runners import config_file, local_worker, worker_deaths
from beam_jobs.shards.loading import ISOLATIONS, DecodeSettings
from beam_jobs.shards.quality import Band
from beam_jobs.shards.shard_files import LedgerError
from walt_t5x.config import programs, usage
from walt_t5x.files import locks, storage
from walt_t5x.files.mismatch import Mismatch
from walt_t5x.files.store_errors import CannotWrite, StoreError

# Flags that are fields of `ClipSpec`: they decide which media become dead letters, never the contents of a record.
LIMITS = ("max_bytes", "max_pixels", "max_seconds", "max_decoded_frames")
BATCH_SIZES = ("batch_size", "image_batch_size")


def positive(text: str) -> int:
  """Type of flags whose values are 1 or more."""
  if int(text) < 1:
    raise argparse.ArgumentTypeError(f"got {text}, expected 1 or more")
  return int(text)


def parse(
  parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> tuple[argparse.Namespace, list[str]]:
  """Adds the flags of programs that make shards: (our flags, the remaining arguments for Beam).

  Limits and batch sizes are None if a flag does not set them: a job takes the defaults of `ClipSpec` and
  `EncoderConfig`, a replay the values of the job.
  """
  add = parser.add_argument_group("limits of media and batches").add_argument
  add("--max_bytes", type=int, help="largest media file")
  add("--max_pixels", type=int, help="largest frame")
  add("--max_seconds", type=float, help="longest video")
  add("--max_decoded_frames", type=int, help="frames decoded for one clip")
  add("--batch_size", type=positive, help="clips per VAE call (8; a replay: as before)")
  add("--image_batch_size", type=positive, help="images per VAE call (32; a replay: as before)")
  add_reading(parser)
  add = parser.add_argument_group("quality").add_argument
  add(
    "--qa_samples", type=int, default=0, help="rows per shard that are decoded to measure PSNR (0)"
  )
  add("--qa_min_psnr", type=float, help="quarantine shards whose mean PSNR in dB is lower")
  band = {"type": float, "nargs": 2, "metavar": ("LOW", "HIGH")}
  add("--qa_mean", **band, help="quarantine shards with a channel whose mean is outside")
  add("--qa_std", **band, help="quarantine shards with a channel whose deviation is outside")
  args, rest = parse_known(parser, argv)
  if args.qa_samples < 0 or (args.qa_min_psnr is not None and not args.qa_samples):
    parser.error("--qa_min_psnr needs --qa_samples of 1 or more")
  return args, rest


def add_reading(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of what rows may name and how their media are decoded."""
  add = parser.add_argument_group("media").add_argument
  add(
    "--allow_uri",
    action="append",
    default=[],
    metavar="PREFIX",
    help="folder or address outside of --media_root and the manifest's folder in which rows may name files; may be "
    "repeated",
  )
  add = parser.add_argument_group("decoding").add_argument
  add("--decode_threads", type=positive, default=2, help="rows decoded concurrently (2)")
  add(
    "--decode_isolation",
    default="process",
    choices=ISOLATIONS,
    help="'process' survives decoders that hang or crash (process)",
  )
  add("--decode_timeout", type=float, default=120.0, help="seconds for one row (120)")
  add(
    "--decode_memory_mib", type=int, default=8192, help="limit per decoding process; 0 is unlimited"
  )


def parse_known(
  parser: argparse.ArgumentParser, argv: Sequence[str] | None
) -> tuple[argparse.Namespace, list[str]]:
  """Adds --config: (our flags, those of its file included, and the remaining arguments for Beam)."""
  parser.add_argument("--config", help="TOML file of flags; those of the command line override it")
  given = sys.argv[1:] if argv is None else argv
  args, rest = parser.parse_known_args(config_file.expanded(given, parser))
  if set(args.output) & set("*?["):
    parser.error(
      f"--output: got {args.output}, expected a path without * ? [, which are patterns to readers"
    )
  return args, rest


def given(args: argparse.Namespace, names: Iterable[str]) -> dict[str, Any]:
  """The flags of these names that are set."""
  return {name: value for name in names if (value := getattr(args, name)) is not None}


def job_fields(args: argparse.Namespace) -> dict[str, Any]:
  """Fields of `plan.Job` that the flags of `parse` set."""
  named = {"mean": args.qa_mean, "std": args.qa_std}
  bounds = {name: tuple(values) for name, values in named.items() if values}
  return {
    "decoding": decoding_of(args),
    "qa_samples": args.qa_samples,
    "band": Band(min_psnr=args.qa_min_psnr, **bounds),
  }


def decoding_of(args: argparse.Namespace) -> DecodeSettings:
  """How workers decode, by the flags of `add_reading`."""
  return DecodeSettings(
    isolation=args.decode_isolation,
    timeout_seconds=args.decode_timeout,
    threads=args.decode_threads,
    memory_mib=args.decode_memory_mib,
  )


def beam_options(flags: Sequence[str], args: argparse.Namespace | None = None) -> Any:
  """Options for Beam; the default runner is FnApiRunner.

  Args:
    flags: Beam's.
    args: the program's own flags, which an unknown flag may be meant to be.

  Raises:
    ValueError: if Beam does not know a flag, which Beam itself would only log, or a value is wrong.
  """
  from apache_beam.options.pipeline_options import (
    PipelineOptions,
    StandardOptions,
    _BeamArgumentParser,
  )

  parser = _BeamArgumentParser(add_help=False, allow_abbrev=False, conflict_handler="resolve")
  for kind in PipelineOptions.__subclasses__():
    kind._add_argparse_args(parser)
  parser.error = _reject
  _, unknown = parser.parse_known_args(list(flags))
  if unknown:
    known = [f"--{name}" for name in vars(args or argparse.Namespace())]
    known += [name for action in parser._actions for name in action.option_strings]
    raise ValueError(
      f"unknown flags {unknown}: they are flags neither of this program (--help) nor of Beam."
      + usage.unknown_flags(unknown, known)
    )
  # The last one counts.
  options = PipelineOptions(["--runner=FnApiRunner", *flags])
  runner, known = options.view_as(StandardOptions).runner, StandardOptions.KNOWN_RUNNER_NAMES
  names = {name.lower() for name in known}
  if "." not in runner and not {runner.lower(), f"{runner.lower()}runner"} & names:
    close = usage.closest(runner, known)
    hint = f"did you mean --runner={close}?" if close else f"expected one of {', '.join(known)}"
    raise ValueError(f"--runner={runner}: {hint}")
  return options


def alone(program: str, output: str, task: str) -> contextlib.AbstractContextManager[None]:
  """Inside the block, no other launcher starts a job or a replay of the task."""
  path = storage.join(output, f"{task}.lock")
  return locks.held(path, program=program, instead="set another --output or --task")


def _reject(message: str) -> NoReturn:
  raise ValueError(message)


def exit_code(
  program: str, run: Callable[[Sequence[str] | None], Any], argv: Sequence[str] | None = None
) -> int:
  """Calls `run` and returns the exit code; errors that a user can fix are printed without a traceback."""
  local_worker.log_warnings()
  try:
    run(argv)
    return 0
  except (ValueError, FileNotFoundError, StoreError) as error:
    if programs.debug():
      raise
    code, told = 2, str(error).partition(" [while running ")[0]
  except LedgerError as error:
    code, told = 1, str(error)
  except KeyboardInterrupt:
    code, told = 130, worker_deaths.INTERRUPTED
  except (CannotWrite, RuntimeError) as error:
    # Beam passes on exceptions of workers as text.
    found = [*local_worker.FIXABLE.finditer(f"{type(error).__name__}: {error}")]
    if not found or programs.debug():
      raise
    code, told = 2 if found[-1][1] == Mismatch.__name__ else 1, found[-1][2].strip()
  print(f"{program}: {told}", file=sys.stderr)
  return code
