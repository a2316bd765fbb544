"""Writes a small corpus of real media files with exact captions, for a first run on a laptop.

  python -m data.samples --output /tmp/samples

writes clips of one moving shape (mp4, some avi and webm), stills (png and jpg), real clips and
photographs from installed packages, `manifest.jsonl` and `LICENSES.md`. With --scenes=showcase,
captions have two objects, speeds, bounces, occlusion and backgrounds, and all clips are mp4, all
stills png. The same seed gives the same files.
"""

import functools
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.samples import real_media, shapes, showcase
from walt_t5x.config import programs
from walt_t5x.files import local_folders, storage

MANIFEST = "manifest.jsonl"
# Held-out captions that are listed, at most.
_NUM_HELD_OUT = 256

Scene = shapes.Scene | showcase.ShowcaseScene


@dataclass(frozen=True, kw_only=True)
class SceneKind:
  """How scenes are sampled and rendered, and the formats of their files with their shares."""

  # (rng, count, *, moving, training) -> what each of `count` scenes shows, balanced.
  vocabulary: Callable[..., Iterator[Any]]
  sample: Callable[[np.random.Generator, Any], Scene]
  # (scene, *, num_frames, size) -> uint8 [T, size, size, 3].
  render: Callable[..., np.ndarray]
  clip_suffixes: dict[str, float]
  still_suffixes: tuple[str, ...]
  # (rng, count) -> captions of clips that are in no training row.
  held_out_captions: Callable[[np.random.Generator, int], list[str]]


def _sample_shape(rng: np.random.Generator, words: tuple[str, str, str | None]) -> shapes.Scene:
  color, shape, direction = words
  return shapes.sample_scene(rng, color=color, shape=shape, direction=direction)


def _held_out_shapes(rng: np.random.Generator, count: int) -> list[str]:
  words = shapes.balanced_vocabulary(rng, 72, moving=True)
  held_out = (chosen for chosen in words if shapes.held_out(*chosen))
  return [_sample_shape(rng, chosen).caption for chosen in held_out][:count]


SCENES = {
  "shapes": SceneKind(
    vocabulary=shapes.balanced_vocabulary,
    sample=_sample_shape,
    render=shapes.render,
    clip_suffixes={".mp4": 0.8, ".avi": 0.1, ".webm": 0.1},
    still_suffixes=(".png", ".jpg"),
    held_out_captions=_held_out_shapes,
  ),
  "showcase": SceneKind(
    vocabulary=showcase.balanced_vocabulary,
    sample=showcase.sample_scene,
    render=showcase.render,
    clip_suffixes={".mp4": 1.0},
    still_suffixes=(".png",),
    held_out_captions=showcase.held_out_captions,
  ),
}


@dataclass(frozen=True, kw_only=True)
class RenderJob:
  """One file to render: the scene, one of the `kind`, its path, split and number of frames."""

  kind: SceneKind
  uri: str
  split: str
  scene: Scene
  num_frames: int
  # Among the files of its kind and split.
  number: int

  @property
  def row(self) -> dict[str, object]:
    """The manifest row."""
    row: dict[str, object] = {
      "uri": self.uri,
      "captions": [self.scene.caption],
      "split": self.split,
      "modality": "image" if self.num_frames == 1 else "video",
      "license": "CC0-1.0",
      "source": "rendered by data.samples",
      "corpus": "rendered",
      "number": self.number,
    }
    if self.scene.label >= 0:
      row["label"] = self.scene.label
    return row


