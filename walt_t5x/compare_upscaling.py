"""Compares a super-resolution stage with bicubic upscaling, both evaluated on held-out clips.

  python -m walt_t5x.compare_upscaling --gin_file=gin/tiny/generate.gin --gin.SR1_CHECKPOINT=\\"runs/sr1\\" ... \\
    --cache=CACHE/shapes_pixels_videos --network=shapes --weights=shapes.safetensors

The held-out clips come from a pixel cache that has the sizes of two neighboring stages. The tokenizer encodes the
smaller size of each clip, like the output of the stage below, and then
  the stage          makes the larger size from it,
  bicubic latents    upscales the same latents, and decodes them,
  bicubic            decodes the same latents, and upscales the small clip,
  bicubic, original  upscales the small clip itself, which is not available to the cascade,
  tokenizer          reconstructs the large clip: the upper bound for any stage.
Prints the Frechet distance between the features of each and of the held-out clips, PSNR and, with --lpips_weights,
LPIPS, then one line of JSON.
"""

import dataclasses
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import app, flags

from walt_t5x.config import gin_flags, programs
from walt_t5x.files import storage
from walt_t5x.generation import cascade_flags
from walt_t5x.media.pixels import to_float

FLAGS = flags.FLAGS
STAGE, TOKENIZER = "the stage", "tokenizer"
BICUBIC_LATENTS, BICUBIC, ORIGINAL = "bicubic latents", "bicubic", "bicubic, original"


