"""Reconstructs held-out clips with a trained tokenizer and writes inputs and reconstructions, lossless, for scoring.

  python -m walt_t5x.reconstruct --vae_checkpoint=runs/vae \\
    --cache=CACHE/ucf101_pixels_videos --output=reconstructions
  python -m walt_t5x.evaluate --protocol=tokenizer --samples=reconstructions/reconstructions \\
    --reference=reconstructions/inputs --i3d_weights=i3d.safetensors --lpips_weights=vgg16.safetensors

--cache is a cached task of pixels, whose held-out examples are those of the tokenizer's training data. --media is a
folder of files or a manifest; without --frames the entire file is reconstructed, in the memory of a few frames. The
mean of the posterior is decoded. The same command resumes after an interruption; --shard=3/8 splits it into jobs. A
file that cannot be read is skipped and listed in skipped-*.jsonl. Prints a line of JSON; if all captions of a cache
name a color and a shape, also the caption accuracy of inputs and reconstructions (`walt_t5x.evaluate`).
"""

import argparse
import collections
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from walt_t5x.config import gin_text, programs
from walt_t5x.config.waiting import waiting
from walt_t5x.evaluation.flags import height_and_width
from walt_t5x.files.paths import AnyPath, as_path


def _shard(text: str) -> tuple[int, int]:
  number, slash, count = text.partition("/")
  if not (slash and number.isdigit() and count.isdigit() and int(number) < int(count)):
    raise argparse.ArgumentTypeError(f"expected NUMBER/COUNT with 0 <= NUMBER < COUNT, got {text}")
  return int(number), int(count)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the flags."""
  parser = programs.parser("walt_t5x.reconstruct", __doc__)
  parser.add_argument(
    "--vae_gin_file", help="binds CausalVae; by default the run's own record of its model"
  )
  parser.add_argument("--vae_checkpoint", required=True, help="its run, or one checkpoint of it")
  parser.add_argument("--vae_ema", action="store_true", help="use the averaged weights")
  source = parser.add_mutually_exclusive_group(required=True)
  source.add_argument("--cache", help="folder of a cached task of pixels")
  source.add_argument("--media", help="folder of media files, or a .jsonl manifest")
  parser.add_argument("--split", help="split of the cache (default: validation) or manifest")
  parser.add_argument("--pixels", help="field of the cache, pixels/TxHxW, if it has several")
  media = parser.add_argument_group("options of --media")
  media.add_argument("--frames", type=int, help="frames per file, from the start (default: all)")
  media.add_argument(
    "--size", type=height_and_width, help="HEIGHTxWIDTH (default: as the files are)"
  )
  media.add_argument("--fit", choices=("crop", "exact"), default="crop", help="how to resize")
  media.add_argument("--fps", type=float, help="resample to this rate (default: every frame)")
  media.add_argument("--images", action="store_true", help="images instead of videos")
  parser.add_argument("--count", type=int, help="clips, at most")
  parser.add_argument(
    "--batch_size", type=int, default=8, help="clips at a time; 1 for entire files"
  )
  parser.add_argument("--group", type=int, default=1, help="latent frames at a time")
  parser.add_argument("--shard", type=_shard, default=(0, 1), help="NUMBER/COUNT of this job")
  parser.add_argument("--gallery", type=int, default=24, help="clips shown in the gallery")
  parser.add_argument("--output", type=as_path, required=True, help="folder")
  args = parser.parse_args(argv)
  of_media = [f"--{name}" for name in ("frames", "size", "fps", "images") if getattr(args, name)]
  if args.cache and of_media:
    parser.error(f"{', '.join(of_media)} require --media; the clips of a --cache are already cut")
  if args.media and args.pixels:
    parser.error("--pixels requires --cache")
  for name in ("count", "batch_size", "group", "frames"):
    value = getattr(args, name)
    if value is not None and value < 1:
      parser.error(f"--{name}: got {value}, expected at least 1")
  return args


def load_vae(args: argparse.Namespace) -> tuple[Any, Any, dict[str, Any]]:
  """(network, its parameters, its identity: fields and fingerprint) of the flags --vae_*.

  Raises:
    FileNotFoundError: the checkpoint, or the run's record of its model, does not exist.
    ValueError: the gin file or the run has no tokenizer, or the checkpoint is of another one.
  """
  from flax import traverse_util

  import gin
  from beam_jobs.runners.job_flags import vae_of
  from beam_jobs.shards.encoders import build_vae, select_vae_params
  from walt_t5x import engine
  from walt_t5x.engine.checkpoints import load_params
  from walt_t5x.files.fingerprint import weights_fingerprint

  # Training files include others by their path from `gin/` on.
  programs.register(train=engine.train)
  gin.add_config_file_search_path(gin_text.FOLDER)
  fields, ema = vae_of(args)
  vae = build_vae(fields)
  params = select_vae_params(vae, load_params(args.vae_checkpoint, ema=ema), args.vae_checkpoint)
  fingerprint = weights_fingerprint(traverse_util.flatten_dict(params, sep="/"))
  return vae, params, {"vae": fields, "vae_fingerprint": fingerprint}


def clips_of(args: argparse.Namespace, vae: Any) -> tuple[int, Iterator[Any]]:
  """The number of clips, and the clips; at most --count."""
  from walt_t5x.evaluation import held_out_clips

  if args.cache:
    total, found = held_out_clips.clips_of_cache(
      args.cache, split=args.split or "validation", field=args.pixels
    )
  else:
    frames = 1 if args.images else args.frames
    if args.size or frames:
      factor = vae.spatial_factor
      vae.latent_shape((frames or 1, *(args.size or (factor, factor))))
    fields = {name: getattr(args, name) for name in ("frames", "size", "fit", "fps", "images")}
    rule = held_out_clips.MediaRule(check=vae.latent_shape, **fields)
    total, found = held_out_clips.clips_of_media(args.media, rule, split=args.split)
  return min(total, args.count or total), itertools.islice(found, args.count)


def reconstruct(args: argparse.Namespace) -> dict[str, Any]:
  """Makes the missing reconstructions.

  Returns:
    {"clips", "made", "skipped", "seconds"} and, once all exist, {"psnr", "inputs", "reconstructions", "manifest"}, and
    {"caption_accuracy": {"inputs": {name: number}, "reconstructions": ...}} if the captions allow it.

  Raises:
    FileNotFoundError, ValueError: inputs are missing or incompatible; raised before anything is reconstructed.
  """
  import jax
  from tqdm import tqdm

  from walt_t5x.evaluation.clip_sources import in_batches
  from walt_t5x.evaluation.held_out_clips import UnreadableClip
  from walt_t5x.evaluation.reconstruction import SIDECARS, ReconstructionFolder
  from walt_t5x.generation import run_identity
  from walt_t5x.generation.pixel_codec import PixelCodec
  from walt_t5x.generation.stage_sampler import mesh_for

  started = time.monotonic()
  with waiting("reconstruct", "loading the VAE"):
    vae, params, tokenizer = load_vae(args)
  total, clips = clips_of(args, vae)
  folder = ReconstructionFolder(args.output)
  decides = ("cache", "media", "split", "pixels", "frames", "size", "fit", "fps", "images", "count")
  identity = tokenizer | {name: getattr(args, name) for name in decides}
  run_identity.begin(args.output, identity, finished=SIDECARS)
  complete_files = bool(args.media) and args.frames is None and not args.images
  rows = 1 if complete_files else args.batch_size
  mesh = mesh_for(rows, jax.local_devices())
  codec = PixelCodec(vae, params, rows=rows, group=args.group, mesh=mesh)
  names = collections.Counter[str]()
  skipped: dict[str, dict[str, str]] = {}
  made = 0
  bar = tqdm(total=total, unit="clip", desc="reconstruct", file=sys.stderr, disable=None)

  def skip(clip: Any, error: Exception) -> None:
    skipped[clip.name] = {"name": clip.name, "uri": clip.uri, "error": str(error)}
    bar.update()
    print(f"skipped {clip.uri}: {error}", file=sys.stderr)

  def wanted() -> Iterator[tuple[Any, Any]]:
    """Clips and their frames; those of an entire file are read while they are reconstructed."""
    number, count = args.shard
    for index, clip in enumerate(clips):
      names[clip.name] += 1
      # A cache may contain a clip twice; its name depends only on its content.
      if names[clip.name] > 1 or folder.finished(clip.name):
        bar.update()
      elif index % count == number:
        try:
          frames = clip.frames() if complete_files else list(clip.frames())
        except UnreadableClip as error:
          skip(clip, error)
          continue
        yield clip, frames

  def shape(item: tuple[Any, Any]) -> Any:
    return None if complete_files else (len(item[1]), item[1][0].shape)

  with run_identity.begun(args.output, identity, finished=SIDECARS) as confirm:
    for batch in in_batches(wanted(), rows, key=shape):
      group, frames = zip(*batch)
      confirm()
      try:
        folder.write(group, codec.reconstruct(frames))
      except UnreadableClip as error:
        skip(group[0], error)
        continue
      made += len(group)
      bar.update(len(group))
  bar.close()
  return _finish(args, folder, names, skipped) | {
    "made": made,
    "seconds": round(time.monotonic() - started, 1),
  }


def _finish(
  args: argparse.Namespace,
  folder: Any,
  names: Mapping[str, int],
  skipped: Mapping[str, Mapping[str, str]],
) -> dict[str, Any]:
  """Writes the ledger and, once all clips are done, manifest and gallery; returns the paths that exist."""
  import numpy as np

  from walt_t5x.files import damage, storage

  number, count = args.shard
  ledger = "".join(json.dumps(entry) + "\n" for entry in skipped.values())
  storage.write(folder.path / f"skipped-{number}-of-{count}.jsonl", ledger)
  finished = [name for name in names if folder.finished(name)]
  passed_over = {
    damage.parsed(line, name=str(file))["name"]
    for file in folder.path.glob("skipped-*.jsonl")
    for line in file.read_text(encoding="utf-8").splitlines()
  }
  passed_over = passed_over & names.keys() - set(finished)
  result: dict[str, Any] = {"clips": len(names), "skipped": len(passed_over)}
  if repeated := sum(names.values()) - len(names):
    result["repeated"] = repeated
  left = len(set(names) - set(finished) - passed_over)
  if left:
    # The last job to finish writes the manifest.
    return result | {"left_to_other_shards": left}
  if not finished:
    raise ValueError(f"none of {len(names)} clips could be read; see {folder.path}/skipped-*")
  mean = float(np.mean([row["psnr"] for row in folder.facts(finished)]))
  result |= {"psnr": mean, "manifest": str(folder.write_manifest(finished))}
  with waiting("reconstruct", "reading the clips to compare them with their captions"):
    accuracy = folder.caption_accuracy(finished)
  if accuracy:
    for what, counts in accuracy.items():
      print(f"{what}: {counts}")
    result["caption_accuracy"] = {what: counts.as_dict() for what, counts in accuracy.items()}
  if args.gallery:
    result["gallery"] = str(_write_gallery(folder, finished[: args.gallery]))
  return result | {"inputs": str(folder.inputs), "reconstructions": str(folder.reconstructions)}


def _write_gallery(folder: Any, names: Sequence[str]) -> AnyPath:
  """Input and reconstruction next to each other, at most ten seconds of each."""
  from walt_t5x.evaluation.media_files import read_file
  from walt_t5x.html import gallery

  def cards() -> Iterator[Any]:
    for row in folder.facts(names):
      fps, stages = row["fps"], []
      for key in ("input", "reconstruction"):
        frames = read_file(folder.path / row[key], max_frames=max(1, round(10 * fps)))
        stages.append(gallery.ShownClip(name=key, frames=frames, fps=fps, file=row[key]))
      yield gallery.GalleryItem(
        prompt=row["uri"], stages=stages, details={"PSNR": f"{row['psnr']:.2f} dB"}
      )

  return gallery.write_gallery(folder.path / "gallery.html", cards(), title="Reconstructions")


def main(argv: Sequence[str] | None = None) -> None:
  """Makes the reconstructions and prints a summary."""
  args = parse_arguments(argv)
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  try:
    with programs.user_errors("reconstruct"):
      result = reconstruct(args)
  except KeyboardInterrupt:
    print(
      f"\nreconstruct: interrupted; finished clips are in {args.output}. The same command makes the rest.",
      file=sys.stderr,
    )
    sys.exit(130)
  print(json.dumps(result))


if __name__ == "__main__":
  main()
