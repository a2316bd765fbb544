"""Flags of the preprocessing job, and the `Job` made from them."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from beam_jobs.filters.row_filters import FilterSpec
from beam_jobs.runners import running
from beam_jobs.shards import encoders
from beam_jobs.shards.plan import Job
from beam_jobs.sources import spec as source_spec
from walt_t5x.config import gin_text, programs
from walt_t5x.media.clips import ClipSpec
from walt_t5x.media.rules import Rule


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the flags of the job, except for those of `running.parse`."""
  source_spec.add_arguments(parser.add_argument_group("source"))
  add = parser.add_argument_group("output").add_argument
  add("--output", required=True, help="output folder of the cached tasks")
  add("--task", required=True, help="name; the folders are <task>_images and <task>_videos")
  add(
    "--content",
    default="latents",
    choices=("latents", "pixels"),
    help="what the cache contains: latents and text (default), or pixels to train the VAE",
  )
  add("--num_shards", type=running.positive, default=16, help="train shards per task (16)")
  add("--num_validation_shards", type=running.positive, default=1, help="validation shards (1)")
  add("--retry_dead", action="store_true", help="make shards with dead letters again")
  add("--dry_run", action="store_true", help="check the flags and build the job's graph only")
  add = parser.add_argument_group("encoders").add_argument
  add("--vae_checkpoint", help="the tokenizer's run (its newest checkpoint), or a checkpoint in it")
  add(
    "--vae_gin_file",
    help="gin file that binds the fields of autoencoder.CausalVae; by default the run's own record",
  )
  add(
    "--vae_ema",
    action="store_true",
    help="load the averaged weights; without --vae_gin_file they are loaded where the run has them",
  )
  add("--text_encoder", help="T5 folder: config.json, model.safetensors, spiece.model")
  add("--no_text", action="store_true", help="store no text: for runs that read labels or frames")
  add("--max_text_length", type=int, default=64, help="tokens per caption, eos included (64)")
  add = parser.add_argument_group("clips").add_argument
  add("--resolutions", required=True, type=_resolutions, help="HxW,HxW,...; any sizes")
  add("--num_frames", type=int, default=17, help="frames per clip, 1 + T (17)")
  add("--fps", type=float, default=8.0, help="frame rate of a clip (8)")
  add(
    "--clip_position",
    default="centre",
    choices=("centre", "beginning", "random"),
    help="position of the clip in longer media or windows; 'random' is derived from the row's id",
  )
  add("--clip_seed", type=int, default=0, help="seed of --clip_position=random (0)")
  add(
    "--clips_per_video",
    type=running.positive,
    default=1,
    help="different clips of each training video (1); a run with more of them adds the new ones",
  )
  add("--allow_upscale", action="store_true", help="accept media smaller than a resolution")
  add(
    "--deinterlace",
    action="store_true",
    help="deinterlace videos whose frames are marked as interlaced, instead of rejecting them",
  )
  add = parser.add_argument_group("filters").add_argument
  add("--min_motion", type=float, default=0.0, help="reject videos with less motion, 0 to 1")
  add(
    "--filter",
    action="append",
    default=[],
    metavar="RULE",
    help="'NAME OP NUMBER' that rows must satisfy, e.g. 'aesthetic>=5', 'aspect<=2.4', 'seconds>=2', "
    "'caption_words>=3'; may be repeated (docs/sources.md)",
  )
  add(
    "--duplicates",
    default="none",
    choices=("none", "exact", "near"),
    help="what to reject within a shard: identical media, or also media that look the same (none)",
  )
  add("--near_duplicate_bits", type=int, default=6, help="out of 128 per image, 0 to 63 (6)")


def parse(
  argv: Sequence[str] | None, *, description: str | None
) -> tuple[argparse.Namespace, list[str]]:
  """(our flags, the remaining arguments for Beam)."""
  parser = programs.parser("beam_jobs.preprocess", description, allow_abbrev=False)
  add_arguments(parser)
  args, rest = running.parse(parser, argv)
  check_clips(parser, args)
  for name in ("vae_gin_file", "vae_checkpoint", "text_encoder"):
    needed = name == "vae_checkpoint" or (name == "text_encoder" and not args.no_text)
    if args.content == "latents" and needed and not getattr(args, name):
      instead = ", or --no_text for runs without text" if name == "text_encoder" else ""
      parser.error(f"--{name} is needed for --content=latents{instead}")
    if args.content == "pixels" and getattr(args, name):
      parser.error(f"--{name} has no effect with --content=pixels: remove it")
  if args.no_text and (args.text_encoder or args.content == "pixels"):
    other = "--text_encoder" if args.text_encoder else "--content=pixels"
    parser.error(f"--no_text has no effect with {other}: remove one")
  if args.content == "pixels" and (
    args.qa_samples or args.qa_mean or args.qa_std or args.qa_min_psnr is not None
  ):
    parser.error(
      "--qa_* have no effect with --content=pixels: pixels are stored unchanged, remove them"
    )
  return args, rest


