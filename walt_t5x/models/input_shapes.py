"""Shapes of the batch that a model reads, from names of record fields: to plan a run without its data."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data import packed_text, schema
from walt_t5x.models.denoiser_model import DenoiserModel
from walt_t5x.models.vae_model import VaeModel

_TYPES = {
  "latents": jnp.bfloat16,
  "low_resolution": jnp.bfloat16,
  "is_image": jnp.bool_,
  "text": jnp.uint8,
  "text_mask": jnp.bool_,
  "null_text": jnp.bfloat16,
  "label": jnp.int32,
  "video": jnp.uint8,
}


def input_shapes(
  model: DenoiserModel | VaeModel,
  *,
  rows: int,
  field: str,
  low_resolution: str | None = None,
  text_length: int = 64,
) -> dict[str, jax.ShapeDtypeStruct]:
  """What the model's feature converter delivers.

  Args:
    model: a tokenizer or a stage.
    rows: of the batch.
    field: latents of a stage, pixels of a tokenizer.
    low_resolution: latents that a super-resolution stage is given.
    text_length: tokens of a caption.

  Raises:
    ValueError: on a name that is no such field, or if a super-resolution stage is not given latents of the right size.
  """
  if isinstance(model, VaeModel):
    return _typed({"video": (rows, *schema.pixels_shape(field), 3)})
  t, h, w = schema.latents_shape(field)
  module = model.module
  channels, slots = module.latent_channels, 1 if model.rows == "videos" else t
  shapes: dict[str, tuple[int, ...]] = {
    "latents": (rows, t, h, w, channels),
    "latents_moments": (rows, 2, channels),
    "is_image": (rows,),
  }
  if module.text_dim:
    shapes["text"] = (rows, slots, text_length, packed_text.token_bytes(module.text_dim))
    shapes["text_mask"] = (rows, slots, text_length)
    shapes["null_text"] = (rows, 1, module.text_dim)
  if module.num_classes:
    shapes["label"] = (rows, slots)
  if module.low_resolution_scale:
    scale = module.low_resolution_scale
    if low_resolution is None or schema.latents_shape(low_resolution) != (
      t,
      h // scale,
      w // scale,
    ):
      raise ValueError(
        f"a super-resolution stage of scale {scale} to {field!r} got low_resolution={low_resolution!r}, expected "
        f"'latents/{t}x{h // scale}x{w // scale}'; set LOW_RESOLUTION"
      )
    shapes["low_resolution"] = (rows, t, h // scale, w // scale, channels)
    shapes["low_resolution_moments"] = (rows, 2, channels)
  return _typed(shapes)


def record_bytes(
  model: DenoiserModel | VaeModel,
  *,
  field: str,
  low_resolution: str | None = None,
  caption_tokens: int = 24,
) -> dict[str, int]:
  """Bytes of a record with one caption in a TFRecord file, by "video" and, where images are trained on, "image".

  Records of zeros are encoded: their size does not depend on their values.

  Args:
    model: a tokenizer or a stage.
    field, low_resolution: as of `input_shapes`; an image has the first frame's latents.
    caption_tokens: of a caption; nothing where the model takes no text.
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
    # A TFRecord frames each with 16 bytes of length and checksums.
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
  """Shapes and dtypes of a stage's parameters, as nested dicts of `jax.ShapeDtypeStruct`; nothing is computed.

  Args:
    model: a stage.
    field, low_resolution, text_length: as of `input_shapes`.

  Raises:
    ValueError: as `input_shapes`.
  """
  batch = input_shapes(
    model, rows=1, field=field, low_resolution=low_resolution, text_length=text_length
  )
  shapes = {name: spec.shape for name, spec in batch.items()}
  types = {name: spec.dtype for name, spec in batch.items()}
  return jax.eval_shape(
    lambda: model.get_initial_variables(jax.random.key(0), shapes, types)["params"]
  )


def _typed(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
  return {
    name: jax.ShapeDtypeStruct(shape, _TYPES.get(name, jnp.float32))
    for name, shape in shapes.items()
  }
