"""SeqIO tasks over cached latents and pixels, and mixtures of image and video rows.

A task is read from the folder that `python -m beam_jobs.preprocess --output=CACHE --task=NAME` wrote: `NAME_images`
and `NAME_videos` in one of SeqIO's cache directories (`--seqio_additional_cache_dirs=CACHE`). Tasks are plain objects
given to `DatasetConfig.mixture_or_task_name` by gin, so nothing need be registered under a global name:

    train/engine.DatasetConfig.mixture_or_task_name = @train/tasks.image_video_mixture()

The channel statistics, the embedding width and the null caption come from the cache's own provenance.json when the
dataset is built.
"""

import dataclasses
import functools
import json
import re
from collections.abc import Mapping, Sequence

import seqio
import tensorflow as tf

from data import schema
from data.provenance import LatentStatistics, Provenance, ProvenanceMismatch, read_provenance

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
  return dataset.filter(lambda example: table.lookup(example["id"]) == 0)


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
  that generation undoes what was done.
  """

  normalised = True

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


def _normalised(
  example: Mapping[str, tf.Tensor], field: str, statistics: LatentStatistics, *, row: RowFormat
) -> tf.Tensor:
  """Latents of one field with mean 0 and standard deviation 1 a channel (if `row` asks for it), bfloat16."""
  shape = (*schema.latents_shape(field), statistics.channels)
  latents = schema.parse_latents(example, field, shape)
  if not row.normalise_latents:
    return latents
  latents = tf.cast(latents, tf.float32)
  return tf.cast(
    (latents - tf.constant(statistics.mean)) / tf.constant(statistics.std), tf.bfloat16
  )


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


def _padded_caption(
  example: Mapping[str, tf.Tensor], seed: tf.Tensor, *, length: int, provenance: Provenance
) -> tuple[tf.Tensor, tf.Tensor]:
  """One caption, drawn by its weight: embedding bfloat16 [L, E] and mask [L]."""
  width = provenance.text_encoder["embedding_dim"]
  caption = schema.parse_caption(
    example, index=schema.draw_caption(example, seed=seed), embedding_dim=width
  )
  embedding = caption["text_embedding"][:length]
  tokens = tf.shape(embedding)[0]
  padded = tf.pad(embedding, [[0, length - tokens], [0, 0]])
  return tf.cast(tf.ensure_shape(padded, (length, width)), tf.bfloat16), tf.range(length) < tokens


def _parse(
  dataset: tf.data.Dataset,
  *,
  task: str,
  latents: str,
  low_resolution: str | None,
  row: RowFormat,
) -> tf.data.Dataset:
  """Records to examples: one video, or one image (t = 1), with one caption."""
  provenance = _task(task).provenance()
  statistics = {
    field: _statistics(field, provenance, task) for field in (latents, low_resolution) if field
  }

  @seqio.map_over_dataset(num_seeds=1)
  def parse(example: Mapping[str, tf.Tensor], seed: tf.Tensor) -> dict[str, tf.Tensor]:
    parsed = {"latents": _normalised(example, latents, statistics[latents], row=row)}
    if low_resolution:
      parsed["low_resolution"] = _normalised(
        example, low_resolution, statistics[low_resolution], row=row
      )
    if row.text_length:
      parsed["text"], parsed["text_mask"] = _padded_caption(
        example, seed, length=row.text_length, provenance=provenance
      )
    if row.label:
      parsed["label"] = tf.cast(example["label"], tf.int32)
    return parsed

  denied = read_deny_list(row.deny_list) if row.deny_list else []
  return parse(_without(dataset, denied) if denied else dataset)


def _with_null_text(dataset: tf.data.Dataset, *, task: str, row: RowFormat) -> tf.data.Dataset:
  if not row.text_length:
    return dataset
  null = tf.cast(tf.constant(_task(task).provenance().null_embedding), tf.bfloat16)
  return dataset.map(lambda example: example | {"null_text": null})


def _video_rows(dataset: tf.data.Dataset, *, row: RowFormat) -> tf.data.Dataset:
  """One video a row; its caption and label stand in slot 0, the other slots are empty."""

  def to_row(example: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    result = dict(example, is_image=tf.constant(False))
    for name, empty in (("text", 0), ("text_mask", False), ("label", schema.NO_LABEL)):
      if name in example:
        slot = example[name][None]
        padding = [[0, row.text_slots - 1]] + [[0, 0]] * (len(slot.shape) - 1)
        result[name] = tf.pad(slot, padding, constant_values=empty)
    return result

  return dataset.map(to_row, num_parallel_calls=tf.data.AUTOTUNE)


def _image_stacks(dataset: tf.data.Dataset, *, frames: int) -> tf.data.Dataset:
  """`frames` = 1 + t independent images a row, each with its own caption."""

  def to_row(stack: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    images = {name: stack[name][:, 0] for name in ("latents", "low_resolution") if name in stack}
    return dict(stack, **images, is_image=tf.constant(True))

  return dataset.batch(frames, drop_remainder=True).map(to_row, num_parallel_calls=tf.data.AUTOTUNE)


def _output_features(low_resolution: str | None, row: RowFormat) -> dict[str, seqio.Feature]:
  def feature(dtype: tf.DType, rank: int) -> seqio.Feature:
    return seqio.ContinuousFeature(dtype=dtype, rank=rank, add_eos=False)

  features = {"latents": feature(tf.bfloat16, 4), "is_image": feature(tf.bool, 0)}
  if row.text_length:
    features["text"] = feature(tf.bfloat16, 3)
    features["text_mask"] = feature(tf.bool, 2)
    features["null_text"] = feature(tf.bfloat16, 2)
  if row.label:
    features["label"] = feature(tf.int32, 1)
  if low_resolution:
    features["low_resolution"] = feature(tf.bfloat16, 4)
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
) -> CachedTask:
  task = CachedTask(
    name,
    source=_UncachedSource(),
    preprocessors=[seqio.CacheDatasetPlaceholder(required=True), *preprocessors],
    output_features=output_features,
    shuffle_buffer_size=shuffle_buffer_size,
  )
  task.normalised = normalised
  return task


def video_task(
  *,
  task: str,
  latents: str,
  low_resolution: str | None = None,
  row: RowFormat = RowFormat(),
  shuffle_buffer_size: int = 1000,
) -> CachedTask:
  """Videos of `<task>_videos`, one a row.

  Args:
    task: the name given to preprocessing.
    latents: field of the latents, e.g. "latents/5x16x16".
    low_resolution: field of the stage below, for a super-resolution stage.
    row: text and label of a row.
    shuffle_buffer_size: rows held for shuffling.
  """
  name = f"{task}_videos"
  parse = functools.partial(
    _parse, task=name, latents=latents, low_resolution=low_resolution, row=row
  )
  return _cached_task(
    name,
    [
      parse,
      functools.partial(_video_rows, row=row),
      functools.partial(_with_null_text, task=name, row=row),
    ],
    _output_features(low_resolution, row),
    shuffle_buffer_size=shuffle_buffer_size,
    normalised=row.normalise_latents,
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

  parse = functools.partial(
    _parse, task=name, latents=of_image(latents), low_resolution=of_image(low_resolution), row=row
  )
  return _cached_task(
    name,
    [
      parse,
      functools.partial(_image_stacks, frames=frames),
      functools.partial(_with_null_text, task=name, row=row),
    ],
    _output_features(low_resolution, row),
    shuffle_buffer_size=shuffle_buffer_size,
    normalised=row.normalise_latents,
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
) -> CachedMixture:
  """Rows of videos and rows of image stacks at the given rates (joint training, Section 4.2).

  Args: as `video_task`; the row's slots are set to 1 + t.
    image_rate: relative number of image rows.
    video_rate: relative number of video rows. Assumption: 1 : 1, the paper names no rate.
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
    [(image_task(**common), image_rate), (video_task(**common), video_rate)],
  )


def pixel_task(
  *, task: str, pixels: str, images: bool = False, shuffle_buffer_size: int = 1000
) -> CachedTask:
  """Clips of pixels of `<task>_videos`, or single frames of `<task>_images`, to train the tokenizer.

  Args:
    task: the name given to preprocessing with `--content=pixels`.
    pixels: field of the pixels, e.g. "pixels/17x128x128", or "pixels/1x256x256" for images.
    images: read the images, for an image tokenizer.
    shuffle_buffer_size: rows held for shuffling.
  """

  def parse(dataset: tf.data.Dataset) -> tf.data.Dataset:
    return dataset.map(
      lambda example: {"video": schema.parse_pixels(example, pixels)},
      num_parallel_calls=tf.data.AUTOTUNE,
    )

  video = seqio.ContinuousFeature(dtype=tf.uint8, rank=4, add_eos=False)
  return _cached_task(
    f"{task}_images" if images else f"{task}_videos",
    [parse],
    {"video": video},
    shuffle_buffer_size=shuffle_buffer_size,
  )