def check_clips(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
  """Ends the program if the flags of clips do not fit each other."""
  if args.clips_per_video > 1 and args.clip_position != "random":
    parser.error("--clips_per_video needs --clip_position=random")


def filtering_of(args: argparse.Namespace) -> FilterSpec:
  """All filters."""
  rules = [Rule.parse(text) for text in args.filter]
  if args.min_motion > 0:
    rules.append(Rule("motion", ">=", args.min_motion, code="low_motion"))
  return FilterSpec(
    rules=tuple(rules),
    duplicates=args.duplicates,
    near_duplicate_bits=args.near_duplicate_bits,
  )


def job_of(
  args: argparse.Namespace, *, filtering: FilterSpec, source: source_spec.SourceSpec
) -> Job:
  """The job of these flags, whose settings digest needs the encoders; none is loaded.

  Raises:
    FileNotFoundError: if the gin file does not exist.
    ValueError: if the VAE does not accept the shape of a clip.
  """
  shards = {"train": args.num_shards, "validation": args.num_validation_shards}
  return Job(
    output=args.output,
    task=args.task,
    manifest_folder=source.media_root,
    allowed=(source.folder, *args.allow_uri),
    num_shards=shards,
    buckets=shards,
    encoders=_encoders_of(args),
    clip=ClipSpec(
      resolutions=args.resolutions,
      num_frames=args.num_frames,
      fps=args.fps,
      position=args.clip_position,
      seed=args.clip_seed,
      allow_upscale=args.allow_upscale,
      deinterlace=args.deinterlace,
      **running.given(args, running.LIMITS),
    ),
    filtering=filtering,
    settings_digest="",
    clips_per_video=args.clips_per_video,
    retry_dead=args.retry_dead,
    **running.job_fields(args),
  )


def _encoders_of(args: argparse.Namespace) -> encoders.EncoderConfig:
  batch_sizes = running.given(args, running.BATCH_SIZES)
  if args.content == "pixels":
    return encoders.EncoderConfig(**batch_sizes)
  fields, ema = vae_of(args)
  vae = encoders.build_vae(fields)
  for height, width in args.resolutions:
    vae.latent_shape((args.num_frames, height, width))  # Raises if it does not accept them.
  return encoders.EncoderConfig(
    vae_config=json.dumps(fields, sort_keys=True),
    vae_checkpoint=args.vae_checkpoint,
    vae_ema=ema,
    text_folder=args.text_encoder or "",
    max_text_length=args.max_text_length,
    **batch_sizes,
  )


def vae_of(args: argparse.Namespace) -> tuple[dict[str, Any], bool]:
  """(CausalVae's fields as plain JSON values, whether to load averaged weights) of the flags --vae_*.

  Raises:
    FileNotFoundError: the gin file, the checkpoint or the run's record does not exist.
    ValueError: they are not those of a tokenizer.
  """
  if args.vae_gin_file:
    return vae_fields_of_gin(args.vae_gin_file), args.vae_ema
  fields, averaged = encoders.tokenizer_of_run(args.vae_checkpoint)
  return fields, args.vae_ema or averaged


def vae_fields_of_gin(path: str) -> dict[str, Any]:
  """CausalVae's fields as a gin file binds them, with defaults, as plain JSON values."""
  import gin

  gin.clear_config()
  gin.parse_config_file(gin_text.find(path, flag="--vae_gin_file"))
  try:
    bindings = gin.get_bindings("CausalVae")
  except ValueError:  # The class is not registered with gin.
    bindings = {}
  finally:
    gin.clear_config()
  if not bindings:
    raise ValueError(
      f"--vae_gin_file: {path} binds no CausalVae; expected `from walt_t5x.vae import autoencoder` "
      "and bindings like `autoencoder.CausalVae.base_channels = 16`"
    )
  return encoders.vae_fields(bindings)


def _resolutions(text: str) -> tuple[tuple[int, int], ...]:
  try:
    pairs = [(int(h), int(w)) for h, w in (part.split("x") for part in text.split(","))]
    if all(min(pair) > 0 for pair in pairs) and len(set(pairs)) == len(pairs):
      return tuple(pairs)
  except ValueError:
    pass
  raise argparse.ArgumentTypeError(f"got {text!r}, expected distinct HxW pairs like 32x32,64x64")
