"""Finds the cuts of spliced videos with known cuts, by both detectors of `beam_jobs.curate`.

  python -m benchmarks.curate_shots FOLDER --weights=transnet.safetensors      # about 8 minutes on two cores

Sixty H.264 videos of three to six scenes each, real (videos of installed packages, moving windows of photographs) and
rendered, joined by cuts, dissolves and fades through black; some scenes have flashes of one to three white frames, and
photographs are panned fast. A boundary counts as found within two frames. Writes benchmarks/curate_shots.{md,json};
fails below F1 0.95 for TransNet V2 and 0.85 for PySceneDetect. The weights: docs/curation.md.
"""

import argparse
import itertools
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from beam_jobs.curation.shots import MIN_FRAMES
from benchmarks import results
from benchmarks.fvd_parity import VIDEOS, installed

HERE = Path(__file__).resolve().parent
COUNT, RATE, SIZE = 60, 25, (96, 160)
TOLERANCE = 2
# The first frames of shots in the real videos, which are edited themselves; found by eye.
CUTS = {"cityCC0.mpg": (116,), "bikes.mp4": (30, 76, 137, 187, 242)}
BARS = {"TransNet V2": 0.95, "PySceneDetect": 0.85}
RENDERED = (
  "testsrc2=s=160x96:r=25",
  "mandelbrot=s=160x96:r=25",
  "life=s=160x96:r=25:mold=10:ratio=0.2:life_color=#80ff40:death_color=#602020",
  "gradients=s=160x96:r=25:speed=0.02",
  "smptehdbars=s=160x96:r=25",
)
# Frames [first, last] of a transition; for a cut, the first frame of the next scene, twice.
Boundary = tuple[int, int]


class Scenes:
  """Draws scenes [T, 96, 160, 3] of real and rendered material."""

  def __init__(self, rng: np.random.Generator):
    self._rng = rng
    self._films = [_read(str(installed(video))) for video in VIDEOS]
    self._cuts = [CUTS.get(Path(video).name, ()) for video in VIDEOS]
    self._rendered = [_read(source, lavfi=True) for source in RENDERED]
    self._photographs = _photographs()

  def draw(self, frames: int, last: int) -> tuple[np.ndarray, list[int], int]:
    """A scene, the cuts in it, and the number of its source, which is not `last`."""
    films, rendered = len(self._films), len(self._rendered)
    kinds = films + rendered + len(self._photographs)
    number = int(self._rng.choice([kind for kind in range(kinds) if kind != last]))
    if number < films + rendered:
      source = (self._films + self._rendered)[number]
      start = int(self._rng.integers(0, max(1, len(source) - frames)))
      cuts = [cut - start for cut in (self._cuts[number] if number < films else ())]
      return source[start : start + frames], [cut for cut in cuts if 0 < cut < frames], number
    return self._pan(self._photographs[number - films - rendered], frames), [], number

  def _pan(self, photograph: np.ndarray, frames: int) -> np.ndarray:
    """A window that moves at a constant speed, up to a third of its width in a tenth of a second."""
    height, width = SIZE
    room = np.array(photograph.shape[:2]) - SIZE
    ends = self._rng.uniform(0, 1, (2, 2)) * room
    places = np.round(np.linspace(ends[0], ends[1], frames)).astype(int)
    return np.stack([photograph[y : y + height, x : x + width] for y, x in places])


def _read(source: str, *, lavfi: bool = False) -> np.ndarray:
  """Frames of a file, or twelve seconds of a rendered source, scaled and cropped."""
  command = ["ffmpeg", "-v", "error", *(["-f", "lavfi", "-t", "12"] if lavfi else []), "-i", source]
  command += [
    "-vf",
    "scale=160:96:force_original_aspect_ratio=increase,crop=160:96",
    "-f",
    "rawvideo",
  ]
  done = subprocess.run([*command, "-pix_fmt", "rgb24", "-"], check=True, capture_output=True)
  return np.frombuffer(done.stdout, np.uint8).reshape(-1, *SIZE, 3)


def _photographs() -> list[np.ndarray]:
  """Photographs of scikit-image, three times as large as a frame."""
  from PIL import Image

  found = []
  for name in ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg"):
    with Image.open(installed(f"scikit-image/skimage/data/{name}")) as image:
      found.append(np.asarray(image.convert("RGB").resize((480, 288))))
  return found


def compose(
  rng: np.random.Generator, scenes: Scenes
) -> tuple[np.ndarray, list[Boundary], list[str]]:
  """Frames of a video, its boundaries, and the kinds of what joins and disturbs its scenes."""
  video, cuts, number = scenes.draw(int(rng.integers(60, 100)), -1)
  boundaries, kinds = [], ["cut"] * len(cuts)
  for _ in range(int(rng.integers(2, 6))):
    scene, inside, number = scenes.draw(int(rng.integers(60, 100)), number)
    kinds += ["cut"] * len(inside)
    if rng.random() < 0.25:
      at, length = int(rng.integers(8, len(scene) - 12)), int(rng.integers(1, 4))
      scene = scene.copy()
      scene[at : at + length] = 255
      kinds.append("flash")
    kind = str(rng.choice(["cut", "cut", "dissolve", "fade"]))
    kinds.append(kind)
    length = 0 if kind == "cut" else int(rng.integers(8, 20))
    begin = len(video) - (length if kind == "dissolve" else 0)
    cuts += [begin + cut for cut in inside]
    if kind == "cut":
      boundaries.append((len(video), len(video)))
      video = np.concatenate([video, scene])
      continue
    rise = (np.arange(1, length + 1) / (length + 1))[:, None, None, None]
    if kind == "dissolve":
      mixed = video[-length:] * (1 - rise) + scene[:length] * rise
      boundaries.append((len(video) - length, len(video) - 1))
      video = np.concatenate([video[:-length], mixed.astype(np.uint8), scene[length:]])
    else:
      out, back = video[-length:] * (1 - rise), scene[:length] * rise
      boundaries.append((len(video) - length, len(video) + length - 1))
      faded = [out.astype(np.uint8), back.astype(np.uint8)]
      video = np.concatenate([video[:-length], *faded, scene[length:]])
  # Those that are closer to a boundary than the shortest shot are part of it.
  apart = [
    cut for cut in cuts if all(not a - MIN_FRAMES < cut < b + MIN_FRAMES for a, b in boundaries)
  ]
  return video, sorted([*boundaries, *((cut, cut) for cut in apart)]), kinds


