"""A folder of generated samples: files of each stage, a JSON sidecar per sample, a manifest, scores and the gallery.

run.json         what determines the samples (`run_identity`)
00012_base.mp4   a stage's clip; .webm, .gif, _frames/ (PNG), .npy (latents) by --formats
00012.json       the sample's sidecar, written last: a sample is finished if it exists
manifest.jsonl   one line per sample, once all are finished
gallery.html     a page with all samples, offline
"""

import collections
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from walt_t5x.files import storage
from walt_t5x.files.damage import Damaged
from walt_t5x.files.paths import AnyPath, as_path
from walt_t5x.generation import sample_files
from walt_t5x.html import gallery

SCORES = "scores.json"
GALLERY = "gallery.html"
MANIFEST = "manifest.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredSample:
  """One sample on disk.

  Attributes:
    files: stage -> the best file to read, base first.
    sidecar: all metadata.
    verdict: stage -> element of the prompt -> whether the clip shows it; {} if the folder was not scored.
  """

  index: int
  prompt: str
  files: Mapping[str, AnyPath]
  sidecar: Mapping[str, Any]
  verdict: Mapping[str, Mapping[str, bool]] = dataclasses.field(default_factory=dict)

  def playable(self, stage: str) -> AnyPath | None:
    """The stage's file that browsers play, or None."""
    best = self.files[stage]
    names = self.sidecar["stages"][stage].get("files", {best.suffix[1:]: best.name})
    found = (names[kind] for kind in ("mp4", "webm") if kind in names)
    return next((best.parent / name for name in found), None)


