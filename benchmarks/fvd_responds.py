"""Response of the Frechet video distance: clips against themselves, against other clips, and with distortions.

  python -m benchmarks.fvd_responds --network=shapes --weights=shapes.safetensors --shapes=720
  python -m benchmarks.fvd_responds --network=i3d --weights=i3d.safetensors --shapes=48
  python -m benchmarks.fvd_responds --network=i3d --weights=i3d.safetensors --corpus=corpus --clips=10

With `--shapes=N`, sets A and B are two independent draws of N rendered moving shapes at 64 x 64; N is a multiple of
24, so that all pairs of color and direction are equally frequent. With `--corpus`, they are successive windows of the
sample corpus's real videos at 128 x 128. A is scored against itself, against B, and against five levels each of

  blur      Gaussian, in pixels
  noise     Gaussian, in byte values
  shuffle   a share of the frames, chosen in a random order per clip, is rotated by one place along that order. Each
            level moves all frames of the previous level and more: it is the previous permutation followed by further
            transpositions.
  dropping  a share of the modes (of 24 pairs of color and direction, or of the real clips) is replaced by clips of the
            others. Each level drops all modes of the previous level.

Prints a table and writes JSON next to this file; in a file of the same clips and network, other distortions are kept.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

BLUR = (0.5, 1.0, 2.0, 4.0, 8.0)
NOISE = (4.0, 10.0, 25.0, 60.0, 120.0)
SHUFFLE = (0.2, 0.33, 0.45, 0.67, 1.0)
DROP = (0.15, 0.3, 0.45, 0.6, 0.75)


def draw_shapes(count: int, frames: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Rendered clips [count, frames, 64, 64, 3] and the mode of each: color and direction."""
  from data.samples import shapes

  rng = np.random.default_rng(seed)
  clips, modes = [], []
  for color, shape, direction in shapes.balanced_vocabulary(rng, count, moving=True):
    scene = shapes.sample_scene(rng, color=color, shape=shape, direction=direction)
    clips.append(shapes.render(scene, num_frames=frames, size=64))
    modes.append(f"{color} {direction}")
  return np.stack(clips), np.unique(modes, return_inverse=True)[1]


