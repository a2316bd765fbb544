"""Shapes of a model's input batch, derived from names of record fields, to plan a run without its data."""

import copy
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import unfreeze
from flax.linen import partitioning as flax_partitioning

from data import batch_spec, schema
from data.corpus import CorpusConstants
from walt_t5x.models.denoiser_model import DenoiserModel
from walt_t5x.models.vae_model import VaeModel


def input_shapes(
  model: DenoiserModel | VaeModel,
  *,
  rows: int,
  field: str,
  low_resolution: str | None = None,
  text_length: int = 64,
) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of the batch from the model's feature converter.

  Args:
    rows: batch size.
    field: latents of a stage, pixels of a tokenizer.
    low_resolution: latents that a super-resolution stage is given.
    text_length: tokens per caption.

  Raises:
    ValueError: a name is not such a field, or a super-resolution stage is not given latents of the right size.
  """
  if isinstance(model, VaeModel):
    return _batched(batch_spec.video_features(field), rows)
  t, h, w = schema.latents_shape(field)
  module = model.module
  if scale := module.low_resolution_scale:
    expected = schema.latents_field(t, h // scale, w // scale)
    if low_resolution != expected:
      raise ValueError(
        f"a super-resolution stage with scale {scale} to {field!r} got {low_resolution=}, expected {expected!r}; set "
        "LOW_RESOLUTION"
      )
  features = batch_spec.latents_features(
    field,
    low_resolution=low_resolution if scale else None,
    text=module.text_dim > 0,
    label=module.num_classes > 0,
    slots=1 if model.rows == "videos" else t,
    text_length=text_length,
    text_dim=module.text_dim,
    channels=module.latent_channels,
  )
  return _batched(features, rows)


def without_data(model: DenoiserModel | VaeModel) -> Any:
  """A copy whose loss can be compiled without a corpus: mean 0, deviation 1, and a null text of zeros."""
  if isinstance(model, VaeModel):
    return model
  module = model.module
  moments = np.array([[0.0], [1.0]], np.float32).repeat(module.latent_channels, axis=1)
  constants = CorpusConstants(
    moments={"latents": moments, "low_resolution": moments},
    null_text=np.zeros((1, module.text_dim), np.float32),
  )
  result = copy.copy(model)
  result.corpus = lambda: constants
  return result


def record_bytes(
  model: DenoiserModel | VaeModel,
  *,
  field: str,
  low_resolution: str | None = None,
  caption_tokens: int = 24,
) -> dict[str, int]:
  """Bytes of a record with one caption in a TFRecord file, for "video" and, if images are trained on, "image".

  Encodes records of zeros: the size does not depend on the values.

  Args:
    field, low_resolution: as in `input_shapes`; an image has the first frame's latents.
    caption_tokens: tokens per caption; ignored if the model takes no text.
  """

  def size(modality: str) -> int:
    arrays: dict[str, dict[str, np.ndarray]] = {"latents": {}, "pixels": {}}
    if isinstance(model, VaeModel):
      arrays["pixels"][field] = np.zeros((*schema.pixels_shape(field), 3), np.uint8)
      width = 0
    else:
      width = model.module.text_dim
      for name in filter(None, (field, low_resolution)):
        t, h, w = schema.latents_shape(name)
        t = 1 if modality == "image" else t
        arrays["latents"][schema.latents_field(t, h, w)] = np.zeros(
          (t, h, w, model.module.latent_channels), np.float32
        )
    tokens = caption_tokens if width else 0
    record = schema.Record(
      id="0" * 64, uri="gs://bucket/videos/000/000000.mp4", modality=modality,
      latents=arrays["latents"], pixels=arrays["pixels"],
      captions=["word " * tokens], caption_weights=[1.0], text_ids=[np.zeros(tokens, np.int32)],
      text_embedding=[np.zeros((tokens, width), np.float32)],
    )  # fmt: skip
    # The TFRecord format adds 16 bytes of length and checksums per record.
    return len(schema.encode(record)) + 16

  rows = "videos" if isinstance(model, VaeModel) else model.rows
  kinds = {"videos": ("video",), "images": ("image",), "mixed": ("video", "image")}[rows]
  return {kind: size(kind) for kind in kinds}


def parameter_shapes(
  model: DenoiserModel,
  *,
  field: str,
  low_resolution: str | None = None,
  text_length: int = 64,
) -> Any:
  """Shapes and dtypes of a stage's parameters, as nested dicts of `jax.ShapeDtypeStruct`. Computes no values.

  Arguments and errors are those of `input_shapes`.
  """
  return _variables(model, field=field, low_resolution=low_resolution, text_length=text_length)[
    "params"
  ]


def parameter_axes(
  model: DenoiserModel, *, field: str, low_resolution: str | None = None
) -> dict[str, Any]:
  """Logical names of the axes of a stage's parameters: nested dicts of `PartitionSpec`. Computes no values.

  Arguments and errors are those of `input_shapes`.
  """
  found = _variables(model, field=field, low_resolution=low_resolution)
  return unfreeze(flax_partitioning.get_axis_names(unfreeze(found["params_axes"])))


def _variables(model: DenoiserModel, *, field: str, **sizes: Any) -> Any:
  """The initial variables as shapes."""
  batch = input_shapes(model, rows=1, field=field, **sizes)
  shapes = {name: spec.shape for name, spec in batch.items()}
  types = {name: spec.dtype for name, spec in batch.items()}
  return jax.eval_shape(lambda: model.get_initial_variables(jax.random.key(0), shapes, types))


def _batched(features: Mapping[str, batch_spec.Feature], rows: int) -> dict[str, Any]:
  return {
    name: jax.ShapeDtypeStruct((rows, *feature.shape), jnp.dtype(feature.dtype))
    for name, feature in features.items()
  }