class SampleFolder:
  """Reads and writes one folder, local or in an object store."""

  def __init__(self, path: str | os.PathLike[str]):
    self.path = as_path(path)

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
    formats: Sequence[str] = ("mp4",),
    latents: Mapping[str, np.ndarray] | None = None,
    details: Mapping[str, Any] | None = None,
    written: Mapping[str, Any] | None = None,
  ) -> None:
    """Writes one sample, its sidecar last.

    Args:
      videos: stage name -> pixels [T, H, W, 3], uint8 or in [0, 1], base first.
      steps: stage name -> training step of its checkpoint.
      fingerprints: model -> fingerprint of its weights.
      formats: some of `sample_files.FORMATS`.
      latents: stage name -> raw latents, for the format "latents".
      details: additional fields of the sidecar.
      written: stage name -> result of `write_stage`, for stages whose files exist.
    """
    written, latents = written or {}, latents or {}
    stages = {
      stage: written[stage]
      if stage in written
      else self.write_stage(
        index, stage, video, fps=fps, formats=formats, latents=latents.get(stage)
      )
      for stage, video in videos.items()
    }
    sidecar = {
      "index": index,
      "prompt": prompt,
      "seed": seed,
      "fps": fps,
      "stages": stages,
      "steps": dict(steps),
      "fingerprints": dict(fingerprints),
      **(details or {}),
    }
    storage.write_json(self.sidecar(index), sidecar, seal=True)

  def write_stage(
    self,
    index: int,
    stage: str,
    video: np.ndarray,
    *,
    fps: float,
    formats: Sequence[str] = ("mp4",),
    latents: np.ndarray | None = None,
  ) -> dict[str, Any]:
    """Writes the files of a stage of a sample; returns its entry in the sidecar. The arguments are those of `write`."""
    path = self.path / f"{index:05d}_{stage}"
    files = {
      name: sample_files.write_clip(path, video, format=name, fps=fps)
      for name in sample_files.READABLE
      if name in formats
    }
    best = next(iter(files))
    entry = {
      "file": files[best],
      "shape": list(video.shape),
      "scale": sample_files.scale_of(video, best),
    }
    if sample_files.LATENTS in formats and latents is not None:
      files[sample_files.LATENTS] = sample_files.write_latents(path, latents)
    return entry | {
      "files": files,
      "sha256": sample_files.clip_sha256(self.path / files[best]),
    }

  def sidecar(self, index: int) -> AnyPath:
    """The path of a sample's sidecar."""
    return self.path / f"{index:05d}.json"

  def finished(self, index: int) -> bool:
    """Whether a sample exists with all its files."""
    file = self.sidecar(index)
    if not file.exists():
      return False
    stages = storage.read_json(file)["stages"].values()
    names = [name for stage in stages for name in stage.get("files", {}).values()]
    return all((self.path / name).exists() for name in names)

  def delete(self, index: int) -> None:
    """Deletes a sample if it exists, its sidecar first; folders of PNG frames stay, empty."""
    file = self.sidecar(index)
    if not file.exists():
      return
    stages = storage.read_json(file)["stages"].values()
    storage.delete(file)
    for path in [self.path / name for stage in stages for name in stage["files"].values()]:
      for part in sorted(path.glob("*.png")) if path.is_dir() else [path]:
        storage.delete(part)

  def samples(self) -> Iterator[StoredSample]:
    """The samples in order of their numbers, with the verdicts of `scores.json` if it exists.

    Raises:
      FileNotFoundError: there are none.
    """
    sidecars = sorted(self.path.glob("[0-9]*.json"), key=lambda file: int(file.stem))
    if not sidecars:
      raise FileNotFoundError(
        f"no samples in {self.path}: expected the --output folder of `python -m walt_t5x.generate`"
      )
    scores = self.path / SCORES
    verdicts = storage.read_json(scores).get("verdicts", {}) if scores.exists() else {}
    for file in sidecars:
      sidecar = storage.read_json(file)
      verdict = verdicts.get(str(sidecar["index"]), {})
      yield StoredSample(
        index=sidecar["index"],
        prompt=sidecar["prompt"],
        files={stage: self.path / entry["file"] for stage, entry in sidecar["stages"].items()},
        sidecar=sidecar,
        # In files of earlier versions, the verdicts of all stages are next to each other.
        verdict={stage: found for stage, found in verdict.items() if isinstance(found, dict)},
      )

  def read(self, sample: StoredSample, stage: str) -> np.ndarray:
    """Pixels [T, H, W, 3] in [0, 1] of a stage's file, at the size at which they were generated.

    Raises:
      Damaged: the file changed after it was written.
    """
    entry, file = sample.sidecar["stages"][stage], sample.files[stage]
    # Sidecars of earlier versions have no digest.
    if "sha256" in entry and sample_files.clip_sha256(file) != entry["sha256"]:
      raise Damaged(
        f"{file} was changed after it was written: its sha256 is not that of {self.sidecar(sample.index)}. Delete both "
        "and run the same generate command again."
      )
    return sample_files.read_clip(sample.files[stage], entry["shape"], entry["scale"])

  def write_manifest(self) -> AnyPath:
    """Writes one line per sample: its number, prompt, files by stage and conditioning media."""
    lines = []
    for sample in self.samples():
      row = {
        k: sample.sidecar[k]
        for k in ("index", "prompt", "label", "given")
        if sample.sidecar.get(k) is not None
      }
      row["files"] = {
        stage: entry.get("files", {"mp4": entry["file"]})
        for stage, entry in sample.sidecar["stages"].items()
      }
      lines.append(json.dumps(row))
    storage.write(self.path / MANIFEST, "\n".join(lines) + "\n")
    return self.path / MANIFEST

  def write_scores(self, scores: Mapping[str, Any]) -> None:
    """Saves the result of an evaluation with the samples; the gallery shows it."""
    storage.write_json(self.path / SCORES, scores)

  def shown_clips(self, sample: StoredSample) -> list[gallery.ShownClip]:
    """The clips of a sample as pages show them, base first."""
    return [
      gallery.ShownClip(
        name=stage,
        frames=self.read(sample, stage),
        fps=sample.sidecar["fps"],
        file=file.name,
        playable=sample.playable(stage),
      )
      for stage, file in sample.files.items()
    ]

  def gallery_items(self, limit: int | None = None) -> Iterator[gallery.GalleryItem]:
    """The first `limit` samples as cards of a page, with their verdicts."""
    samples = list(self.samples())
    clips = collections.Counter(sample.prompt for sample in samples)
    shown = collections.Counter[str]()
    for sample in samples[:limit]:
      prompt = sample.prompt
      shown[prompt] += 1
      part = f"{shown[prompt]} of {clips[prompt]} of this prompt" if clips[prompt] > 1 else None
      yield gallery.GalleryItem(
        prompt=prompt,
        number=sample.index,
        stages=self.shown_clips(sample),
        seed=sample.sidecar["seed"],
        step=next(iter(sample.sidecar["steps"].values())),
        verdict=sample.verdict,
        details={"clip": part},
      )

  def write_gallery(self, *, title: str = "Generated videos", limit: int | None = None) -> AnyPath:
    """Writes the HTML page for the first `limit` samples."""
    return gallery.write_gallery(self.path / GALLERY, self.gallery_items(limit), title=title)
