"""Finds planted near-duplicates of seven kinds with `beam_jobs.curate --duplicates=near`, over different parts.

  python -m benchmarks.curate_duplicates FOLDER [--clips=2000] [--bits=18]      # about 8 minutes on two cores

Clips are rendered: a textured background that moves and three bodies, all drawn for each clip. Three tenths of them are
copies of others: encoded again at low quality, resized, cropped by 5%, sped up at another frame rate, brightened,
trimmed, with a logo. Writes benchmarks/curate_duplicates.{md,json}; fails below a recall of 0.95 or a precision of
0.99.
"""

import argparse
import json
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks import results

HERE = Path(__file__).resolve().parent
FRAMES, SIZE, RATE = 36, (96, 160), 25
SHARE = 0.3
KINDS = ("encoded", "resized", "cropped", "sped up", "brightened", "trimmed", "logo")
RECALL, PRECISION = 0.95, 0.99


def render(seed: int) -> np.ndarray:
  """Frames [36, 96, 160, 3] of a scene."""
  from PIL import Image

  rng = np.random.default_rng(seed)
  height, width = SIZE
  large = (width + 60, height + 60)
  rows, columns = rng.integers(4, 9, 2)
  grid = rng.integers(0, 256, (int(rows), int(columns), 3), dtype=np.uint8)
  background = np.asarray(Image.fromarray(grid).resize(large, Image.Resampling.BICUBIC))
  start, end = rng.integers(0, 60, (2, 2))
  centers, speeds = rng.uniform(0, 1, (3, 2)), rng.uniform(-0.4, 0.4, (3, 2))
  radii, colors = rng.uniform(0.08, 0.25, (3, 2)), rng.integers(0, 256, (3, 3))
  y, x = np.mgrid[0:height, 0:width] / np.reshape(SIZE, (2, 1, 1))
  frames = []
  for t in np.linspace(0, 1, FRAMES):
    top, left = np.round(start + t * (end - start)).astype(int)
    frame = background[top : top + height, left : left + width].copy()
    for center, speed, radius, color in zip(centers, speeds, radii, colors):
      place = center + t * speed
      frame[((y - place[0]) / radius[0]) ** 2 + ((x - place[1]) / radius[1]) ** 2 < 1] = color
    frames.append(frame)
  return np.stack(frames)


def copy(frames: np.ndarray, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, float, int]:
  """(frames, frames per second, quality) of a copy."""
  from PIL import Image

  height, width = SIZE

  def resized(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.stack([np.asarray(Image.fromarray(f).resize((size[1], size[0]))) for f in frames])

  if kind == "encoded":
    return frames, RATE, 40
  if kind == "resized":
    return resized(frames, (144, 240)), RATE, 20
  if kind == "cropped":
    top, left = rng.integers(0, [round(0.05 * height) + 1, round(0.05 * width) + 1])
    cut = frames[:, top : top + round(0.95 * height), left : left + round(0.95 * width)]
    return resized(cut, SIZE), RATE, 20
  if kind == "sped up":
    return frames[np.round(np.linspace(0, FRAMES - 1, round(0.8 * FRAMES))).astype(int)], 30, 20
  if kind == "brightened":
    return np.clip(frames * 1.15 + 8, 0, 255).astype(np.uint8), RATE, 20
  if kind == "trimmed":
    return frames[2:-2], RATE, 20
  marked = frames.copy()
  marked[:, 4:16, -36:-4] = 255
  return marked, RATE, 20


def main() -> int:
  """Plants, finds, and writes the table; returns 1 if a bar is missed."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("folder", type=Path)
  parser.add_argument("--clips", type=int, default=2000)
  parser.add_argument("--bits", type=float, default=18.0)
  args = parser.parse_args()
  from beam_jobs import curate
  from walt_t5x.media import writing

  media = args.folder / "media"
  media.mkdir(parents=True, exist_ok=True)
  copies = round(SHARE * args.clips)
  originals = args.clips - copies
  kind_of = {f"{originals + i:05}.mp4": KINDS[i % len(KINDS)] for i in range(copies)}
  source_of = {name: f"{i:05}.mp4" for i, name in enumerate(kind_of)}

  def write(number: int) -> None:
    path = media / f"{number:05}.mp4"
    if path.exists():
      return
    if number < originals:
      writing.write_video(path, render(number), fps=RATE, crf=18)
      return
    rng = np.random.default_rng(number)
    frames, fps, quality = copy(render(number - originals), kind_of[path.name], rng)
    writing.write_video(path, frames, fps=fps, crf=quality)

  with ThreadPoolExecutor(2) as pool:
    for done, _ in enumerate(pool.map(write, range(args.clips)), 1):
      if done % 200 == 0:
        print(f"{done} of {args.clips} clips", file=sys.stderr)
  output = args.folder / "curated"
  curate.run(
    [f"--manifest={media}", f"--output={output}", "--num_parts=16", "--cut_threshold=200"]
    + ["--duplicates=near", f"--near_duplicate_bits={args.bits}", "--decode_isolation=thread"]
  )
  found = [json.loads(line) for line in (output / "rejected.jsonl").open(encoding="utf-8")]
  right: Counter[str] = Counter()
  wrong = 0
  for row in found:
    pair = {row["uri"], row["duplicate_of"]["uri"]}
    match = [name for name in pair if source_of.get(name) in pair]
    right.update(kind_of[name] for name in match)
    wrong += not match
  planted = Counter(kind_of.values())
  recall = right.total() / planted.total()
  precision = right.total() / max(1, len(found))
  lines = [
    "# Near-duplicates in a corpus",
    "",
    "Written by `python -m benchmarks.curate_duplicates FOLDER`, which says what the clips and copies are.",
    f"{args.clips:,} clips in 16 parts, at most {args.bits:g} of 128 bits: recall {recall:.3f}, precision",
    f"{precision:.3f}.",
    "",
    "| kind of copy | planted | found |",
    "| --- | --- | --- |",
    *(f"| {kind} | {planted[kind]} | {right[kind]} |" for kind in KINDS),
    f"| not planted | | {wrong} |",
    "",
  ]
  page, figures = "\n".join(lines), {"recall": recall, "precision": precision, "found": right}
  if args.clips >= 2000:
    results.write(HERE, "curate_duplicates", page, figures)
  else:
    print(page)
  return int(recall < RECALL or precision < PRECISION)


if __name__ == "__main__":
  sys.exit(main())
