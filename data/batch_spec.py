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
from collections.abc import Mapping
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

  @property
  def length(self) -> int:
    """The first axis, as SeqIO's feature lengths count it; 1 for a scalar.

    Raises:
      ValueError: the size is not known.
    """
    if not self.shape:
      return 1
    if self.shape[0] is None:
      raise ValueError(f"the first axis of shape {self.shape} is not known")
    return self.shape[0]


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
  low_resolution: str | None = None,
  has_low_resolution: bool | None = None,
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
    low_resolution: field of the stage below.
    has_low_resolution: whether there is one; by default, whether `low_resolution` is given.
    text: captions are read.
    label: classes are read.
    slots: s.
    text_length: L.
    text_dim: E.
    channels: c.
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
  if has_low_resolution if has_low_resolution is not None else low_resolution is not None:
    features["low_resolution"] = Feature(
      shape=(*_sizes(low_resolution), channels), dtype="bfloat16", condition="low_resolution"
    )
  return features


def _sizes(field: str | None) -> Shape:
  return schema.latents_shape(field) if field else (None,) * 3


def task_feature_lengths(dataset: Any) -> dict[str, int]:
  """`DatasetConfig.task_feature_lengths` of a task or mixture of `data.tasks`, for gin: the run files bind it."""
  return lengths(dataset.walt_features)


def lengths(features: Mapping[str, Feature]) -> dict[str, int]:
  """Feature -> length of its first axis."""
  return {name: feature.length for name, feature in features.items()}
