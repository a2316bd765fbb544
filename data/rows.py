"""Parses records to examples: one video, or a stack of images, with captions or labels."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import cast

import seqio
import tensorflow as tf

from data import cached_tasks, deny_list, schema
from walt_t5x.files.mismatch import Mismatch

# Number of video records that are parsed together.
BLOCK = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowFormat:
  """Contents of an example in addition to its latents.

  Attributes:
    text_length: L; longer captions are truncated, shorter ones padded. 0 omits the text.
    text_slots: s; 1 for video tasks, t for mixtures with image stacks.
    label: whether to add the class label.
    deny_list: file of record ids to skip (takedown), one per line; local or on an object store. Lines that start with #
      and blank lines are ignored. Read when the dataset is built: restart a run after a change.
    normalize_latents: normalize every channel to mean 0 and standard deviation 1 (Table 3e, "w/o latent norm" is
      False).
    statistics_of: folder of a training run, or a checkpoint in it, whose channel statistics normalize the latents
      instead of the cache's: a run that is fine-tuned from it then still fits the other stages of its cascade. The
      cache must be made with the tokenizer and the text encoder of that run.
  """

  text_length: int = 64
  text_slots: int = 1
  label: bool = False
  normalize_latents: bool = True
  deny_list: str | None = None
  statistics_of: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rows:
  """Parses records to examples in blocks.

  Latents are not normalized here and caption tokens stay packed: `data.feature_converters` pads them, and the model
  normalizes and unpacks them on the device. So an example has the same size in a shuffle buffer as on disk. Maps are
  sequential: one core makes thousands of examples per second, and passing an example between threads costs more than
  processing it. Prefetching and shuffling run concurrently in SeqIO's threads.

  Attributes:
    task: name of the cached task.
    fields: feature of latents ("latents", "low_resolution") -> field of the records.
    row: contents of an example.
    frames: number of images that an example stacks; None for one video per example.
  """

  task: str
  fields: Mapping[str, str]
  row: RowFormat
  frames: int | None = None

  def __call__(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
    row, provenance = self.row, cached_tasks.handle(self.task).provenance()
    statistics = provenance.statistics(self.fields, task=self.task)
    if row.text_length and not provenance.text_encoder:
      raise Mismatch(
        f"the cache of {self.task!r} has no text: set RowFormat.text_length = 0, or preprocess with --text_encoder"
      )
    read = [*self.fields.values(), *(("label",) if row.label else ())]
    read += ["caption_weights", "caption_lengths", "text_embedding"] if row.text_length else []

    def examples(records: tf.Tensor, seed: tf.Tensor | None) -> dict[str, tf.Tensor]:
      """Features [n, ...] of n records, each one video or image (t = 1) with a caption sampled by weight."""
      parsed = schema.parse_records(records, read)
      result = {}
      for name, field in self.fields.items():
        shape = (*schema.latents_shape(field), statistics[name].channels)
        result[name] = schema.parse_latents(parsed, field, shape)
      if row.text_length:
        index = schema.draw_captions(parsed["caption_weights"], seed=seed)
        width = provenance.text_encoder["embedding_dim"]
        result["text"], count = schema.packed_captions(
          parsed, index=index, embedding_dim=width, length=row.text_length
        )
        result["text_mask"] = tf.range(row.text_length, dtype=tf.int64) < count[:, None]
      if row.label:
        result["label"] = tf.cast(parsed["label"], tf.int32)
      return result

    @tf.autograph.experimental.do_not_convert  # Its translation takes a second.
    def rows(records: tf.Tensor, seed: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
      found = examples(records, seed)
      if self.frames is not None:
        return _image_stack(found, frames=self.frames)
      return _video_rows(found, slots=row.text_slots)

    denied = deny_list.read(row.deny_list) if row.deny_list else []
    dataset = deny_list.without(dataset, denied) if denied else dataset
    if self.frames is None:
      dataset = dataset.batch(BLOCK)
    else:
      dataset = dataset.batch(self.frames, drop_remainder=True)
    if row.text_length:
      # SeqIO's decorator has no type annotations.
      drawn = seqio.map_over_dataset(rows, num_seeds=1, num_parallel_calls=None)
      dataset = cast(Callable[[tf.data.Dataset], tf.data.Dataset], drawn)(dataset)
    else:
      dataset = dataset.map(rows)
    return dataset.unbatch() if self.frames is None else dataset


def _video_rows(examples: Mapping[str, tf.Tensor], *, slots: int) -> dict[str, tf.Tensor]:
  """One video per example [n, ...]; its caption and label are in slot 0, the other slots are empty."""
  count = tf.shape(examples["latents"])[0]
  result = dict(examples) | {"is_image": tf.fill([count], False)}
  for name, empty in (("text", ""), ("text_mask", False), ("label", schema.NO_LABEL)):
    if name in examples:
      slot = examples[name][:, None]
      shape = [count, slots - 1, *slot.shape[2:]]
      others = tf.fill(shape, tf.constant(empty, slot.dtype))
      joined = tf.concat([slot, others], axis=1)
      result[name] = tf.ensure_shape(joined, [None, slots, *slot.shape[2:]])
  return result


def _image_stack(examples: Mapping[str, tf.Tensor], *, frames: int) -> dict[str, tf.Tensor]:
  """An example of `frames` = 1 + t independent images, each with its own caption."""
  result = {
    name: examples[name][:, 0] if name in ("latents", "low_resolution") else examples[name]
    for name in examples
  }
  result = {
    name: tf.ensure_shape(value, (frames, *value.shape[1:])) for name, value in result.items()
  }
  return result | {"is_image": tf.constant(True)}
