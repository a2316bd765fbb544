"""Converts latents to bytes of pixels and back with the tokenizer, a few clips and a few frames at a time."""

from collections.abc import Iterator
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
    vae: the tokenizer.
    params: its parameters.
    rows: clips at a time.
    group: latent frames at a time, after the first.
    sharding: sharding of a group's clips over the devices; None leaves them on the default device.

  Raises:
    ValueError: `rows` is not positive.
  """

  def __init__(
    self, vae: CausalVae, params: Params, *, rows: int = 8, group: int = 1, sharding: Any = None
  ):
    if rows < 1:
      raise ValueError(f"PixelCodec: got {rows=}, expected at least 1 clip at a time.")
    self.vae, self.rows, self._sharding = vae, rows, sharding
    everywhere = None
    if sharding is not None:
      everywhere = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    self._stream = VaeStream(vae, jax.device_put(params, everywhere), group=group)

  def decode(self, latents: Any) -> np.ndarray:
    """Latents [B, t, h, w, c] of the tokenizer -> frames [B, 1 + (t - 1) f_t, H, W, 3] uint8."""
    parts = []
    for part, kept in self._parts(np.asarray(latents, np.float32)):
      groups = self._stream.decode(self._frames(part))
      frames = [to_uint8(np.asarray(group, np.float32)) for group in groups]
      parts.append(np.concatenate(frames, axis=1)[:kept])
    return np.concatenate(parts)

  def encode(self, frames: np.ndarray) -> np.ndarray:
    """Frames [B, 1 + k f_t, H, W, 3] uint8 -> the mean latents [B, 1 + k, h, w, c], float32."""
    parts = []
    for part, kept in self._parts(to_float(frames)):
      groups = self._stream.encode(self._frames(part))
      latents = [np.asarray(group.mean, np.float32) for group in groups]
      parts.append(np.concatenate(latents, axis=1)[:kept])
    return np.concatenate(parts)

  def _frames(self, clips: np.ndarray) -> Iterator[Any]:
    for i in range(clips.shape[1]):
      frame = clips[:, i]
      yield frame if self._sharding is None else jax.device_put(frame, self._sharding)

  def _parts(self, clips: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    for start in range(0, len(clips), self.rows):
      part = clips[start : start + self.rows]
      kept = len(part)
      # Padded with the last clip.
      yield np.concatenate([part, np.repeat(part[-1:], self.rows - kept, axis=0)]), kept
