"""Encodes and decodes a video of any length, one group of frames at a time, with the memory of one group.

Every layer is causal and normalizes each frame separately, so a group needs only the few preceding frames within
reach of a temporal kernel: k_t - s_t feature frames per convolution. They are carried from group to group, and the
result equals one call on the complete video, to rounding.

The first group starts with frame 0, which has its own latent; every later latent covers temporal_factor frames.

  for group in VaeStream(vae, params).decode(latents): writer.append(group)
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from walt_t5x.types import Latents, Params, Video
from walt_t5x.vae.autoencoder import CausalVae, Posterior
from walt_t5x.vae.causal_conv import STREAM

# The frames that each convolution carries over, nested by module name; None before the first group.
Context = Mapping[str, Any] | None


def encode_group(
  vae: CausalVae, params: Params, video: Video, context: Context
) -> tuple[Posterior, Context]:
  """Returns the posterior of the next frames of a stream, and the context for the next group.

  Args:
    vae: the autoencoder.
    params: its parameters.
    video: 1 + k * temporal_factor frames if `context` is None, else k * temporal_factor.
    context: the context returned for the previous group; None for the first group.

  Raises:
    ValueError: for other frame counts, or sizes that are not a multiple of spatial_factor.
  """
  return _group(vae, params, video, context, "encode")


def decode_group(
  vae: CausalVae, params: Params, latents: Latents, context: Context
) -> tuple[Video, Context]:
  """Returns the frames of the next latents of a stream, and the context for the next group.

  Args:
    vae: the autoencoder.
    params: its parameters.
    latents: t latent frames; they give 1 + (t - 1) * temporal_factor frames if `context` is None, else
      t * temporal_factor.
    context: the context returned for the previous group; None for the first group.
  """
  return _group(vae, params, latents, context, "decode")


class VaeStream:
  """Compiled `encode_group` and `decode_group`, and the loops over groups.

  Args:
    vae: the autoencoder.
    params: its parameters; put them on the device first.
    group: latent frames per call, after the first call. More is faster on an accelerator and uses more memory.

  Raises:
    ValueError: if `group` is not positive.
  """

  def __init__(self, vae: CausalVae, params: Params, *, group: int = 1):
    if group < 1:
      raise ValueError(f"VaeStream: got {group=}, expected at least 1 latent frame per group.")
    self._vae, self._params, self._group = vae, params, group
    # The buffers of the previous context are donated to the next one.
    self._encode = jax.jit(
      lambda params, x, context: encode_group(vae, params, x, context), donate_argnums=2
    )
    self._decode = jax.jit(
      lambda params, z, context: decode_group(vae, params, z, context), donate_argnums=2
    )

  def encode(self, frames: Iterable[Any]) -> Iterator[Posterior]:
    """Yields posteriors, one group of latent frames at a time.

    Args:
      frames: iterable of 1 + k * temporal_factor frames in order, each [B, H, W, 3], float in [0, 1]. It is read only
        up to the group that is being encoded.

    Yields:
      The first latent frame alone, then `group` latent frames at a time, then the rest.

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
    """Yields frames, one group at a time; not clipped.

    Args:
      latents: [B, t, h, w, c], or an iterable of latent frames [B, h, w, c], which is read only as far as needed.

    Yields:
      Frame 0 alone, then group * temporal_factor frames at a time, then the rest.
    """
    if isinstance(latents, jax.Array | np.ndarray):
      complete = latents
      latents = (complete[:, i] for i in range(complete.shape[1]))
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
