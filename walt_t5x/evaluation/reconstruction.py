"""Reconstructed clips as files that a protocol scores.

inputs/NAME.mkv            input of the tokenizer, lossless; a .png for a clip of one frame
reconstructions/NAME.mkv   its reconstruction, lossless
sidecars/NAME.json         written last: a clip is finished if it exists
run.json                   what determines the files (`generation.run_identity`)
manifest.jsonl             one line per clip, once all are finished
"""

import contextlib
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from walt_t5x.evaluation import media_files
from walt_t5x.files import storage
from walt_t5x.files.paths import AnyPath
from walt_t5x.media.writing import LOSSLESS_SUFFIX, lossless_writer, write_picture
from walt_t5x.metrics.caption_counts import CaptionAccuracy
from walt_t5x.metrics.pixel_distances import psnr_of_error
from walt_t5x.metrics.scene_captions import names_shape, score

MANIFEST = "manifest.jsonl"
SIDECARS = "sidecars/**/*.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOutClip:
  """A clip to reconstruct or to compare with.

  Attributes:
    name: name of its files, without suffix.
    uri: its source.
    frames: yields [H, W, 3] uint8 each, in order.
    caption: the first one of a cached clip.
  """

  name: str
  uri: str
  fps: float
  frames: Callable[[], Iterable[np.ndarray]]
  caption: str = ""


class ReconstructionFolder:
  """Reads and writes the files of one run."""

  def __init__(self, path: AnyPath):
    self.path = path
    self.inputs, self.reconstructions = path / "inputs", path / "reconstructions"
    self._sidecars = path / "sidecars"

  def sidecar(self, name: str) -> AnyPath:
    """The sidecar of a clip."""
    return self._sidecars / f"{name}.json"

  def finished(self, name: str) -> bool:
    """Whether a clip exists with both its files."""
    file = self.sidecar(name)
    if not file.is_file():
      return False
    facts = storage.read_json(file)
    return all((self.path / facts[key]).is_file() for key in ("input", "reconstruction"))

  def write(
    self, clips: Sequence[HeldOutClip], groups: Iterable[tuple[np.ndarray, np.ndarray]]
  ) -> None:
    """Writes clips as `PixelCodec.reconstruct` yields groups; the files are written atomically, the sidecars last."""
    groups = iter(groups)
    # A clip of one frame is one group of one frame.
    ahead = list(itertools.islice(groups, 2))
    picture = len(ahead) == 1 and ahead[0][0].shape[1] == 1
    suffix = ".png" if picture else LOSSLESS_SUFFIX
    frames, height, width, error = 0, 0, 0, np.zeros(len(clips))
    with contextlib.ExitStack() as stack:

      def opened(folder: AnyPath, clip: HeldOutClip) -> Callable[[np.ndarray], None]:
        file = folder / f"{clip.name}{suffix}"
        if picture:
          return lambda x: write_picture(file, x[0])
        return stack.enter_context(lossless_writer(file, fps=clip.fps))

      writers = [(opened(self.inputs, c), opened(self.reconstructions, c)) for c in clips]
      for inputs, made in itertools.chain(ahead, groups):
        for (write_input, write_reconstruction), x, y in zip(writers, inputs, made):
          write_input(x)
          write_reconstruction(y)
        difference = inputs.astype(np.float64) - made
        error += np.square(difference / 255).sum(axis=(1, 2, 3, 4))
        frames += inputs.shape[1]
        height, width = inputs.shape[2:4]
    for row, clip in enumerate(clips):
      mse = error[row] / (frames * height * width * 3)
      storage.write_json(
        self.sidecar(clip.name),
        {
          "name": clip.name,
          "uri": clip.uri,
          "fps": clip.fps,
          "caption": clip.caption,
          "shape": [frames, height, width, 3],
          "psnr": float(psnr_of_error(mse)),
          "input": f"{self.inputs.name}/{clip.name}{suffix}",
          "reconstruction": f"{self.reconstructions.name}/{clip.name}{suffix}",
        },
        seal=True,
      )

  def facts(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The sidecars of finished clips."""
    for name in names:
      yield storage.read_json(self.sidecar(name))

  def caption_accuracy(self, names: Sequence[str]) -> dict[str, CaptionAccuracy]:
    """Caption accuracy of the inputs and of the reconstructions; {} unless all captions name a color and a shape.

    No clip that is decoded from generated latents is expected to be closer to its caption than the reconstructions.
    """
    if not all(names_shape(row.get("caption", "")) for row in self.facts(names)):
      return {}
    return {
      f"{key}s": score(
        (media_files.read_file(self.path / row[key]) / np.float32(255), row["caption"])
        for row in self.facts(names)
      )
      for key in ("input", "reconstruction")
    }

  def write_manifest(self, names: Sequence[str]) -> AnyPath:
    """Writes one line per clip: its sidecar, with the reconstruction as `uri` and the original as `source`."""
    lines = []
    for row in self.facts(names):
      row["source"] = row.pop("uri")
      modality = "image" if row["shape"][0] == 1 else "video"
      lines.append(json.dumps({"uri": row["reconstruction"], "modality": modality} | row))
    storage.write(self.path / MANIFEST, "".join(line + "\n" for line in lines))
    return self.path / MANIFEST
