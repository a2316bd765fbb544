"""SeqIO tasks over cached latents and pixels, and mixtures of image and video rows.

A task is read from the folder that `python -m beam_jobs.preprocess --output=CACHE --task=NAME` wrote: `NAME_images`
and `NAME_videos` in one of SeqIO's cache directories (`--seqio_additional_cache_dirs=CACHE`). Tasks are plain objects
given to `DatasetConfig.mixture_or_task_name` by gin, so nothing need be registered under a global name:

    train/engine.DatasetConfig.mixture_or_task_name = @train/tasks.image_video_mixture()

The channel statistics, the embedding width and the null caption come from the cache's own provenance.json when the
dataset is built.
"""

import collections
import dataclasses
import functools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import seqio
import tensorflow as tf

from data import schema
from data.provenance import LatentStatistics, Provenance, ProvenanceMismatch, read_provenance
from data.raw_shards import raw_shards

# Records of videos that are parsed together.
BLOCK = 16
_RECORD_ID = re.compile(r"[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RowFormat:
  """What a row holds besides its latents.

  Attributes:
    text_length: L; longer captions are cut, shorter ones padded. 0 leaves the text out.
    text_slots: s; 1 for tasks of videos alone, t where image stacks are mixed in.
    label: add the class label.
    deny_list: file of record ids, one a line, that are not read (takedown); local or on an object store. Lines that
      start with # and blank lines are skipped. Read when the dataset is built: restart a run after a change.
    normalise_latents: give every channel mean 0 and standard deviation 1 (Table 3e, "w/o latent norm" is False).
  """

  text_length: int = 64
  text_slots: int = 1
  label: bool = False
  normalise_latents: bool = True
  deny_list: str | None = None


def read_deny_list(path: str) -> list[str]:
  """Record ids of a deny-list, each once, sorted.

  Raises:
    FileNotFoundError: where there is no such file.
    ValueError: on a line that is no record id, with its number.
  """
  if not tf.io.gfile.exists(path):
    raise FileNotFoundError(f"RowFormat.deny_list: no file at {path}")
  ids = set()
  with tf.io.gfile.GFile(path) as lines:
    for number, line in enumerate(lines, start=1):
      line = line.strip()
      if not line or line.startswith("#"):
        continue
      if not _RECORD_ID.fullmatch(line):
        raise ValueError(
          f"{path}:{number}: got {line[:80]!r}, expected a record id (64 hex digits; `id` of a record, as "
          "`python -m walt_t5x.inspect_data` shows it)"
        )
      ids.add(line)
  return sorted(ids)


def _without(dataset: tf.data.Dataset, ids: Sequence[str]) -> tf.data.Dataset:
  """The records whose id is not on the list; a lookup in a hash table a record."""
  table = tf.lookup.StaticHashTable(
    tf.lookup.KeyValueTensorInitializer(tf.constant(ids), tf.ones(len(ids), tf.int64)),
    default_value=0,
  )
  return dataset.filter(
    lambda record: table.lookup(schema.parse_records(record[None], ["id"])["id"][0]) == 0
  )


class _UncachedSource(seqio.DataSource):
  """Stands where a raw source would: these tasks exist only as caches."""

  def __init__(self):
    super().__init__(splits=schema.SPLITS)

  def list_shards(self, split: str) -> Sequence[str]:
    return [split]

  @property
  def supports_arbitrary_sharding(self) -> bool:
    return False

  def get_dataset(self, *args, **kwargs) -> tf.data.Dataset:
    raise ValueError(
      "this task is read from its cache: make it with `python -m beam_jobs.preprocess` and set "
      "DatasetConfig.use_cached = True and --seqio_additional_cache_dirs"
    )


class CachedTask(seqio.Task):
  """A task that exists as a cache and knows what made it.

  `normalised` says whether its rows are; the provenance of a run on rows that are not has mean 0 and deviation 1, so
  that generation undoes what was done. `kind` is what a row is: one 'video', or 'image' for a stack of images.
  """

  normalised = True
  kind = "video"

  def provenance(self) -> Provenance:
    """Of the cache folder.

    Raises:
      FileNotFoundError: if no cache directory holds the task, naming where it was looked for.
    """
    if not self.cache_dir:
      raise FileNotFoundError(
        f"no cache of task {self.name!r} in {list(seqio.get_global_cache_dirs())}: run `beam_jobs.preprocess` "
        "with this --task, and point --seqio_additional_cache_dirs at its --output"
      )
    return read_provenance(self.cache_dir)

  def _get_cached_source(
    self, split: str, file_shuffle_buffer_size: int | None = None
  ) -> seqio.FileDataSource:
    """SeqIO's hook for what `use_cached` reads: whole records, which the preprocessors parse."""
    self.assert_cached()
    return raw_shards(self.cache_dir, split, file_shuffle_buffer_size=file_shuffle_buffer_size)

  def _trim_output_features(self, dataset: tf.data.Dataset, sequence_length) -> tf.data.Dataset:
    """Rows are whole as they are; SeqIO would slice their scalars (T5X's infer.py always asks for it)."""
    del sequence_length
    return dataset

  @property
  def walt_provenance(self) -> dict:
    """As a JSON tree; the trainer keeps it beside the checkpoints."""
    tree = json.loads(self.provenance().to_json())
    if not self.normalised:
      for statistics in tree["latents"].values():
        statistics["mean"] = [0.0] * statistics["channels"]
        statistics["std"] = [1.0] * statistics["channels"]
    return tree


class CachedMixture(seqio.Mixture):
  """A mixture of caches that one tokenizer, one text encoder and one normalisation made."""

  @property
  def walt_rates(self) -> dict[str, float]:
    """Share of the rows of each kind ('image', 'video'), by the rates that SeqIO draws tasks with."""
    rates = collections.Counter()
    for task in self.tasks:
      rates[task.kind] += self.get_rate(task)
    return {kind: rate / rates.total() for kind, rate in sorted(rates.items())}

  @property
  def walt_provenance(self) -> dict:
    """The tasks' common provenance.

    Raises:
      ProvenanceMismatch: naming the first field in which two tasks differ.
    """
    first, *others = self.tasks
    common = first.walt_provenance
    for other in others:
      found = other.walt_provenance
      # Images have fields of their own; what both have must be the same.
      fields = found.pop("latents")
      common["latents"] = fields | common["latents"]
      for field in sorted(common.keys() | found.keys()):
        if field == "latents":
          continue
        if common.get(field) != found.get(field):
          raise ProvenanceMismatch(
            f"mixture {self.name!r}: {field} differs: {first.name} has {common.get(field)!r}, {other.name} has "
            f"{found.get(field)!r}; preprocess both with the same encoders, or train on one"
          )
    return common


def _statistics(field: str, provenance: Provenance, task: str) -> LatentStatistics:
  """Of one field.

  Raises:
    ProvenanceMismatch: if the cache has no such field, or a channel that never changes.
  """
  if field not in provenance.latents:
    raise ProvenanceMismatch(
      f"the cache of {task!r} has latents {sorted(provenance.latents)}, not {field!r}: set the task's `latents` to one "
      "of them, or preprocess with that resolution"
    )
  statistics = provenance.latents[field]
  if min(statistics.std) <= 0:
    raise ProvenanceMismatch(
      f"the cache of {task!r}: {field} has a channel of standard deviation 0 ({list(statistics.std)}), which cannot be "
      "normalised: the tokenizer does not use that channel; train it longer or with fewer channels"
    )
  return statistics


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Rows:
  """From records to rows, a block of records at a time.

  Latents stay as they were written and the caption's tokens stay packed: `data.feature_converters` pads them, and the
  model normalises and unpacks on its device. So a row in a shuffle buffer weighs what it weighs on disk. Maps are
  sequential: one core makes thousands of rows a second, and handing a row from thread to thread costs more than
  what is done to it. Reading ahead and shuffling overlap with them, in SeqIO's own threads.

  Attributes:
    task: name of the cached task.
    latents: field of the records.
    low_resolution: likewise, or None.
    row: what a row holds.
    frames: images that a row stacks; None for one video a row.
  """

  task: str
  latents: str
  low_resolution: str | None
  row: RowFormat
  frames: int | None = None

  def __call__(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
    row, provenance = self.row, _task(self.task).provenance()
    fields = {"latents": self.latents, "low_resolution": self.low_resolution}
    fields = {name: field for name, field in fields.items() if field}
    statistics = {name: _statistics(field, provenance, self.task) for name, field in fields.items()}
    constants = {
      f"{name}_moments": _moments(found, normalise=row.normalise_latents)
      for name, found in statistics.items()
    }
    constants["is_image"] = np.array(self.frames is not None)
    if row.text_length:
      constants["null_text"] = provenance.null_embedding.astype(ml_dtypes.bfloat16)
    read = [*fields.values(), *(("label",) if row.label else ())]
    read += ["caption_weights", "caption_lengths", "text_embedding"] if row.text_length else []

    def examples(records: tf.Tensor, seed: tf.Tensor | None) -> dict[str, tf.Tensor]:
      """Features [n, ...] of n records: one video or one image (t = 1) each, with a caption drawn by its weight."""
      parsed = schema.parse_records(records, read)
      result = {}
      for name, field in fields.items():
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

    def rows(records: tf.Tensor, seed: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
      found = examples(records, seed)
      if self.frames is not None:
        return _image_stack(found, frames=self.frames) | constants
      return _video_rows(found, slots=row.text_slots, constants=constants)

    denied = read_deny_list(row.deny_list) if row.deny_list else []
    dataset = _without(dataset, denied) if denied else dataset
    if self.frames is None:
      dataset = dataset.batch(BLOCK)
    else:
      dataset = dataset.batch(self.frames, drop_remainder=True)
    if row.text_length:
      dataset = seqio.map_over_dataset(rows, num_seeds=1, num_parallel_calls=None)(dataset)
    else:
      dataset = dataset.map(rows)
    return dataset.unbatch() if self.frames is None else dataset


def _moments(statistics: LatentStatistics, *, normalise: bool) -> np.ndarray:
  """Mean and standard deviation [2, c] that the model normalises by; 0 and 1 where it shall not."""
  if normalise:
    return np.array([statistics.mean, statistics.std], np.float32)
  return np.array([[0.0], [1.0]], np.float32).repeat(statistics.channels, axis=1)


def _video_rows(
  examples: Mapping[str, tf.Tensor], *, slots: int, constants: Mapping[str, np.ndarray]
) -> dict[str, tf.Tensor]:
  """One video a row [n, ...]; its caption and label stand in slot 0, the other slots are empty."""
  count = tf.shape(examples["latents"])[0]
  result = dict(examples)
  for name, value in constants.items():
    result[name] = tf.broadcast_to(value, [count, *value.shape])
  for name, empty in (("text", ""), ("text_mask", False), ("label", schema.NO_LABEL)):
    if name in examples:
      slot = examples[name][:, None]
      shape = [count, slots - 1, *slot.shape[2:]]
      others = tf.fill(shape, tf.constant(empty, slot.dtype))
      joined = tf.concat([slot, others], axis=1) if slots > 1 else slot
      result[name] = tf.ensure_shape(joined, [None, slots, *slot.shape[2:]])
  return result


def _image_stack(examples: Mapping[str, tf.Tensor], *, frames: int) -> dict[str, tf.Tensor]:
  """A row of `frames` = 1 + t independent images, each with its own caption."""
  result = {
    name: examples[name][:, 0] if name in ("latents", "low_resolution") else examples[name]
    for name in examples
  }
  return {
    name: tf.ensure_shape(value, (frames, *value.shape[1:])) for name, value in result.items()
  }


def _output_features(low_resolution: str | None, row: RowFormat) -> dict[str, seqio.Feature]:
  def feature(dtype: tf.DType, rank: int) -> seqio.Feature:
    return seqio.ContinuousFeature(dtype=dtype, rank=rank, add_eos=False)

  features = {
    "latents": feature(tf.bfloat16, 4),
    "latents_moments": feature(tf.float32, 2),
    "is_image": feature(tf.bool, 0),
  }
  if row.text_length:
    features["text"] = feature(tf.string, 1)
    features["text_mask"] = feature(tf.bool, 2)
    features["null_text"] = feature(tf.bfloat16, 2)
  if row.label:
    features["label"] = feature(tf.int32, 1)
  if low_resolution:
    features["low_resolution"] = feature(tf.bfloat16, 4)
    features["low_resolution_moments"] = feature(tf.float32, 2)
  return features


@functools.cache
def _task(name: str) -> CachedTask:
  """A handle on a cache, to read its provenance."""
  return CachedTask(name, source=_UncachedSource(), output_features={}, preprocessors=[])


def _cached_task(
  name: str,
  preprocessors: Sequence,
  output_features: Mapping[str, seqio.Feature],
  *,
  shuffle_buffer_size: int,
  normalised: bool = True,
  kind: str = "video",
  metric_fns: Sequence[Callable[..., Any]] = (),
) -> CachedTask:
  task = CachedTask(
    name,
    source=_UncachedSource(),
    preprocessors=[seqio.CacheDatasetPlaceholder(required=True), *preprocessors],
    output_features=output_features,
    shuffle_buffer_size=shuffle_buffer_size,
    metric_fns=list(metric_fns),
  )
  task.normalised, task.kind = normalised, kind
  return task


def video_task(
  *,
  task: str,
  latents: str,
  low_resolution: str | None = None,
  row: RowFormat = RowFormat(),
  shuffle_buffer_size: int = 1000,
  metric_fns: Sequence[Callable[..., Any]] = (),
) -> CachedTask:
  """Videos of `<task>_videos`, one a row.

  Args:
    task: the name given to preprocessing.
    latents: field of the latents, e.g. "latents/5x16x16".
    low_resolution: field of the stage below, for a super-resolution stage.
    row: text and label of a row.
    shuffle_buffer_size: rows held for shuffling.
    metric_fns: SeqIO's, of (targets, predictions), such as `walt_t5x.metrics.sample_metrics.latent_frechet`.
  """
  name = f"{task}_videos"
  rows = _Rows(task=name, latents=latents, low_resolution=low_resolution, row=row)
  return _cached_task(
    name,
    [rows],
    _output_features(low_resolution, row),
    shuffle_buffer_size=shuffle_buffer_size,
    normalised=row.normalise_latents,
    metric_fns=metric_fns,
  )


def image_task(
  *,
  task: str,
  latents: str,
  low_resolution: str | None = None,
  row: RowFormat = RowFormat(),
  shuffle_buffer_size: int = 1000,
) -> CachedTask:
  """Images of `<task>_images`, 1 + t of them stacked a row.

  Args:
    task: the name given to preprocessing.
    latents: field of the *video* latents whose shape the stack takes, e.g. "latents/5x16x16" stacks 5 images of
      "latents/1x16x16".
    low_resolution: likewise, for a super-resolution stage.
    row: text and label; its slots must be 1 + t.
    shuffle_buffer_size: rows held for shuffling.

  Raises:
    ValueError: if the row has fewer text slots than images.
  """
  name = f"{task}_images"
  frames, *_ = schema.latents_shape(latents)
  if row.text_slots != frames:
    raise ValueError(
      f"image_task: got RowFormat.text_slots={row.text_slots} for stacks of {frames} images; set it to {frames}"
    )

  def of_image(field: str | None) -> str | None:
    return field and schema.latents_field(1, *schema.latents_shape(field)[1:])

  rows = _Rows(
    task=name,
    latents=of_image(latents),
    low_resolution=of_image(low_resolution),
    row=row,
    frames=frames,
  )
  return _cached_task(
    name,
    [rows],
    _output_features(low_resolution, row),
    shuffle_buffer_size=shuffle_buffer_size,
    normalised=row.normalise_latents,
    kind="image",
  )


def image_video_mixture(
  *,
  task: str,
  latents: str,
  low_resolution: str | None = None,
  row: RowFormat = RowFormat(),
  image_rate: float = 1.0,
  video_rate: float = 1.0,
  shuffle_buffer_size: int = 1000,
  metric_fns: Sequence[Callable[..., Any]] = (),
) -> CachedMixture:
  """Rows of videos and rows of image stacks at the given rates (joint training, Section 4.2).

  Args: as `video_task`; the row's slots are set to 1 + t.
    image_rate: relative number of image rows.
    video_rate: relative number of video rows. Assumption: 1 : 1, the paper names no rate.
    metric_fns: of the video rows.
  """
  frames, *_ = schema.latents_shape(latents)
  row = dataclasses.replace(row, text_slots=frames)
  common = {
    "task": task,
    "latents": latents,
    "low_resolution": low_resolution,
    "row": row,
    "shuffle_buffer_size": shuffle_buffer_size,
  }
  return CachedMixture(
    f"{task}_mixture",
    [(image_task(**common), image_rate), (video_task(**common, metric_fns=metric_fns), video_rate)],
  )


def _one(record: tf.Tensor, field: str) -> dict[str, tf.Tensor]:
  return {field: schema.parse_records(record[None], [field])[field][0]}


def pixel_task(
  *,
  task: str,
  pixels: str,
  images: bool = False,
  shuffle_buffer_size: int = 1000,
  metric_fns: Sequence[Callable[..., Any]] = (),
) -> CachedTask:
  """Clips of pixels of `<task>_videos`, or single frames of `<task>_images`, to train the tokenizer.

  Args:
    task: the name given to preprocessing with `--content=pixels`.
    pixels: field of the pixels, e.g. "pixels/17x128x128", or "pixels/1x256x256" for images.
    images: read the images, for an image tokenizer.
    shuffle_buffer_size: rows held for shuffling.
    metric_fns: SeqIO's, of (targets, predictions), such as `walt_t5x.metrics.sample_metrics.VideoFrechet`.
  """

  def parse(dataset: tf.data.Dataset) -> tf.data.Dataset:
    return dataset.map(
      lambda record: {"video": schema.parse_pixels(_one(record, pixels), pixels)},
      num_parallel_calls=tf.data.AUTOTUNE,
    )

  video = seqio.ContinuousFeature(dtype=tf.uint8, rank=4, add_eos=False)
  return _cached_task(
    f"{task}_images" if images else f"{task}_videos",
    [parse],
    {"video": video},
    shuffle_buffer_size=shuffle_buffer_size,
    metric_fns=metric_fns,
  )
