"""Does FVD respond? Real clips of the sample corpus against themselves, each other, and under damage.

  python -m data.samples --output=corpus
  python -m benchmarks.fvd_responds --corpus=corpus --i3d_weights=i3d.safetensors --clips=10 --frames=9 --batch=5

Set A is one window of frames of each chosen place, set B the window after it. A is scored against
itself, against B, and against five levels each of blur, noise, frame shuffling and mode dropping.
Prints a table and writes JSON beside this file. Few clips: the numbers tell the order, no more.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

BLUR = (0.5, 1.0, 2.0, 4.0, 8.0)  # standard deviation in pixels
NOISE = (4.0, 10.0, 25.0, 60.0, 120.0)  # standard deviation in byte values
SHUFFLE = (0.25, 0.4, 0.6, 0.8, 1.0)  # share of the frames that change places
DROP = (0.15, 0.3, 0.45, 0.6, 0.75)  # share of the clips replaced by copies of the others


def windows(corpus: Path, *, clips: int, frames: int) -> tuple[np.ndarray, np.ndarray]:
  """A and B, [clips, frames, H, W, 3] bytes, in turn from the real videos."""
  from walt_t5x.metrics.resize import resize_bilinear
  from walt_t5x.video_io import read_video

  rows = [json.loads(line) for line in (corpus / "manifest.jsonl").open(encoding="utf-8")]
  places: list[list[np.ndarray]] = []
  for row in rows:
    if row["corpus"] == "real" and row["modality"] == "video":
      video = read_video(corpus / row["uri"]).frames
      video = np.asarray(resize_bilinear(video.astype(np.float32), (128, 128))).round()
      video = video.astype(np.uint8)
      count = len(video) // (2 * frames)
      places.append([video[2 * frames * i : 2 * frames * (i + 1)] for i in range(count)])
  # Round robin over the videos, so that few clips still show many places.
  turns = max(map(len, places), default=0)
  pairs = [video[i] for i in range(turns) for video in places if i < len(video)][:clips]
  if len(pairs) < clips:
    sys.exit(
      f"the corpus has {len(pairs)} pairs of {frames}-frame windows, {clips=} were asked for"
    )
  both = np.stack(pairs)
  return both[:, :frames], both[:, frames:]


def damage(videos: np.ndarray, kind: str, level: float, rng: np.random.Generator) -> np.ndarray:
  """Bytes to damaged bytes."""
  from scipy import ndimage

  x = videos.astype(np.float32)
  if kind == "blur":
    x = ndimage.gaussian_filter(x, (0, 0, level, level, 0))
  elif kind == "noise":
    x = x + rng.normal(0, level, size=x.shape)
  elif kind == "shuffle":
    for clip in x:
      moved = rng.permutation(len(clip))[: max(2, round(level * len(clip)))]
      # Each goes where another one was: no frame that was picked stays.
      clip[moved] = clip[np.roll(moved, 1)]
  else:
    raise ValueError(f"no damage {kind!r}")
  return x.round().clip(0, 255).astype(np.uint8)


def main() -> None:
  """Scores, prints, writes."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--corpus", type=Path, required=True, help="output of `python -m data.samples`"
  )
  parser.add_argument("--i3d_weights", required=True)
  parser.add_argument("--clips", type=int, default=12)
  parser.add_argument("--frames", type=int, default=9)
  parser.add_argument("--batch", type=int, default=4)
  parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
  args = parser.parse_args()

  from walt_t5x.metrics.feature_statistics import FeatureStatistics
  from walt_t5x.metrics.frechet import frechet_between
  from walt_t5x.metrics.networks import FeatureNetwork
  from walt_t5x.metrics.protocols import PROTOCOLS

  protocol = PROTOCOLS["fvd"].replace(frames=args.frames, size=(128, 128))
  network = FeatureNetwork.load("i3d", args.i3d_weights)
  set_a, set_b = windows(args.corpus, clips=args.clips, frames=args.frames)
  started, scored = time.monotonic(), 0

  def features(videos: np.ndarray) -> np.ndarray:
    nonlocal scored
    scored += len(videos)
    parts = np.split(videos, range(args.batch, len(videos), args.batch))
    return np.concatenate([network(p, batch_size=args.batch)["logits"] for p in parts])

  of = FeatureStatistics.from_model_output
  f_a = features(set_a)
  a, b = of(f_a), of(features(set_b))
  table: list[dict[str, object]] = [
    {"set": "A against itself", "fvd": frechet_between(a, a)},
    {"set": "A against B", "fvd": frechet_between(a, b)},
  ]
  monotone = {}
  for kind, levels in (("blur", BLUR), ("noise", NOISE), ("shuffle", SHUFFLE)):
    rng = np.random.default_rng(0)
    scores = []
    for level in levels:
      scores.append(frechet_between(a, of(features(damage(set_a, kind, level, rng)))))
      print(f"{kind} {level}: {scores[-1]:.2f}", file=sys.stderr, flush=True)
    table += [{"set": kind, "level": level, "fvd": s} for level, s in zip(levels, scores)]
    monotone[kind] = bool(np.all(np.diff(scores) > 0))
  # Dropping costs no forward pass: the copies have the features of what they copy.
  order = np.random.default_rng(0).permutation(len(f_a))
  scores = []
  for level in DROP:
    kept = order[round(level * len(f_a)) :]
    scores.append(frechet_between(a, of(f_a[np.resize(kept, len(f_a))])))
  table += [{"set": "mode dropping", "level": level, "fvd": s} for level, s in zip(DROP, scores)]
  monotone["mode dropping"] = bool(np.all(np.diff(scores) > 0))

  print("| samples | level | FVD |\n| --- | --- | --- |")
  for row in table:
    print(f"| {row['set']} | {row.get('level', '')} | {row['fvd']:.4g} |")
  seconds = time.monotonic() - started
  print(f"\nrises with every level: {monotone}")
  print(f"protocol fvd@{protocol.hash}, {args.clips} clips of {args.frames} frames at 128 x 128")
  print(f"I3D {network.fingerprint[:12]}, the public weights: {network.is_public}")
  print(f"{scored} clips in {seconds:.0f} s, {scored / seconds:.2f} clips/s")
  result = {
    "protocol": protocol.as_dict(),
    "protocol_hash": protocol.hash,
    "network_fingerprint": network.fingerprint,
    "public_weights": network.is_public,
    "clips": args.clips,
    "table": table,
    "monotone": monotone,
    "clips_per_second": scored / seconds,
  }
  args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
  main()
