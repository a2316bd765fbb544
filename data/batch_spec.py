"""The batch, defined once: names, shapes and types of the features that a model reads.

The feature converters, the features and lengths that SeqIO is given, the shapes from which parameters are initialized
and runs are planned, and the denoiser's conditioning all derive from here.

An example of the denoiser's batch is one video, or a stack of 1 + t independent images of the same shape. With t latent
frames, s text slots (1, or t where a mixture holds image stacks), L text tokens of P bytes, E channels of text:

  latents         bfloat16 [t, h, w, c]      as the tokenizer gave them
  is_image        bool []                    the example is a stack of images
  text            uint8 [s, L, P]            one caption per image, slot 0 for a video; tokens packed as in
                                             `data.packed_text`, zeros on padding
  text_mask       bool [s, L]                True on tokens
  label           int32 [s]                  class, -1 for none
  low_resolution  bfloat16 [t, h/r, w/r, c]  latents of the stage below

What is the same for all examples (channel statistics, the empty caption) is in `data.corpus`.

An example of the tokenizer's batch:

  video                   uint8 [T, H, W, 3]
"""

import dataclasses
from typing import Any

from data import packed_text, schema

Shape = tuple[int | None, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Feature:
  """One feature of an example.

  Attributes:
    shape: of one example, without the batch; None where the model alone knows the size.
    dtype: numpy's name of its type.
    condition: the field of `denoiser.transformer.Conditioning` that it fills as it is, if any.
  """

  shape: Shape
  dtype: str
  condition: str | None = None


def video_features(pixels: str | None = None) -> dict[str, Feature]:
  """Features of the tokenizer's batch.

  Args:
    pixels: field of the records, such as "pixels/17x128x128"; None where sizes do not matter.
  """
  shape = schema.pixels_shape(pixels) if pixels else (None,) * 3
  return {"video": Feature(shape=(*shape, 3), dtype="uint8")}


def latents_features(
  latents: str | None = None,
  *,
  low_resolution: str | bool | None = None,
  text: bool = False,
  label: bool = False,
  slots: int | None = None,
  text_length: int | None = None,
  text_dim: int | None = None,
  channels: int | None = None,
) -> dict[str, Feature]:
  """Features of the denoiser's batch; sizes that are None are unknown in the shapes.

  Args:
    latents: field of the records, such as "latents/5x16x16".
    low_resolution: field of the stage below; True where its size does not matter.
    text, label: whether captions and classes are read.
    slots, text_length, text_dim, channels: s, L, E and c.
  """
  features = {
    "latents": Feature(shape=(*_sizes(latents), channels), dtype="bfloat16"),
    "is_image": Feature(shape=(), dtype="bool", condition="is_image"),
  }
  if text:
    token_bytes = packed_text.token_bytes(text_dim) if text_dim else None
    features["text"] = Feature(
      shape=(slots, text_length, token_bytes), dtype="uint8", condition="text"
    )
    features["text_mask"] = Feature(shape=(slots, text_length), dtype="bool", condition="text_mask")
  if label:
    features["label"] = Feature(shape=(slots,), dtype="int32", condition="labels")
  if low_resolution:
    features["low_resolution"] = Feature(
      shape=(*_sizes(low_resolution), channels), dtype="bfloat16", condition="low_resolution"
    )
  return features


def _sizes(field: str | bool | None) -> Shape:
  return schema.latents_shape(field) if isinstance(field, str) else (None,) * 3


def task_feature_lengths(dataset: Any) -> dict[str, int]:
  """Feature -> length of its first axis, 1 for a scalar: SeqIO's feature lengths of a task or mixture of `data.tasks`.

  The run files bind it to `DatasetConfig.task_feature_lengths`.
  """
  return {name: (feature.shape or (1,))[0] for name, feature in dataset.walt_features.items()}