def windows(corpus: Path, *, clips: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
  """A and B, uint8 [clips, frames, H, W, 3], alternately from the real videos."""
  from walt_t5x.media.reading import read_video
  from walt_t5x.metrics.network_input import resize_bilinear

  rows = [json.loads(line) for line in (corpus / "manifest.jsonl").open(encoding="utf-8")]
  places: list[list[np.ndarray]] = []
  for row in rows:
    if row["corpus"] == "real" and row["modality"] == "video":
      video = read_video(corpus / row["uri"]).frames
      video = np.asarray(resize_bilinear(video.astype(np.float32), (128, 128))).round()
      video = video.astype(np.uint8)
      count = len(video) // (2 * frames)
      places.append([video[2 * frames * i : 2 * frames * (i + 1)] for i in range(count)])
  # Round robin over the videos, so that few clips still cover many scenes.
  turns = max(map(len, places), default=0)
  pairs = [video[i] for i in range(turns) for video in places if i < len(video)][:clips]
  if len(pairs) < clips:
    sys.exit(f"the corpus has {len(pairs)} pairs of {frames}-frame windows, expected {clips=}")
  both = np.stack(pairs)
  return both[:, :frames], both[:, frames:]


def shuffled(count: int, share: float, rng: np.random.Generator) -> np.ndarray:
  """Indices of `count` frames, of which a `share` moves.

  Equal generators give nested levels: a frame that moves at one share moves at every larger one.
  """
  picked = rng.permutation(count)[: max(2, round(share * count))]
  order = np.arange(count)
  order[picked] = np.roll(picked, 1)
  return order


def damage(videos: np.ndarray, kind: str, level: float) -> np.ndarray:
  """Distorts uint8 videos, with the same random numbers at every level."""
  from scipy import ndimage

  if kind == "shuffle":
    orders = (shuffled(len(clip), level, np.random.default_rng(i)) for i, clip in enumerate(videos))
    return np.stack([clip[order] for clip, order in zip(videos, orders)])
  damaged = np.empty_like(videos)
  rng = np.random.default_rng(0)
  for i, clip in enumerate(videos):
    x = clip.astype(np.float32)
    if kind == "blur":
      x = ndimage.gaussian_filter(x, (0, level, level, 0))
    elif kind == "noise":
      x = x + level * rng.standard_normal(x.shape, np.float32)
    else:
      raise ValueError(f"no damage {kind!r}")
    damaged[i] = x.round().clip(0, 255)
  return damaged


def dropped(modes: np.ndarray, share: float) -> np.ndarray:
  """Indices of the same number of clips without dropped modes; equal generators give nested levels."""
  rng = np.random.default_rng(0)
  order = rng.permutation(modes.max() + 1)
  kept = np.flatnonzero(np.isin(modes, order[round(share * len(order)) :]))
  stays = np.isin(np.arange(len(modes)), kept)
  return np.where(stays, np.arange(len(modes)), rng.choice(kept, len(modes)))


def main() -> None:
  """Computes the scores, prints the table and writes the JSON."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--network", required=True, choices=("i3d", "shapes"))
  parser.add_argument("--weights", required=True, help="weights of the network, .safetensors")
  source = parser.add_mutually_exclusive_group(required=True)
  source.add_argument("--shapes", type=int, help="number of rendered clips per set")
  source.add_argument("--corpus", type=Path, help="output of `python -m data.samples`")
  parser.add_argument("--clips", type=int, default=10, help="number of real clips per set")
  parser.add_argument("--frames", type=int, default=9)
  parser.add_argument(
    "--damages", default="blur,noise,shuffle,dropping", help="only these, separated by commas"
  )
  parser.add_argument("--batch", type=int, default=4)
  parser.add_argument("--output", type=Path, help="JSON")
  args = parser.parse_args()

  from walt_t5x.metrics.feature_statistics import FeatureStatistics
  from walt_t5x.metrics.frechet import frechet_between
  from walt_t5x.metrics.networks import FeatureNetwork
  from walt_t5x.metrics.protocols import PROTOCOLS

  protocol = PROTOCOLS[{"i3d": "fvd", "shapes": "shapes_fvd"}[args.network]]
  if args.shapes is not None:
    if args.shapes < 24 or args.shapes % 24:
      parser.error(f"--shapes is a multiple of 24, got {args.shapes}")
    (set_a, modes), (set_b, _) = (draw_shapes(args.shapes, args.frames, seed) for seed in (0, 1))
    size = (64, 64)
  else:
    set_a, set_b = windows(args.corpus, clips=args.clips, frames=args.frames)
    modes, size = np.arange(len(set_a)), (128, 128)
  protocol = protocol.replace(frames=args.frames, size=size)
  (rule,) = protocol.scores
  network = FeatureNetwork.load(args.network, args.weights)
  seconds, scored = 0.0, 0

  def features(videos: np.ndarray) -> np.ndarray:
    nonlocal scored, seconds
    parts = np.split(videos, range(args.batch, len(videos), args.batch))
    if not scored:  # The first call compiles.
      network(parts[0], batch_size=args.batch)
    started = time.monotonic()
    found = np.concatenate([network(p, batch_size=args.batch)[rule.layer] for p in parts])
    seconds, scored = seconds + time.monotonic() - started, scored + len(videos)
    return found

  of = FeatureStatistics.from_model_output
  f_a = features(set_a)
  a, b = of(f_a), of(features(set_b))
  base = {"itself": frechet_between(a, a), "B": frechet_between(a, b)}
  table: dict[str, dict[float, float]] = {}
  for kind, levels in (("blur", BLUR), ("noise", NOISE), ("shuffle", SHUFFLE)):
    if kind not in args.damages.split(","):
      continue
    table[kind] = {}
    for level in levels:
      table[kind][level] = frechet_between(a, of(features(damage(set_a, kind, level))))
      print(f"{kind} {level}: {table[kind][level]:.4g}", file=sys.stderr, flush=True)
  if "dropping" in args.damages.split(","):
    # No forward pass: the features of the clips are reused.
    table["dropping"] = {d: frechet_between(a, of(f_a[dropped(modes, d)])) for d in DROP}
  rises = {kind: bool(np.all(np.diff([0.0, *row.values()]) > 0)) for kind, row in table.items()}

  print(f"A against itself: {base['itself']:.4g}\nA against B: {base['B']:.4g}\n")
  print("| damage of A | 1 | 2 | 3 | 4 | 5 | rises at every level |")
  print("| --- | --- | --- | --- | --- | --- | --- |")
  for kind, row in table.items():
    levels = ", ".join(f"{level:g}" for level in row)
    values = " | ".join(f"{value:.4g}" for value in row.values())
    print(f"| {kind} {levels} | {values} | {'yes' if rises[kind] else '**no**'} |")
  print(f"\nprotocol {protocol.name}@{protocol.hash}, {len(set_a)} clips of {args.frames} frames")
  print(f"{args.network} {network.fingerprint[:12]} ({network.description})")
  print(f"{scored} clips in {seconds:.0f} s, {scored / seconds:.2f} clips/s")
  result = {
    "protocol": protocol.as_dict(),
    "protocol_hash": protocol.hash,
    "network": args.network,
    "network_fingerprint": network.fingerprint,
    "network_description": network.description,
    "set": "shapes" if args.shapes is not None else "real",
    "clips": len(set_a),
    "frames": args.frames,
    "against_itself": base["itself"],
    "against_b": base["B"],
    "levels": {kind: [*row] for kind, row in table.items()},
    "scores": {kind: [*row.values()] for kind, row in table.items()},
    "rises": rises,
    "clips_per_second": scored / seconds,
  }
  name = f"fvd_responds_{args.network}_{result['set']}.json"
  output = args.output or Path(__file__).with_name(name)
  if output.is_file():
    before = json.loads(output.read_text(encoding="utf-8"))
    same = ("protocol_hash", "network_fingerprint", "set", "clips")
    if all(before.get(key) == result[key] for key in same):
      for key in ("levels", "scores", "rises"):
        result[key] = before[key] | result[key]
  output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
  main()
