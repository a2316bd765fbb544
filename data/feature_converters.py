"""SeqIO feature converters: from a task's features to the batch that a model reads.

What a batch holds is defined in `data.batch_spec`. Hosts move bytes and devices compute:
`walt_t5x.models.denoiser_inputs` normalizes and unpacks inside the jitted step, so an example is parsed, padded and
batched with one copy each and half the bytes of bfloat16 go to the device.

Assumptions: the examples of a task have a static shape (as in data.tasks), examples are not packed, and lengths in
`task_feature_lengths` count the first axis (1 for the scalar `is_image`).
"""

from collections.abc import Mapping
from typing import cast

import seqio
import tensorflow as tf

from data import batch_spec

FeatureSpec = seqio.FeatureConverter.FeatureSpec


class _RowConverter(seqio.FeatureConverter):
  """Examples of static shape. SeqIO checks features, dtypes and ranks; lengths are checked here once per dataset."""

  PACKING_FEATURE_DTYPES: Mapping[str, tf.dtypes.DType] = {}
  TASK_FEATURES: Mapping[str, FeatureSpec] = {}
  MODEL_FEATURES: Mapping[str, FeatureSpec] = {}

  def __init__(self, features: Mapping[str, batch_spec.Feature], *, pack: bool, **kwargs):
    if pack:
      raise ValueError(
        f"{type(self).__name__} got pack=True: latents and pixels cannot be packed; set DatasetConfig.pack = False"
      )
    self.TASK_FEATURES = self.MODEL_FEATURES = {
      name: FeatureSpec(tf.as_dtype(feature.dtype), rank=len(feature.shape))
      for name, feature in features.items()
    }
    if "text" in features:
      self._token_bytes = features["text"].shape[-1] or 0
      self.TASK_FEATURES = self.TASK_FEATURES | {"text": FeatureSpec(tf.string, rank=1)}
    kwargs["apply_length_check"] = False
    super().__init__(pack=False, **kwargs)

  def _convert_features(
    self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]
  ) -> tf.data.Dataset:
    # The elements are dictionaries; TensorFlow's type annotation is more general.
    rows = cast(Mapping[str, tf.TensorSpec], ds.element_spec)
    for name, feature in self.TASK_FEATURES.items():
      length = rows[name].shape[0] if feature.rank else 1
      if length != task_feature_lengths[name]:
        raise ValueError(
          f"feature {name!r}: examples have length {length}, task_feature_lengths has {task_feature_lengths[name]}; "
          "leave task_feature_lengths to `batch_spec.task_feature_lengths`, or read examples of another shape"
        )
    return ds.map(self._converted, synchronous=True)

  def batches(
    self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int], *, batch_size: int
  ) -> tf.data.Dataset:
    """Same as `self(ds, ...).batch(batch_size, drop_remainder=True)`, but pads the text of a batch at once: faster."""
    self(ds, task_feature_lengths)  # Only runs the checks; nothing is read.
    return ds.batch(batch_size, drop_remainder=True).map(self._converted, synchronous=True)

  @tf.autograph.experimental.do_not_convert
  def _converted(self, rows: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """The model's features of one example or of a batch."""
    converted = {name: rows[name] for name in self.MODEL_FEATURES}
    if "text" in converted:
      converted["text"] = _padded_text(rows, token_bytes=self._token_bytes)
    return converted

  def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> dict[str, int]:
    """Lengths do not change."""
    return dict(task_feature_lengths)


def _padded_text(rows: Mapping[str, tf.Tensor], *, token_bytes: int) -> tf.Tensor:
  """uint8 [..., s, L, P] from strings [..., s] of packed tokens; L is that of the mask."""
  shape = rows["text_mask"].shape
  length = shape[-1]
  if length is None:
    raise ValueError(f"text needs a static number of tokens: got a mask of shape {shape}")
  padded = tf.io.decode_raw(rows["text"], tf.uint8, fixed_length=length * token_bytes)
  return tf.reshape(padded, (*shape, token_bytes))


class DenoiserFeatureConverter(_RowConverter):
  """Examples of latents with the conditioning that the model reads."""

  def __init__(
    self,
    *,
    text_dim: int = 0,
    label: bool = False,
    low_resolution: bool = False,
    pack: bool = False,
    **kwargs,
  ):
    features = batch_spec.latents_features(
      text=text_dim > 0, text_dim=text_dim, label=label, low_resolution=low_resolution
    )
    super().__init__(features, pack=pack, **kwargs)


class VaeFeatureConverter(_RowConverter):
  """Examples of pixels for the tokenizer."""

  def __init__(self, *, pack: bool = False, **kwargs):
    super().__init__(batch_spec.video_features(), pack=pack, **kwargs)