def found_by(detector: Any, path: Path) -> list[Boundary]:
  """Boundaries that a detector finds in a file."""
  from beam_jobs.curation import scanning, shots

  frames = shots.Flagged(scanning.scan(str(path), scanning.ScanSpec()), detector)
  segments = list(shots.segments(frames, max_seconds=1e6))

  def number(microseconds: int) -> int:
    return round(microseconds * RATE / 1e6)

  found = []
  for before, after in itertools.pairwise(segments):
    if after.transition:
      found.append((number(after.start), number(after.end) - 1))
    elif not before.transition:
      found.append((number(after.start), number(after.start)))
  return found


def matches(true: Sequence[Boundary], found: Sequence[Boundary]) -> int:
  """Number of pairs that overlap within the tolerance; each boundary is in one pair at most."""
  left, count = list(found), 0
  for first, last in true:
    for one in left:
      if one[0] <= last + TOLERANCE and one[1] >= first - TOLERANCE:
        left.remove(one)
        count += 1
        break
  return count


def videos(folder: Path, seed: int) -> Iterator[tuple[Path, list[Boundary], list[str]]]:
  """Writes the videos."""
  from walt_t5x.media import writing

  rng = np.random.default_rng(seed)
  scenes = Scenes(rng)
  folder.mkdir(parents=True, exist_ok=True)
  for i in range(COUNT):
    frames, boundaries, kinds = compose(rng, scenes)
    path = folder / f"{seed}_{i:02}.mp4"
    if not path.exists():
      writing.write_video(path, frames, fps=RATE)
    yield path, boundaries, kinds


def main() -> int:
  """Scores both detectors and writes the table; returns 1 if a bar is missed."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("folder", type=Path)
  parser.add_argument("--seed", type=int, default=20260, help="of the videos (20260)")
  parser.add_argument("--count", type=int, default=COUNT, help="videos (60)")
  parser.add_argument("--threshold", type=float, default=27.0, help="of PySceneDetect (27)")
  parser.add_argument("--weights", help="TransNet V2; without, PySceneDetect alone")
  args = parser.parse_args()
  from beam_jobs.curation import shots

  detectors: dict[str, Any] = {"PySceneDetect": shots.ContentDetector(args.threshold)}
  if args.weights:
    detectors["TransNet V2"] = shots.NetworkDetector.load(args.weights, 0.5)
  counts = {name: {"true": 0, "found": 0, "matched": 0} for name in detectors}
  per_kind: dict[str, int] = {}
  for i, (path, true, kinds) in enumerate(
    itertools.islice(videos(args.folder, args.seed), args.count)
  ):
    for kind in kinds:
      per_kind[kind] = per_kind.get(kind, 0) + 1
    for name, detector in detectors.items():
      found = found_by(detector, path)
      matched = matches(true, found)
      for key, value in (("true", len(true)), ("found", len(found)), ("matched", matched)):
        counts[name][key] += value
      if matched < max(len(true), len(found)):
        print(f"{path.name} {name}: {kinds}, true {true}, found {found}", file=sys.stderr)
    print(f"{i + 1} of {COUNT}", file=sys.stderr)
  joined = ", ".join(f"{n} {kind}(s)" for kind, n in sorted(per_kind.items()))
  lines = [
    "# Cuts of spliced videos",
    "",
    "Written by `python -m benchmarks.curate_shots FOLDER --weights=FILE`, which says what the videos are. Joined and",
    f"disturbed by {joined}; a boundary counts",
    f"as found within {TOLERANCE} frames.",
    "",
    "| detector | boundaries | found | matched | precision | recall | F1 |",
    "| --- | --- | --- | --- | --- | --- | --- |",
  ]
  missed, rows = False, []
  for name, c in counts.items():
    precision, recall = c["matched"] / c["found"], c["matched"] / c["true"]
    f1 = 2 * precision * recall / (precision + recall)
    missed |= f1 < BARS[name]
    rows.append({"detector": name, **c, "precision": precision, "recall": recall, "f1": f1})
    lines.append(
      f"| {name} | {c['true']} | {c['found']} | {c['matched']} | {precision:.3f} | {recall:.3f} | {f1:.3f} |"
    )
  if len(detectors) == len(BARS):
    results.write(HERE, "curate_shots", "\n".join([*lines, ""]), rows)
  else:
    print("\n".join(lines))
  return int(missed)


if __name__ == "__main__":
  sys.exit(main())
