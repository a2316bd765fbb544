"""Encodes and decodes a video of any length, one group of frames at a time, in the memory of one group.

Every layer is causal and normalises each frame alone, so all that a group needs of the past is the few frames in front
of it that a temporal kernel reaches: k_t - s_t feature frames a convolution. They are carried from group to group, and
the result is that of one pass over the whole video (to rounding: the same sums, compiled for another length).

The first group holds frame 0, alone in its latent; every later latent stands for temporal_factor frames.

  for group in VaeStream(vae, params).decode(latents): writer.append(group)
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from walt_t5x.types import Latents, Params, Video
from walt_t5x.vae.autoencoder import CausalVae
from walt_t5x.vae.causal_conv import STREAM
from walt_t5x.vae.posterior import Posterior

# The frames that each convolution keeps, nested by module name; None before the first group.
Context = Mapping[str, Any] | None


def encode_group(
  vae: CausalVae, params: Params, video: Video, context: Context
) -> tuple[Posterior, Context]:
  """The posterior of the next frames of a stream, and the context of those after them.

  Args:
    vae: the autoencoder.
    params: its parameters.
    video: 1 + k * temporal_factor frames where `context` is None, else k * temporal_factor.
    context: what the group before returned; None for the first group.

  Raises:
    ValueError: on other frame counts, or sizes that are no multiple of spatial_factor.
  """
  return _group(vae, params, video, context, "encode")


def decode_group(
  vae: CausalVae, params: Params, latents: Latents, context: Context
) -> tuple[Video, Context]:
  """The frames of the next latents of a stream, and the context of those after them.

  Args:
    vae: the autoencoder.
    params: its parameters.
    latents: t latent frames; 1 + (t - 1) * temporal_factor frames come out where `context` is None, else
      t * temporal_factor.
    context: what the group before returned; None for the first group.
  """
  return _group(vae, params, latents, context, "decode")


class VaeStream:
  """Compiled `encode_group` and `decode_group`, and the loops over groups.

  Args:
    vae: the autoencoder.
    params: its parameters, already on the device where they will be used most.
    group: latent frames a call, after the first. More is faster on an accelerator and takes more memory.

  Raises:
    ValueError: if `group` is not positive.
  """

  def __init__(self, vae: CausalVae, params: Params, *, group: int = 1):
    if group < 1:
      raise ValueError(f"VaeStream: got {group=}, expected at least 1 latent frame a group.")
    self._vae, self._params, self._group = vae, params, group
    # The context of the past is given up for that of the present: its buffers are taken over.
    self._encode = jax.jit(
      lambda params, x, context: encode_group(vae, params, x, context), donate_argnums=2
    )
    self._decode = jax.jit(
      lambda params, z, context: decode_group(vae, params, z, context), donate_argnums=2
    )

  def encode(self, frames: Iterable[Any]) -> Iterator[Posterior]:
    """Posteriors, a group of latent frames at a time.

    Args:
      frames: [B, H, W, 3] each, float in [0, 1], in order; 1 + k * temporal_factor of them. Any iterable: it is read
        only as far as the group that is being encoded.

    Yields:
      The first latent frame alone, then `group` at a time and what is left.

    Raises:
      ValueError: if the frames end inside a latent frame.
    """
    factor = self._vae.temporal_factor
    context, pending, seen = None, [], 0
    for frame in frames:
      pending.append(np.asarray(frame))
      seen += 1
      if len(pending) == (1 if context is None else factor * self._group):
        posterior, context = self._encode(self._params, np.stack(pending, axis=1), context)
        pending = []
        yield posterior
    if not seen or len(pending) % factor:
      fits = 1 + (seen - 1) // factor * factor if seen else 1
      raise ValueError(
        f"VaeStream.encode: the stream ended after {seen} frames, expected 1 + k * {factor}; {fits} or "
        f"{fits + factor} would fit: trim or extend the clip."
      )
    if pending:
      yield self._encode(self._params, np.stack(pending, axis=1), context)[0]

  def decode(self, latents: Latents | Iterable[Any]) -> Iterator[Video]:
    """Frames, a group at a time; not clipped.

    Args:
      latents: [B, t, h, w, c], or an iterable of latent frames [B, h, w, c], which is read only as far as needed.

    Yields:
      Frame 0 alone, then group * temporal_factor frames at a time and what is left.
    """
    if isinstance(latents, jax.Array | np.ndarray):
      whole = latents
      latents = (whole[:, i] for i in range(whole.shape[1]))
    context, pending = None, []
    for frame in latents:
      pending.append(frame)
      if len(pending) == (1 if context is None else self._group):
        video, context = self._decode(self._params, jnp.stack(pending, axis=1), context)
        pending = []
        yield video
    if pending:
      yield self._decode(self._params, jnp.stack(pending, axis=1), context)[0]


def _group(vae: CausalVae, params: Params, x: Any, context: Context, method: str) -> Any:
  variables = {"params": params} | ({} if context is None else {STREAM: context})
  out, state = vae.apply(
    variables, x, continues=context is not None, method=method, mutable=[STREAM]
  )
  return out, state.get(STREAM, {})
