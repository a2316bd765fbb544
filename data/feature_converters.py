"""SeqIO feature converters: from a task's features to the batch that a model reads.

A row of the denoiser's batch is one video, or a stack of 1 + t independent images of the same shape. Features, with
t latent frames, s text slots (1, or t where a mixture holds image stacks), L text tokens:

  latents         bfloat16 [t, h, w, c]    normalised by the corpus' channel mean and std
  is_image        bool []                  the row is a stack of images
  text            bfloat16 [s, L, E]       one caption an image, slot 0 for a video; zeros on padding
  text_mask       bool [s, L]              True on tokens
  null_text       bfloat16 [n, E]          the encoded empty caption, for classifier-free drop
  label           int32 [s]                class, -1 for none
  low_resolution  bfloat16 [t, h/s, w/s, c]  latents of the stage below, normalised by their own statistics

A row of the tokenizer's batch:

  video           uint8 [T, H, W, 3]

Assumptions: tasks deliver rows of full static shape (data.tasks does), nothing is packed, and lengths in
`task_feature_lengths` count the first axis (1 for the scalar `is_image`).
"""

from collections.abc import Mapping

import seqio
import tensorflow as tf

FeatureSpec = seqio.FeatureConverter.FeatureSpec


class _RowConverter(seqio.FeatureConverter):
  """Passes whole rows through; SeqIO's own checks compare features, dtypes, ranks and lengths."""

  PACKING_FEATURE_DTYPES: Mapping[str, tf.dtypes.DType] = {}
  TASK_FEATURES: Mapping[str, FeatureSpec] = {}
  MODEL_FEATURES: Mapping[str, FeatureSpec] = {}

  def __init__(self, features: Mapping[str, FeatureSpec], *, pack: bool, **kwargs):
    if pack:
      raise ValueError(
        f"{type(self).__name__} got pack=True: rows of latents or pixels are not packed; set DatasetConfig.pack = False"
      )
    self.TASK_FEATURES = self.MODEL_FEATURES = dict(features)
    super().__init__(pack=False, **kwargs)

  def _convert_features(
    self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
  ) -> tf.data.Dataset:
    names = list(self.MODEL_FEATURES)
    return ds.map(
      lambda row: {name: row[name] for name in names}, num_parallel_calls=tf.data.AUTOTUNE
    )

  def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> dict[str, int]:
    """Rows keep their lengths."""
    return dict(task_feature_lengths)


class DenoiserFeatureConverter(_RowConverter):
  """Rows of latents with the conditions that the model reads."""

  def __init__(
    self,
    *,
    text: bool = True,
    label: bool = False,
    low_resolution: bool = False,
    pack: bool = False,
    **kwargs,
  ):
    features = {
      "latents": FeatureSpec(tf.bfloat16, rank=4),
      "is_image": FeatureSpec(tf.bool, rank=0),
    }
    if text:
      features["text"] = FeatureSpec(tf.bfloat16, rank=3)
      features["text_mask"] = FeatureSpec(tf.bool, rank=2)
      features["null_text"] = FeatureSpec(tf.bfloat16, rank=2)
    if label:
      features["label"] = FeatureSpec(tf.int32, rank=1)
    if low_resolution:
      features["low_resolution"] = FeatureSpec(tf.bfloat16, rank=4)
    super().__init__(features, pack=pack, **kwargs)


class VaeFeatureConverter(_RowConverter):
  """Rows of pixels for the tokenizer."""

  def __init__(self, *, pack: bool = False, **kwargs):
    super().__init__({"video": FeatureSpec(tf.uint8, rank=4)}, pack=pack, **kwargs)
