"""Completes a batch on the device, inside the jitted step: normalizes latents and unpacks text.

Hosts deliver what was stored (`data.feature_converters`) and leave this arithmetic to the device.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from data import packed_text
from walt_t5x.types import Batch

_LATENTS = ("latents", "low_resolution")


def finished(batch: Mapping[str, Array]) -> Batch:
  """Normalizes the latents that come with `<name>_moments` and unpacks text stored as bytes.

  A feature that is already complete (latents without moments, text as floats) is returned unchanged, so the function is
  idempotent.

  Args:
    batch: a batch of `DenoiserFeatureConverter`, or one made by hand. Moments are [B, 2, c], or [2, c] for an example.
  """
  result: dict[str, Array | np.ndarray] = {
    name: value for name, value in batch.items() if not name.endswith("_moments")
  }
  for name in _LATENTS:
    moments = batch.get(f"{name}_moments")
    if moments is not None:
      result[name] = normalised(batch[name], moments)
  text = batch.get("text")
  if text is not None and text.dtype == jnp.uint8:
    result["text"] = unpacked_text(text)
  return result


def normalised(
  latents: Float[Array | np.ndarray, "*rows t h w c"],
  moments: Float[Array | np.ndarray, "*rows 2 c"],
) -> Float[Array | np.ndarray, "*rows t h w c"]:
  """(latents - mean) / std per channel, float32."""
  mean, std = moments[..., :1, :][..., None, None, :], moments[..., 1:, :][..., None, None, :]
  return (latents.astype(jnp.float32) - mean) / std


def unpacked_text(packed: UInt8[Array, "*slots L P"]) -> Float[Array, "*slots L E"]:
  """bfloat16 embeddings of packed tokens (`data.packed_text`); padding, which is all zeros, gives zeros.

  Raises:
    ValueError: no width has tokens of P bytes.
  """
  width = packed_text.width_of(packed.shape[-1])
  blocks = packed_text.blocks_of(width)
  scale = jax.lax.bitcast_convert_type(packed[..., :4], jnp.float32)
  octaves = packed[..., 4 : 4 + blocks].astype(jnp.float32) / packed_text.CODES_AN_OCTAVE
  step = scale[..., None] * jnp.exp2(-octaves)
  values = jax.lax.bitcast_convert_type(packed[..., 4 + blocks :], jnp.int8).astype(jnp.float32)
  step = jnp.repeat(step, packed_text.BLOCK, axis=-1)[..., :width]
  return (values * step).astype(jnp.bfloat16)