def define_flags() -> None:
  """Defines the flags of the program."""
  cascade_flags.define_flags()
  flags.DEFINE_string("cache", None, "Folder of a cached task with pixels of both sizes.")
  flags.DEFINE_string("split", "validation", "Split of the held-out clips.")
  flags.DEFINE_string("stage", None, "Super-resolution stage; the last one by default.")
  flags.DEFINE_string("network", "shapes", "Feature network: shapes (a surrogate) or i3d.")
  flags.DEFINE_string("weights", None, "Weights of the network.")
  flags.DEFINE_string("lpips_weights", None, "Weights of LPIPS (docs/vae.md); omitted without.")
  flags.DEFINE_integer("count", 256, "Clips, at most.", lower_bound=2)
  flags.DEFINE_integer("batch_size", 16, "Clips at a time.", lower_bound=1)
  flags.DEFINE_integer("seed", 0, "Seed of the noise.", lower_bound=0)
  flags.DEFINE_string("output", None, "JSON file for the result.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
  """Held-out clips at both sizes, [N, T, h, w, 3] and [N, T, H, W, 3] uint8, and one caption per clip."""

  small: Any
  large: Any
  prompts: Sequence[str]


def read_held_out(folder: str, split: str, fields: tuple[str, str], count: int) -> HeldOut:
  """The first clips of a split of a cache; raises as `held_out_clips.clips_of_cache`."""
  from walt_t5x.evaluation.held_out_clips import clips_of_cache

  small, large = (
    list(itertools.islice(clips_of_cache(folder, split=split, field=field)[1], count))
    for field in fields
  )
  return HeldOut(
    small=np.stack([np.stack(list(clip.frames())) for clip in small]),
    large=np.stack([np.stack(list(clip.frames())) for clip in large]),
    prompts=[clip.caption for clip in small],
  )


def enlarge(clips: Any, size: tuple[int, int]) -> Any:
  """Bicubic resizing (Pillow's) to (H, W), frame by frame."""
  from PIL import Image

  def one(frame: Any) -> Any:
    return Image.fromarray(frame).resize((size[1], size[0]), Image.Resampling.BICUBIC)

  return np.stack([[one(frame) for frame in clip] for clip in clips])


def enlarge_latents(latents: Any, size: tuple[int, int]) -> Any:
  """Bicubic resizing of latents [N, t, h, w, c] to (H, W), each channel separately, with the weights of `enlarge`."""
  import jax

  shape = (*latents.shape[:2], *size, latents.shape[-1])
  return np.asarray(jax.image.resize(latents, shape, "bicubic"))


def make_clips(
  cascade: Any, held: HeldOut, *, stage: str, batch_size: int, seed: int
) -> dict[str, Any]:
  """The larger clips made in each way, [N, T, H, W, 3] uint8."""
  latents = cascade.codec.encode(held.small)
  parts = []
  for start in range(0, len(latents), batch_size):
    at = slice(start, start + batch_size)
    parts.append(
      cascade.upscale(stage, latents[at], held.prompts[at], seed=seed, first_index=start)
    )
  size = held.large.shape[2:4]
  factor = cascade.codec.vae.spatial_factor
  return {
    STAGE: np.concatenate(parts),
    BICUBIC_LATENTS: cascade.codec.decode(
      enlarge_latents(latents, (size[0] // factor, size[1] // factor))
    ),
    BICUBIC: enlarge(cascade.codec.decode(latents), size),
    ORIGINAL: enlarge(held.small, size),
    TOKENIZER: cascade.codec.decode(cascade.codec.encode(held.large)),
  }


def compare(
  made: Mapping[str, Any],
  truth: Any,
  network: Any,
  *,
  layer: str,
  batch_size: int,
  lpips: Callable[[Any, Any], Any] | None = None,
) -> dict[str, dict[str, float]]:
  """way -> {"frechet", "psnr"} and, with `lpips`, "lpips": uint8 clips compared with those of `truth`.

  Features are those of one layer of a `FeatureNetwork`; `lpips` is a function of two batches of clips in [0, 1].
  """
  import jax.numpy as jnp

  from walt_t5x.metrics.feature_statistics import FeatureStatistics
  from walt_t5x.metrics.frechet import frechet_between
  from walt_t5x.metrics.pixel_distances import psnr

  def statistics(clips: Any) -> FeatureStatistics:
    return FeatureStatistics.from_model_output(network(clips, batch_size=batch_size)[layer])

  def mean(distance: Callable[[Any, Any], Any], clips: Any) -> float:
    """The mean over clips, a batch at a time."""
    batches = range(0, len(clips), batch_size)
    values = [
      distance(*(to_float(jnp.asarray(x[at : at + batch_size])) for x in (clips, truth)))
      for at in batches
    ]
    return float(np.mean(np.concatenate(values)))

  real = statistics(truth)
  distances = {"psnr": psnr} | ({"lpips": lpips} if lpips else {})
  return {
    way: {"frechet": float(frechet_between(statistics(clips), real))}
    | {name: mean(distance, clips) for name, distance in distances.items()}
    for way, clips in made.items()
  }


def wins(ways: Mapping[str, Mapping[str, float]]) -> dict[str, bool]:
  """Whether the stage is closer to the held-out clips, "<distance>, <way>" -> better.

  It must have a smaller Frechet distance and LPIPS than bicubic upscaling of the latents, and a smaller LPIPS than
  bicubic upscaling of the decoded clip.
  """
  return {
    f"{name}, {way}": ways[STAGE][name] < ways[way][name]
    for name, way in (("frechet", BICUBIC_LATENTS), ("lpips", BICUBIC_LATENTS), ("lpips", BICUBIC))
    if name in ways[STAGE]
  }


def run(config: Any) -> dict[str, Any]:
  """Reads, generates and compares with the cascade of a `CascadeConfig`."""
  from data import schema
  from walt_t5x.evaluation.clip_scores import LpipsNetwork
  from walt_t5x.generation.cascade import stage_size
  from walt_t5x.generation.loading import load_cascade, read_infos
  from walt_t5x.metrics.networks import KINDS, FeatureNetwork

  network = FeatureNetwork.load(FLAGS.network, FLAGS.weights)
  names = [stage.name for stage in config.stages]
  stage = FLAGS.stage or names[-1]
  if stage not in names[1:]:
    raise ValueError(f"--stage={stage}: expected a super-resolution stage, one of {names[1:]}")
  at = names.index(stage)
  frames = 1 + (schema.latents_shape(config.stages[at].latents)[0] - 1) * config.vae.temporal_factor
  small, large = (
    schema.pixels_field(frames, *stage_size(config.stages[i], config.vae)) for i in (at - 1, at)
  )
  held = read_held_out(FLAGS.cache, FLAGS.split, (small, large), FLAGS.count)
  cascade = load_cascade(config, read_infos(config), batch_size=FLAGS.batch_size)
  made = make_clips(cascade, held, stage=stage, batch_size=FLAGS.batch_size, seed=FLAGS.seed)
  layer = KINDS[FLAGS.network].layers[0]
  found = compare(
    made,
    held.large,
    network,
    layer=layer,
    batch_size=FLAGS.batch_size,
    lpips=LpipsNetwork.load(FLAGS.lpips_weights) if FLAGS.lpips_weights else None,
  )
  return {
    "stage": stage,
    "clips": len(held.prompts),
    "network": f"{FLAGS.network}/{layer}",
    "weights": network.fingerprint,
    "ways": found,
    "stage_wins": wins(found),
  }


def main(argv: Sequence[str]) -> None:
  """Reads flags and gin, compares, and prints and writes the result."""
  cascade_flags.check(argv, "cache=CACHE/shapes_pixels_videos")
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  with programs.user_errors("compare_upscaling"):
    result = run(cascade_flags.read().config)
  print(f"{result['clips']} held-out clips, features {result['network']} {result['weights'][:12]}")
  print(f"{'way':<20} {'Frechet distance':>16} {'PSNR, dB':>9} {'LPIPS':>7}")
  for way, scores in result["ways"].items():
    lpips = f"{scores['lpips']:.3f}" if "lpips" in scores else "-"
    print(f"{way:<20} {scores['frechet']:>16.2f} {scores['psnr']:>9.2f} {lpips:>7}")
  if FLAGS.output:
    storage.write_json(FLAGS.output, result)
  print(json.dumps(result))


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=gin_flags.parse_args)
