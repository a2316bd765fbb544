"""From a batch to what the denoiser reads, on the device: normalized latents, unpacked text, and the conditioning.

Hosts deliver what was stored (`data.feature_converters`) and leave this arithmetic to the jitted step.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from data import batch_spec, packed_text
from walt_t5x.denoiser.transformer import Conditioning
from walt_t5x.types import Batch


def unpack_and_normalize(batch: Mapping[str, Array], moments: Mapping[str, np.ndarray]) -> Batch:
  """Normalizes latents as the cache has them, bfloat16, and unpacks text stored as bytes.

  Latents in float32 are normalized and text as floats is unpacked already: the function is idempotent.

  Args:
    batch: a batch of `DenoiserFeatureConverter`, or one made by hand.
    moments: of `data.corpus.CorpusConstants`.

  Raises:
    ValueError: the batch has latents that are not normalized, and moments lack them.
  """
  result: dict[str, Array | np.ndarray] = dict(batch)
  for name in ("latents", "low_resolution"):
    if name in batch and batch[name].dtype == jnp.bfloat16:
      if name not in moments:
        raise ValueError(
          f"{name}: got bfloat16 latents as the cache has them and no statistics to normalize them; bind "
          "DenoiserModel.corpus = @corpus.constants_of() (gin/runs/train.gin), or give normalized float32 latents"
        )
      result[name] = normalized(batch[name], moments[name])
  text = batch.get("text")
  if text is not None and text.dtype == jnp.uint8:
    result["text"] = unpacked_text(text)
  return result


def normalized(
  latents: Float[Array | np.ndarray, "*rows t h w c"], moments: Float[Array | np.ndarray, "2 c"]
) -> Float[Array | np.ndarray, "*rows t h w c"]:
  """(latents - mean) / std per channel, float32."""
  return (latents.astype(jnp.float32) - moments[0]) / moments[1]


def unpacked_text(packed: UInt8[Array, "*slots L P"]) -> Float[Array, "*slots L E"]:
  """bfloat16 embeddings of packed tokens (`data.packed_text`); padding, which is all zeros, gives zeros.

  Raises:
    ValueError: no width has tokens of P bytes.
  """
  width = packed_text.width_of(packed.shape[-1])
  blocks = packed_text.blocks_of(width)
  scale = jax.lax.bitcast_convert_type(packed[..., :4], jnp.float32)
  halvings = packed[..., 4 : 4 + blocks].astype(jnp.float32) / packed_text.CODES_PER_HALVING
  step = scale[..., None] * jnp.exp2(-halvings)
  values = jax.lax.bitcast_convert_type(packed[..., 4 + blocks :], jnp.int8).astype(jnp.float32)
  step = jnp.repeat(step, packed_text.BLOCK, axis=-1)[..., :width]
  return (values * step).astype(jnp.bfloat16)


def from_batch(batch: Mapping[str, Array]) -> Conditioning:
  """Conditioning on text, labels and kind of example, from a batch of `data.feature_converters`.

  Frame prediction and low-resolution inputs need random draws; the model adds them.
  """
  features = batch_spec.latents_features(text=True, label=True, low_resolution=True)
  fields: Any = {f.condition: batch.get(name) for name, f in features.items() if f.condition}
  return Conditioning(**fields)


def null_text_like(null_text: Array | np.ndarray, text: Array) -> tuple[Array, Array]:
  """The null caption padded to the text's slots: ([B, s, L, E], mask [B, s, L]).

  Args:
    null_text: the encoder's output for the empty caption, [n, E] or [B, n, E] with n <= L.
    text: [B, s, L, E].
  """
  batch, slots, length, width = text.shape
  count = null_text.shape[-2]
  padding = [(0, 0)] * null_text.ndim
  padding[-2] = (0, length - count)
  padded = jnp.pad(null_text.astype(text.dtype), padding)
  mask = jnp.arange(length) < count
  return (
    jnp.broadcast_to(padded[..., None, :, :], (batch, slots, length, width)),
    jnp.broadcast_to(mask, (batch, slots, length)),
  )


def drop(
  conditioning: Conditioning,
  dropped: Bool[Array, "B s"],
  *,
  frames: Bool[Array, " B"],
  null_text: Array | np.ndarray | None = None,
) -> Conditioning:
  """Replaces the dropped conditions: null text, class -1, no past frames (classifier-free guidance).

  Args:
    dropped: where text and class are dropped, per example ([B, 1]) or per slot ([B, t]: each image of a stack
      separately).
    frames: where the past frames are dropped.
    null_text: [n, E] or [B, n, E]; required if there is text.

  Raises:
    ValueError: text is to be dropped without a null text.
  """
  changes = {}
  if conditioning.text is not None:
    if null_text is None:
      raise ValueError(
        "dropping the text requires the null caption's embedding: got no null_text; bind DenoiserModel.corpus = "
        "@corpus.constants_of() (gin/runs/train.gin), which reads it from the cache's provenance.json"
      )
    assert conditioning.text_mask is not None, "text comes with its mask"
    text, mask = null_text_like(null_text, conditioning.text)
    changes["text"] = jnp.where(dropped[..., None, None], text, conditioning.text)
    changes["text_mask"] = jnp.where(dropped[..., None], mask, conditioning.text_mask)
  if conditioning.labels is not None:
    changes["labels"] = jnp.where(dropped, -1, conditioning.labels)
  if conditioning.frame_mask is not None:
    keep = ~frames[:, None]
    changes["frame_mask"] = conditioning.frame_mask * keep.astype(conditioning.frame_mask.dtype)
  return dataclasses.replace(conditioning, **changes)
