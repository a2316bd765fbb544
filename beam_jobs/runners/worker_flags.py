"""Flags of programs that make shards: limits on media, batches, decoding and quality; other flags go to Beam."""

import argparse
from collections.abc import Sequence
from typing import Any

# Flags that are fields of `ClipSpec`: they decide which media become dead letters, never the contents of a record.
LIMITS = ("max_bytes", "max_pixels", "max_seconds", "max_decoded_frames")


def add_limits(parser: argparse.ArgumentParser, *, inherit: bool = False) -> None:
  """Adds limits on media.

  Args:
    parser: parser to which flags are added.
    inherit: whether the defaults are None, which means the limits of an earlier run.
  """

  def add(name: str, kind: type, default: Any, text: str) -> None:
    note = " (as before)" if inherit else ""
    parser.add_argument(
      f"--{name}", type=kind, default=None if inherit else default, help=text + note
    )

  add("max_bytes", int, 1 << 30, "largest media file")
  add("max_pixels", int, 8192 * 8192, "largest frame")
  add("max_seconds", float, 6 * 3600.0, "longest video")
  add("max_decoded_frames", int, 20_000, "frames decoded for one clip")


def add_work(parser: argparse.ArgumentParser, *, inherit: bool = False) -> None:
  """Adds flags of batches, decoding and quality.

  Args:
    parser: parser to which flags are added.
    inherit: whether batch sizes default to None, which means those of an earlier run.
  """
  add = parser.add_argument
  for name, of, default in (("batch_size", "clips", 8), ("image_batch_size", "images", 32)):
    note = "as before" if inherit else str(default)
    default = None if inherit else default
    add(f"--{name}", type=int, default=default, help=f"{of} per VAE call ({note})")
  add("--decode_threads", type=int, default=2, help="rows decoded concurrently (2)")
  add(
    "--decode_isolation",
    default="process",
    choices=("process", "thread"),
    help="'process' survives decoders that hang or crash (process)",
  )
  add("--decode_timeout", type=float, default=120.0, help="seconds for one row (120)")
  add(
    "--decode_memory_mib", type=int, default=8192, help="limit per decoding process; 0 is unlimited"
  )
  add(
    "--qa_samples", type=int, default=0, help="rows per shard that are decoded to measure PSNR (0)"
  )
  add("--qa_min_psnr", type=float, help="quarantine shards whose mean PSNR in dB is lower")
  band = {"type": float, "nargs": 2, "metavar": ("LOW", "HIGH")}
  add("--qa_mean", **band, help="quarantine shards with a channel whose mean is outside")
  add("--qa_std", **band, help="quarantine shards with a channel whose deviation is outside")


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
  """Ends the program if a value is invalid."""
  for name in ("batch_size", "image_batch_size", "decode_threads"):
    if getattr(args, name) is not None and getattr(args, name) < 1:
      parser.error(f"--{name}: got {getattr(args, name)}, expected 1 or more")
  if set(args.output) & set("*?["):
    parser.error(
      f"--output: got {args.output}, expected a path without * ? [, which are patterns to readers"
    )
  if args.decode_timeout <= 0 or args.decode_memory_mib < 0:
    parser.error("--decode_timeout must be above 0 and --decode_memory_mib at least 0")
  if args.qa_samples < 0 or (args.qa_min_psnr is not None and not args.qa_samples):
    parser.error("--qa_min_psnr needs --qa_samples of 1 or more")


def job_fields(args: argparse.Namespace) -> dict[str, Any]:
  """Fields of `plan.Job` that the flags set."""
  from beam_jobs.shards.loading import DecodeSettings
  from beam_jobs.shards.quality import Band

  named = {"mean": args.qa_mean, "std": args.qa_std}
  bounds = {name: tuple(values) for name, values in named.items() if values}
  return {
    "decoding": DecodeSettings(
      isolation=args.decode_isolation,
      timeout_seconds=args.decode_timeout,
      processes=args.decode_threads,
      memory_mib=args.decode_memory_mib,
    ),
    "decode_threads": args.decode_threads,
    "qa_samples": args.qa_samples,
    "band": Band(min_psnr=args.qa_min_psnr, **bounds),
  }


def beam_options(flags: Sequence[str]) -> Any:
  """Options for Beam; the default runner is FnApiRunner.

  Raises:
    ValueError: if Beam does not know a flag; Beam itself would only log it.
  """
  from apache_beam.options.pipeline_options import PipelineOptions, _BeamArgumentParser

  parser = _BeamArgumentParser(add_help=False, allow_abbrev=False, conflict_handler="resolve")
  for kind in PipelineOptions.__subclasses__():
    kind._add_argparse_args(parser)
  _, unknown = parser.parse_known_args(list(flags))
  if unknown:
    raise ValueError(
      f"unknown flags {unknown}: they are flags neither of this program (--help) nor of Beam"
    )
  named = any(flag == "--runner" or flag.startswith("--runner=") for flag in flags)
  return PipelineOptions([*flags, *([] if named else ["--runner=FnApiRunner"])])


def in_this_process(options: Any) -> bool:
  """Whether the workers are threads of the launcher."""
  from apache_beam.options.pipeline_options import DirectOptions, StandardOptions

  local = options.view_as(StandardOptions).runner.endswith(("FnApiRunner", "DirectRunner"))
  mode = options.view_as(DirectOptions).direct_running_mode
  return local and mode in ("in_memory", "multi_threading")
