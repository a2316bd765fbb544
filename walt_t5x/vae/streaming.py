"""Encodes and decodes a video of any length, one group of frames at a time, with the memory of one group.

Every layer is causal and normalizes each frame separately, so a group needs only the few preceding frames within
reach of a temporal kernel: k_t - s_t feature frames per convolution. They are carried from group to group, and the
result equals one call on the complete video, to rounding.

The first group starts with frame 0, which has its own latent; every later latent covers temporal_factor frames.

  for group in VaeStream(vae, params).decode(latents): writer.append(group)
"""

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from walt_t5x.types import Latents, Params, Video
from walt_t5x.vae.autoencoder import CausalVae, Posterior
from walt_t5x.vae.convolution import STREAM

# The frames that each convolution carries over, nested by module name; None before the first group.
Context = Mapping[str, Any] | None


def run_group(
  vae: CausalVae, params: Params, x: Any, context: Context, *, method: Literal["encode", "decode"]
) -> tuple[Any, Context]:
  """Encodes or decodes the next group of a stream.

  Args:
    vae, params: the autoencoder.
    x: to encode, k * temporal_factor frames, and one more if `context` is None; to decode, any number of latent frames.
    context: the context returned for the previous group; None for the first group.
    method: of `CausalVae`; raises ValueError for sizes that it rejects.

  Returns:
    The posterior or the video of the group, and the context for the next group. t latent frames give t *
    temporal_factor frames, in the first group temporal_factor - 1 fewer.
  """
  variables = {"params": params} | ({} if context is None else {STREAM: context})
  out, state = vae.apply(
    variables, x, continues=context is not None, method=method, mutable=[STREAM]
  )
  return out, state.get(STREAM, {})


class VaeStream:
  """The loops over groups, with compiled `run_group`.

  Args:
    vae: the autoencoder.
    params: its parameters; put them on the device first.
    group: latent frames per call after the first, at least 1. More is faster on an accelerator and uses more memory.
  """

  def __init__(self, vae: CausalVae, params: Params, *, group: int = 1):
    if group < 1:
      raise ValueError(f"VaeStream: got {group=}, expected at least 1 latent frame per group.")
    self._vae, self._params, self._group = vae, params, group
    # The buffers of the previous context are donated to the next one.
    self._encode, self._decode = (
      jax.jit(functools.partial(run_group, vae, method=method), donate_argnums=2)
      for method in ("encode", "decode")
    )

  def encode(self, frames: Iterable[Any]) -> Iterator[Posterior]:
    """Yields posteriors, one group of latent frames at a time.

    Args:
      frames: iterable of 1 + k * temporal_factor frames in order, each [B, H, W, 3], float in [0, 1]. It is read only
        up to the group that is being encoded.

    Yields:
      The first latent frame alone, then `group` latent frames at a time, then the rest. Raises ValueError if the frames
      end inside a latent frame.
    """
    factor = self._vae.temporal_factor
    context, seen = None, 0
    for group in self._groups(frames, factor):
      seen += len(group)
      if (seen - 1) % factor:
        break
      posterior, context = self._encode(self._params, np.stack(group, axis=1), context)
      yield posterior
    if not seen or (seen - 1) % factor:
      fits = 1 + max(seen - 1, 0) // factor * factor
      raise ValueError(
        f"VaeStream.encode: the stream ended after {seen} frames, expected 1 + k * {factor}; {fits} or "
        f"{fits + factor} would fit: trim or extend the clip."
      )

  def decode(self, latents: Latents | Iterable[Any]) -> Iterator[Video]:
    """Yields frames, one group at a time; not clipped.

    Args:
      latents: [B, t, h, w, c], or an iterable of latent frames [B, h, w, c], which is read only as far as needed.

    Yields:
      Frame 0 alone, then group * temporal_factor frames at a time, then the rest.
    """
    if isinstance(latents, jax.Array | np.ndarray):
      complete = latents
      latents = (complete[:, i] for i in range(complete.shape[1]))
    context = None
    for group in self._groups(latents, 1):
      video, context = self._decode(self._params, jnp.stack(group, axis=1), context)
      yield video

  def _groups(self, frames: Iterable[Any], factor: int) -> Iterator[list[Any]]:
    """Yields the first frame alone, then the frames of `group` latent frames at a time, then the rest."""
    remaining, size = iter(frames), 1
    while group := list(itertools.islice(remaining, size)):
      yield group
      size = factor * self._group
