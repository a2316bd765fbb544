"""Reconstructs clips with the tokenizer and writes files that a protocol scores.

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
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from walt_t5x.files import storage
from walt_t5x.media.pixels import to_float, to_uint8
from walt_t5x.media.writing import LOSSLESS_SUFFIX, lossless_writer, write_picture
from walt_t5x.metrics.pixel_distances import psnr_of_error
from walt_t5x.types import Params
from walt_t5x.vae.autoencoder import CausalVae
from walt_t5x.vae.streaming import VaeStream

MANIFEST = "manifest.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOutClip:
  """A clip to reconstruct.

  Attributes:
    name: name of its files, without suffix.
    uri: its source.
    fps: frame rate.
    frames: yields [H, W, 3] uint8 each, in order.
    length: number of frames, if it is known before they are read.
  """

  name: str
  uri: str
  fps: float
  frames: Callable[[], Iterable[np.ndarray]]
  length: int | None = None


class Reconstructor:
  """The tokenizer's encoder and decoder, applied to a group of latent frames at a time.

  Args:
    vae: the tokenizer.
    params: its parameters.
    rows: clips at a time; smaller batches are padded, so that one program is compiled per size.
    group: latent frames at a time, after the first.
    mesh: mesh with an axis 'data' that the clips are sharded over; None for the default device.

  Raises:
    ValueError: `rows` is not positive.
  """

  def __init__(
    self, vae: CausalVae, params: Params, *, rows: int, group: int = 1, mesh: Any = None
  ):
    if rows < 1:
      raise ValueError(f"Reconstructor: got {rows=}, expected at least 1 clip at a time.")
    self.vae, self.rows = vae, rows
    everywhere = self._by_rows = None
    if mesh is not None:
      everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
      self._by_rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    self._stream = VaeStream(vae, jax.device_put(params, everywhere), group=group)

  def __call__(
    self, clips: Sequence[Iterable[np.ndarray]]
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(inputs, reconstructions), uint8 [B, t, H, W, 3] each, group by group; decodes the mean of the posterior.

    Args:
      clips: at most `rows`, of equal length and size; read only as far as the current group. Frames after
        1 + k temporal_factor are ignored.

    Raises:
      ValueError: there are more clips than `rows`, or pixels are not finite.
    """
    count = len(clips)
    if not 0 < count <= self.rows:
      raise ValueError(f"Reconstructor: got {count} clips, expected 1 to {self.rows}.")
    waiting: deque[np.ndarray] = deque()

    def given() -> Iterator[Any]:
      for frame in self._complete_groups(clips):
        waiting.append(frame)
        rows = np.concatenate([frame, np.repeat(frame[-1:], self.rows - count, axis=0)])
        yield jax.device_put(to_float(rows), self._by_rows)

    means = (posterior.mean for posterior in self._stream.encode(given()))
    latents = (group[:, i] for group in means for i in range(group.shape[1]))
    for video in self._stream.decode(latents):
      made = to_uint8(np.asarray(video[:count], np.float32))
      yield np.stack([waiting.popleft() for _ in range(made.shape[1])], axis=1), made

  def _complete_groups(self, clips: Sequence[Iterable[np.ndarray]]) -> Iterator[np.ndarray]:
    """Frames [B, H, W, 3] in order; stops after 1 + k temporal_factor of them."""
    pending: list[np.ndarray] = []
    first = True
    for frames in zip(*clips):
      pending.append(np.stack(frames))
      if first or len(pending) == self.vae.temporal_factor:
        yield from pending
        pending, first = [], False


class ReconstructionFolder:
  """Reads and writes the files of one run."""

  def __init__(self, path: Path):
    self.path = path
    self.inputs, self.reconstructions = path / "inputs", path / "reconstructions"
    self._sidecars = path / "sidecars"

  def sidecar(self, name: str) -> Path:
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
    """Writes clips as their groups are computed; each one's files are written atomically, its sidecar last.

    Args:
      clips: one per batch element.
      groups: output of `Reconstructor`.
    """
    groups = iter(groups)
    # A clip of one frame is one group of one frame.
    ahead = list(itertools.islice(groups, 2))
    picture = len(ahead) == 1 and ahead[0][0].shape[1] == 1
    suffix = ".png" if picture else LOSSLESS_SUFFIX
    frames, height, width, error = 0, 0, 0, np.zeros(len(clips))
    with contextlib.ExitStack() as stack:

      def opened(folder: Path, clip: HeldOutClip) -> Callable[[np.ndarray], None]:
        file = folder / f"{clip.name}{suffix}"
        if picture:
          return lambda x: write_picture(file, x[0])
        return stack.enter_context(lossless_writer(file, fps=clip.fps))

      writers = [(opened(self.inputs, c), opened(self.reconstructions, c)) for c in clips]
      for given, made in itertools.chain(ahead, groups):
        for (write_input, write_reconstruction), x, y in zip(writers, given, made):
          write_input(x)
          write_reconstruction(y)
        difference = given.astype(np.float64) - made
        error += np.square(difference / 255).sum(axis=(1, 2, 3, 4))
        frames += given.shape[1]
        height, width = given.shape[2:4]
    for row, clip in enumerate(clips):
      mse = error[row] / (frames * height * width * 3)
      storage.write_json(
        self.sidecar(clip.name),
        {
          "name": clip.name,
          "uri": clip.uri,
          "fps": clip.fps,
          "shape": [frames, height, width, 3],
          "psnr": float(psnr_of_error(mse)),
          "input": f"{self.inputs.name}/{clip.name}{suffix}",
          "reconstruction": f"{self.reconstructions.name}/{clip.name}{suffix}",
        },
      )

  def facts(self, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The sidecars of finished clips."""
    for name in names:
      yield storage.read_json(self.sidecar(name))

  def write_manifest(self, names: Sequence[str]) -> Path:
    """Writes one line per clip: its sidecar, with the reconstruction as `uri` and the original as `source`."""
    lines = []
    for row in self.facts(names):
      row["source"] = row.pop("uri")
      modality = "image" if row["shape"][0] == 1 else "video"
      lines.append(json.dumps({"uri": row["reconstruction"], "modality": modality} | row))
    storage.write(self.path / MANIFEST, "".join(line + "\n" for line in lines))
    return self.path / MANIFEST