def validation_count(total: int, fraction: float) -> int:
  """Number of held-out files: the fraction rounded up to a multiple of 8, at most half of all files.

  640 clips and 128 stills at 0.1 hold out 64 and 16.
  """
  if not 0 <= fraction <= 0.5:
    raise ValueError(f"--validation_fraction is between 0 and 0.5, got {fraction}.")
  return min(math.ceil(round(total * fraction / 8, 6)) * 8, total // 2)


def plan(
  *,
  num_clips: int,
  num_stills: int,
  num_frames: int,
  seed: int,
  validation_fraction: float,
  scenes: str = "shapes",
) -> list[RenderJob]:
  """All files of the rendered corpus; a pure function of the arguments."""
  if num_clips < 0 or num_stills < 0 or (num_clips and num_frames < 2):
    raise ValueError(
      "Counts must not be negative and clips need at least 2 frames, got "
      f"{num_clips=}, {num_stills=}, {num_frames=}."
    )
  source = SCENES[scenes]
  jobs = []
  for kind, (folder, total) in enumerate((("clips", num_clips), ("stills", num_stills))):
    held_out = validation_count(total, validation_fraction)
    for part, (split, count) in enumerate((("train", total - held_out), ("validation", held_out))):
      moving = folder == "clips"
      # Every file has its own random stream: a larger corpus begins with the smaller one's scenes.
      order = np.random.default_rng([seed, kind, part])
      vocabulary = source.vocabulary(order, count, moving=moving, training=split == "train")
      for index, words in enumerate(vocabulary):
        rng = np.random.default_rng([seed, kind, part, index])
        if moving:
          suffix = str(
            rng.choice(list(source.clip_suffixes), p=list(source.clip_suffixes.values()))
          )
        else:
          suffix = source.still_suffixes[index % len(source.still_suffixes)]
        scene = source.sample(rng, words)
        jobs.append(
          RenderJob(
            kind=source,
            uri=f"{folder}/{split}_{index:05d}{suffix}",
            split=split,
            scene=scene,
            num_frames=num_frames if moving else 1,
            number=index,
          )
        )
  return jobs


def write_job(job: RenderJob, output: Path, *, size: int, fps: float) -> list[dict[str, object]]:
  """Renders and encodes one file; returns its manifest row."""
  from PIL import Image

  from walt_t5x.media import writing

  path = output / job.uri
  frames = job.kind.render(job.scene, num_frames=job.num_frames, size=size)
  if path.suffix in job.kind.clip_suffixes:
    writing.write_video(path, frames, fps=fps, crf=8)
  else:
    # 4:4:4: at this size, subsampled chroma would blur the edges of the shape. PNG ignores both options.
    Image.fromarray(frames[0]).save(path, quality=95, subsampling=0)
  return [job.row]


def write_corpus(output: storage.PathLike, **options: Any) -> list[dict[str, object]]:
  """`write_files` to a folder that may be an address, where the manifest arrives last."""
  with local_folders.written_locally(output, last=MANIFEST) as folder:
    return write_files(folder, **options)


def write_files(
  output: Path,
  *,
  scenes: str = "shapes",
  num_clips: int = 640,
  num_stills: int = 128,
  size: int = 64,
  num_frames: int = 9,
  fps: float = 8.0,
  seed: int = 0,
  validation_fraction: float = 0.1,
  num_prompts: int = 72,
  real: bool = True,
  require_real: bool = False,
  workers: int | None = None,
) -> list[dict[str, object]]:
  """Writes the corpus, LICENSES.md, prompts, held-out captions and, last, the manifest; returns its rows.

  Of "showcase" also image_requests.jsonl, clips to generate from held-out stills.

  Args:
    output: folder, created if missing; existing files with the same names are replaced.
    scenes: of SCENES. The prompts of "shapes" are balanced over all captions, held-out ones included; those of
      "showcase" are captions of training clips and held-out captions in turn.
    num_clips, num_stills: clips of moving shapes and stills, training and validation together.
    size: edge in pixels, even.
    num_frames, fps: frames per clip and per second.
    seed: random seed.
    validation_fraction: fraction of clips and of stills that is held out (see `validation_count`).
    num_prompts: captions in prompts.txt, at most; 72 of "shapes" have every caption once.
    real: whether to add real clips and photographs to the training split.
    require_real: whether to fail if a package with real media is missing, instead of omitting its media.
    workers: number of threads; one per core by default.

  Raises:
    real_media.MissingMediaError: with `require_real`, before anything is written.
  """
  from tqdm import tqdm

  if size % 2:
    raise ValueError(f"--size must be even for 4:2:0 video, got {size}.")
  jobs = plan(
    num_clips=num_clips,
    num_stills=num_stills,
    num_frames=num_frames,
    seed=seed,
    validation_fraction=validation_fraction,
    scenes=scenes,
  )
  found, missing = real_media.jobs(output) if real else ([], [])
  if missing and require_real:
    raise real_media.MissingMediaError("\n".join(missing))
  for message in missing:
    print(f"Omitted: {message}", file=sys.stderr)

  for folder in ("clips", "stills"):
    (output / folder).mkdir(parents=True, exist_ok=True)
  # Rendering and encoding release the GIL most of the time, so threads suffice.
  # Real sources come first: each is one long task.
  tasks = [write for _, write in found] + [
    functools.partial(write_job, job, output, size=size, fps=fps) for job in jobs
  ]
  with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
    done = pool.map(lambda task: task(), tasks)
    parts = list(tqdm(done, total=len(tasks), desc="sample media", unit="file", disable=None))
  rows = [row for part in parts[len(found) :] + parts[: len(found)] for row in part]
  licenses = real_media.licenses_markdown([medium for medium, _ in found])
  (output / "LICENSES.md").write_text(licenses, encoding="utf-8")
  held_out = SCENES[scenes].held_out_captions(np.random.default_rng([seed, 3]), _NUM_HELD_OUT)
  prompts = (
    evaluation_prompts(seed, num_prompts)
    if scenes == "shapes"
    else mixed_prompts(jobs, held_out, num_prompts)
  )
  for name, captions in (
    ("prompts.txt", prompts),
    ("held_out_captions.txt", held_out),
  ):
    if captions:
      (output / name).write_text("\n".join(captions) + "\n", encoding="utf-8")
  if scenes == "showcase":
    storage.write(output / "image_requests.jsonl", image_requests(jobs))
  lines = "".join(json.dumps(row) + "\n" for row in rows)
  storage.write(output / MANIFEST, lines)
  return rows


def evaluation_prompts(seed: int, count: int) -> list[str]:
  """Captions to generate from, balanced over colors and directions like the corpus."""
  rng = np.random.default_rng([seed, 2])
  vocabulary = shapes.balanced_vocabulary(rng, count, moving=True)
  return [
    shapes.sample_scene(rng, color=color, shape=shape, direction=direction).caption
    for color, shape, direction in vocabulary
  ]


def mixed_prompts(jobs: Sequence[RenderJob], held_out: Sequence[str], count: int) -> list[str]:
  """Different captions of training clips and held-out captions in turn, at most `count`."""
  clips = (job for job in jobs if job.split == "train" and job.num_frames > 1)
  training = dict.fromkeys(job.scene.caption for job in clips)
  return [caption for pair in zip(training, held_out) for caption in pair][:count]


def image_requests(jobs: Sequence[RenderJob]) -> str:
  """Lines of JSON for `generate --requests`: clips that start from held-out stills."""
  stills = (job for job in jobs if job.split == "validation" and job.num_frames == 1)
  rows = (
    (job.uri, showcase.continued_caption(job.scene))
    for job in stills
    if isinstance(job.scene, showcase.ShowcaseScene)
  )
  return "".join(
    json.dumps({"image": uri, "prompt": caption}) + "\n" for uri, caption in rows if caption
  )


def main(argv: Sequence[str] | None = None) -> None:
  """Writes the corpus and prints the number of files of each kind."""
  parser = programs.parser("data.samples", __doc__)
  parser.add_argument("--output", required=True, help="output folder, or an address")
  parser.add_argument(
    "--scenes", choices=list(SCENES), default="shapes", help="captions and scenes (default shapes)"
  )
  parser.add_argument("--num_clips", type=int, default=640, help="moving shapes (default 640)")
  parser.add_argument("--num_stills", type=int, default=128, help="stills (default 128)")
  parser.add_argument("--size", type=int, default=64, help="edge in pixels (default 64)")
  parser.add_argument("--num_frames", type=int, default=9, help="frames per clip (default 9)")
  parser.add_argument("--fps", type=float, default=8.0, help="frames per second (default 8)")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument(
    "--validation_fraction",
    type=float,
    default=0.1,
    help="fraction held out, rounded up to a multiple of 8 (default 0.1)",
  )
  parser.add_argument("--num_prompts", type=int, default=72, help="in prompts.txt (default 72)")
  real = parser.add_mutually_exclusive_group()
  real.add_argument("--no_real", action="store_false", dest="real", help="rendered media only")
  real.add_argument(
    "--require_real",
    action="store_true",
    help="fail if a package with real media is missing (default: print a message and continue)",
  )
  args = parser.parse_args(argv)
  with programs.user_errors("data.samples"):
    rows = write_corpus(**vars(args))
  counts = Counter((row["split"], row["corpus"], row["modality"]) for row in rows)
  for (split, corpus, modality), count in sorted(counts.items()):
    print(f"{count:6d} {corpus} {modality}s in {split}")
  print(f"{len(rows):6d} files in all; manifest: {storage.join(args.output, MANIFEST)}")
