"""Builds the denoiser's conditioning from a batch, and drops the condition from it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool

from data import batch_spec
from walt_t5x.denoiser.transformer import Conditioning


def from_batch(batch: Mapping[str, Array]) -> Conditioning:
  """Conditioning on text, labels and kind of example, from a batch of `data.feature_converters`.

  Frame prediction and low-resolution inputs need random draws; the model adds them.
  """
  features = batch_spec.latents_features(text=True, label=True, has_low_resolution=True)
  given: dict[str, Any] = {
    f.condition: batch.get(name) for name, f in features.items() if f.condition
  }
  return Conditioning(**given)


def null_text_like(null_text: Array, text: Array) -> tuple[Array, Array]:
  """The null caption padded to the text's slots: ([B, s, L, E], mask [B, s, L]).

  Args:
    null_text: the encoder's output for the empty caption, [B, n, E] with n <= L.
    text: [B, s, L, E].
  """
  batch, slots, length, width = text.shape
  padding = ((0, 0), (0, length - null_text.shape[1]), (0, 0))
  padded = jnp.pad(null_text.astype(text.dtype), padding)
  mask = jnp.arange(length) < null_text.shape[1]
  return (
    jnp.broadcast_to(padded[:, None], (batch, slots, length, width)),
    jnp.broadcast_to(mask, (batch, slots, length)),
  )


def drop(
  conditioning: Conditioning, dropped: Bool[Array, "B s"], *, null_text: Array | None = None
) -> Conditioning:
  """Replaces the condition if `dropped` is set: null text, class -1, no past frames (paper.md 5).

  Args:
    conditioning: the conditioning.
    dropped: per example ([B, 1]) or per slot ([B, t]: each image of a stack separately). Past frames belong to
      slot 0.
    null_text: [B, n, E]; required if there is text.

  Raises:
    ValueError: text is to be dropped without a null text.
  """
  changes = {}
  if conditioning.text is not None:
    if null_text is None:
      raise ValueError(
        "dropping the text requires the null caption's embedding: got a batch without 'null_text'; "
        "use tasks of data.tasks, which read it from the cache's provenance.json"
      )
    assert conditioning.text_mask is not None, "text comes with its mask"
    text, mask = null_text_like(null_text, conditioning.text)
    changes["text"] = jnp.where(dropped[..., None, None], text, conditioning.text)
    changes["text_mask"] = jnp.where(dropped[..., None], mask, conditioning.text_mask)
  if conditioning.labels is not None:
    changes["labels"] = jnp.where(dropped, -1, conditioning.labels)
  if conditioning.frame_mask is not None:
    keep = ~dropped[:, :1]
    changes["frame_mask"] = conditioning.frame_mask * keep.astype(conditioning.frame_mask.dtype)
  return dataclasses.replace(conditioning, **changes)
