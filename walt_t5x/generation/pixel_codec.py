"""Converts latents to bytes of pixels and back with the tokenizer, a few clips and a few frames at a time."""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from walt_t5x.media.pixels import to_float, to_uint8
from walt_t5x.types import Params
from walt_t5x.vae.autoencoder import CausalVae
from walt_t5x.vae.streaming import VaeStream


class PixelCodec:
  """The tokenizer for batches of any size, in the memory of `rows` clips and `group` latent frames.

  Every call to the device has `rows` clips, so few programs are compiled, and a clip's result does not depend on the
  number of clips in the batch.

  Args:
    rows: clips at a time; smaller batches are padded.
    group: latent frames at a time, after the first.
    mesh: shards the clips over its axis 'data' if that divides `rows`; None leaves them on the default device.

  Raises:
    ValueError: `rows` is not positive.
  """

  def __init__(
    self, vae: CausalVae, params: Params, *, rows: int = 8, group: int = 1, mesh: Any = None
  ):
    if rows < 1:
      raise ValueError(f"PixelCodec: got {rows=}, expected at least 1 clip at a time.")
    self.vae, self.rows = vae, rows
    everywhere = self._sharding = None
    if mesh is not None and rows % mesh.shape["data"] == 0:
      everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
      self._sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    self._stream = VaeStream(vae, jax.device_put(params, everywhere), group=group)

  def decode(self, latents: Any) -> np.ndarray:
    """Latents [B, t, h, w, c] of the tokenizer -> frames [B, 1 + (t - 1) f_t, H, W, 3] uint8."""
    parts = []
    for part in self._parts(np.asarray(latents, np.float32)):
      groups = self._stream.decode(self._frames(part))
      frames = [to_uint8(np.asarray(group, np.float32)) for group in groups]
      parts.append(np.concatenate(frames, axis=1)[: len(part)])
    return np.concatenate(parts)

  def encode(self, frames: np.ndarray) -> np.ndarray:
    """Frames [B, 1 + k f_t, H, W, 3] uint8 -> the mean latents [B, 1 + k, h, w, c], float32."""
    parts = []
    for part in self._parts(to_float(frames)):
      groups = self._stream.encode(self._frames(part))
      latents = [np.asarray(group.mean, np.float32) for group in groups]
      parts.append(np.concatenate(latents, axis=1)[: len(part)])
    return np.concatenate(parts)

  def reconstruct(
    self, clips: Sequence[Iterable[np.ndarray]]
  ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(inputs, reconstructions), uint8 [B, t, H, W, 3] each, group by group; decodes the mean of the posterior.

    Args:
      clips: at most `rows`, of equal length and size, as frames [H, W, 3] uint8; read only as far as the current
        group. Frames after 1 + k f_t are ignored.

    Raises:
      ValueError: there are more clips than `rows`, or pixels are not finite.
    """
    count = len(clips)
    if not 0 < count <= self.rows:
      raise ValueError(f"PixelCodec: got {count} clips, expected 1 to {self.rows}.")
    waiting: deque[np.ndarray] = deque()

    def inputs() -> Iterator[Any]:
      for frame in self._complete_groups(clips):
        waiting.append(frame)
        yield self._placed(to_float(frame))

    means = (posterior.mean for posterior in self._stream.encode(inputs()))
    latents = (group[:, i] for group in means for i in range(group.shape[1]))
    for video in self._stream.decode(latents):
      made = to_uint8(np.asarray(video[:count], np.float32))
      yield np.stack([waiting.popleft() for _ in range(made.shape[1])], axis=1), made

  def _complete_groups(self, clips: Sequence[Iterable[np.ndarray]]) -> Iterator[np.ndarray]:
    """Frames [B, H, W, 3] in order; stops after 1 + k f_t of them."""
    pending: list[np.ndarray] = []
    first = True
    for frames in zip(*clips):
      pending.append(np.stack(frames))
      if first or len(pending) == self.vae.temporal_factor:
        yield from pending
        pending, first = [], False

  def _parts(self, clips: np.ndarray) -> Iterator[np.ndarray]:
    return (clips[start : start + self.rows] for start in range(0, len(clips), self.rows))

  def _frames(self, clips: np.ndarray) -> Iterator[Any]:
    return (self._placed(clips[:, i]) for i in range(clips.shape[1]))

  def _placed(self, frame: np.ndarray) -> Any:
    """One frame of each clip, padded with the last clip, on its devices."""
    frame = np.concatenate([frame, np.repeat(frame[-1:], self.rows - len(frame), axis=0)])
    return frame if self._sharding is None else jax.device_put(frame, self._sharding)
