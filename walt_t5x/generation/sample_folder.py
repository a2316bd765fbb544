"""A folder of generated samples: video files, a JSON sidecar each, one manifest, scores and the gallery."""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from walt_t5x import gallery, video_io

SCORES = "scores.json"
GALLERY = "gallery.html"

# Clips smaller than this edge are enlarged by whole pixels, so that chroma subsampling leaves their colours alone.
_MIN_EDGE = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredSample:
  """One sample on disk.

  Attributes:
    index: its number.
    prompt: what it should show.
    files: stage name -> video file, base first.
    sidecar: everything that is known about it.
  """

  index: int
  prompt: str
  files: Mapping[str, Path]
  sidecar: Mapping[str, Any]


class SampleFolder:
  """Reads and writes one folder."""

  def __init__(self, path: str | os.PathLike[str]):
    self.path = Path(path)

  def write(
    self,
    index: int,
    *,
    prompt: str,
    videos: Mapping[str, np.ndarray],
    fps: float,
    seed: int,
    steps: Mapping[str, int],
    fingerprints: Mapping[str, str],
  ) -> None:
    """Writes one sample: `<index>_<stage>.mp4` for each stage and `<index>.json`.

    Args:
      index: its number.
      prompt: what it should show.
      videos: stage name -> pixels [T, H, W, 3] in [0, 1], base first.
      fps: frame rate of the files.
      seed: of the noise.
      steps: stage name -> training step of its checkpoint.
      fingerprints: of the models.
    """
    files = {}
    for stage, video in videos.items():
      name = f"{index:05d}_{stage}.mp4"
      scale = max(1, -(-_MIN_EDGE // min(video.shape[1:3])))
      video_io.write_video(self.path / name, video, fps=fps, scale=scale)
      files[stage] = {"file": name, "shape": list(video.shape), "scale": scale}
    sidecar = {
      "index": index,
      "prompt": prompt,
      "seed": seed,
      "fps": fps,
      "stages": files,
      "steps": dict(steps),
      "fingerprints": dict(fingerprints),
    }
    _write_json(self.path / f"{index:05d}.json", sidecar)

  def samples(self) -> Iterator[StoredSample]:
    """The samples in order of their numbers.

    Raises:
      FileNotFoundError: if there are none.
    """
    sidecars = sorted(self.path.glob("[0-9]*.json"))
    if not sidecars:
      raise FileNotFoundError(
        f"no samples in {self.path}: expected the --output folder of `python -m walt_t5x.generate`"
      )
    for file in sidecars:
      sidecar = json.loads(file.read_text(encoding="utf-8"))
      yield StoredSample(
        index=sidecar["index"],
        prompt=sidecar["prompt"],
        files={stage: self.path / entry["file"] for stage, entry in sidecar["stages"].items()},
        sidecar=sidecar,
      )

  def read(self, sample: StoredSample, stage: str) -> np.ndarray:
    """Pixels [T, H, W, 3] in [0, 1] of a stage's file, at the size at which they were generated."""
    entry = sample.sidecar["stages"][stage]
    frames = video_io.read_video(sample.files[stage]).frames
    frames, scale = np.asarray(frames, np.float32), entry["scale"]
    if frames.max() > 1:
      frames = frames / 255
    t, h, w, _ = entry["shape"]
    frames = frames[:t, : h * scale, : w * scale]
    return frames.reshape(t, h, scale, w, scale, 3).mean((2, 4))

  def write_scores(self, scores: Mapping[str, Any]) -> None:
    """Keeps the result of an evaluation beside the samples; the gallery shows it."""
    _write_json(self.path / SCORES, scores)

  def write_gallery(self, *, title: str = "Generated videos") -> Path:
    """Writes the HTML page, with the verdicts of `scores.json` where there is one."""
    scores_file = self.path / SCORES
    verdicts = {}
    if scores_file.exists():
      verdicts = json.loads(scores_file.read_text(encoding="utf-8")).get("verdicts", {})

    def card(sample: StoredSample) -> gallery.GalleryItem:
      return gallery.GalleryItem(
        prompt=sample.prompt,
        stages=[
          gallery.GalleryStage(
            name=stage, frames=self.read(sample, stage), fps=sample.sidecar["fps"]
          )
          for stage in sample.files
        ],
        seed=sample.sidecar["seed"],
        step=next(iter(sample.sidecar["steps"].values())),
        verdict=verdicts.get(str(sample.index), {}),
      )

    return gallery.write_gallery(self.path / GALLERY, map(card, self.samples()), title=title)


def _write_json(path: Path, tree: Mapping[str, Any]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_suffix(".tmp")
  temporary.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
  os.replace(temporary, path)
