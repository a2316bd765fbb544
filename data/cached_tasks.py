"""SeqIO tasks and mixtures that are read from caches and give access to their provenance."""

import collections
import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
from absl import logging

from data import batch_spec, schema, shard_sources
from data.corpus import CorpusConstants
from data.provenance import LatentStatistics, Provenance, in_terms_of, read_provenance
from walt_t5x.files import storage
from walt_t5x.files.mismatch import Mismatch


def _uncached(split: str, shuffle_files: bool, seed: int | None = None) -> tf.data.Dataset:
  """Placeholder for a raw source: these tasks exist only as caches, and SeqIO rejects use_cached=False before."""
  del split, shuffle_files, seed
  raise ValueError("this task is read from its cache: set DatasetConfig.use_cached = True")


_SOURCE = seqio.FunctionDataSource(_uncached, splits=schema.SPLITS)


class CachedTask(seqio.Task):
  """A task that is read from a cache and gives access to its provenance.

  Attributes:
    statistics_of: the run whose channel statistics replace the cache's, see `data.rows.RowFormat`.
    normalized: whether the model normalizes the latents. If not, its provenance has mean 0 and deviation 1.
    kind: 'video' for one video per example, or 'image' for a stack of images.
    walt_features: features of an example.
    fields: feature of latents -> field of the records.
  """

  statistics_of: str | None = None
  normalized = True
  kind = "video"
  walt_features: Mapping[str, batch_spec.Feature] = {}
  fields: Mapping[str, str] = {}

  @property
  def cache_dir(self) -> str | None:
    """Its folder in the first of SeqIO's cache directories that has it; SeqIO asks TensorFlow, which knows no S3."""
    if self._cache_dir is None:
      name = seqio.utils.get_task_dir_from_name(self.name)
      folders = [storage.join(folder, name) for folder in seqio.get_global_cache_dirs()]
      complete = (f for f in folders if storage.exists(storage.join(f, "COMPLETED")))
      self._cache_dir = next(complete, None)
    return self._cache_dir

  def get_cached_stats(self, split: str = "train") -> Mapping[str, Any]:
    """Counts of a split: `stats.<split>.json` of the cache."""
    if split not in self._stats:
      path = seqio.utils.get_cached_stats_path(self._cache_folder(), split)
      self._stats[split] = storage.read_json(path)
    return self._stats[split]

  @property
  def walt_fields(self) -> Mapping[str, str]:
    """Feature of latents -> field of the videos' latents; for a task of images, of the same shape."""
    shapes = {feature: self.walt_features[feature].shape for feature in self.fields}
    return {
      feature: schema.latents_field(*(size or 0 for size in shape[:3]))
      for feature, shape in shapes.items()
    }

  @property
  def splits(self) -> Sequence[str]:
    """The splits that the cache has; without a cache, those that it may have."""
    return shard_sources.cached_splits(self.cache_dir) if self.cache_dir else schema.SPLITS

  def provenance(self) -> Provenance:
    """Provenance of the cache folder, with the statistics by which the model normalizes.

    Raises:
      FileNotFoundError: if no cache directory contains the task, naming the directories.
      Mismatch: if the run of `statistics_of` was trained on data of other encoders.
    """
    found = read_provenance(self._cache_folder())
    if self.statistics_of:
      found = in_terms_of(found, self.statistics_of, task=self.name)
    if self.normalized:
      return found
    latents = {
      field: LatentStatistics(channels=s.channels, mean=[0.0] * s.channels, std=[1.0] * s.channels)
      for field, s in found.latents.items()
    }
    return dataclasses.replace(found, latents=latents)

  def check_fields(self, fields: Sequence[str], *, split: str) -> None:
    """Checks that the records of a split have the fields; a cache without the split is not checked.

    Raises:
      Mismatch: naming those that the records have of the same kind.
    """
    info = f"{self._cache_folder()}/info.{split}.json"
    stored = storage.read_json(info)["features"] if storage.exists(info) else dict.fromkeys(fields)
    kind = fields[0].partition("/")[0] + "/"
    for field in fields:
      if field not in stored:
        raise Mismatch(
          f"the cache of {self.name!r} has {sorted(f for f in stored if f.startswith(kind))}, not {field!r}: set the "
          "task's fields to these, or preprocess with that resolution"
        )

  def _cache_folder(self) -> str:
    if not self.cache_dir:
      stem, _, kind = self.name.rpartition("_")
      other = f"{stem}_{'images' if kind == 'videos' else 'videos'}"
      alone = (
        f"; there is {other} only: the corpus has no {kind}" if handle(other).cache_dir else ""
      )
      raise FileNotFoundError(
        f"no cache of task {self.name!r} in {list(seqio.get_global_cache_dirs())}: run `beam_jobs.preprocess` "
        f"with this --task, and point --seqio_additional_cache_dirs at its --output{alone}"
      )
    return self.cache_dir

  def _get_cached_source(
    self, split: str, file_shuffle_buffer_size: int | None = None
  ) -> seqio.DataSource:
    """SeqIO's hook for the source that `use_cached` reads: serialized records, which the preprocessors parse."""
    del file_shuffle_buffer_size
    self.assert_cached()
    return shard_sources.raw_shards(
      self._cache_folder(), split, shuffle_buffer_size=self.shuffle_buffer_size
    )

  def get_dataset(
    self,
    sequence_length: Mapping[str, int] | None = None,
    split: str = "train",
    use_cached: bool = False,
    shuffle: bool = True,
    shuffle_buffer_size: int | None = None,
    **options: Any,
  ) -> tf.data.Dataset:
    """SeqIO's, but a cache with several clips per video keeps the order of its source, which shuffles each pass."""
    if self.cache_dir and shard_sources.clips_per_video(self.cache_dir, split) > 1:
      # A dataset in memory would repeat the order of its first epoch.
      shuffle_buffer_size, options["try_in_mem_cache"] = 1, False
    return super().get_dataset(
      sequence_length, split, use_cached, shuffle, shuffle_buffer_size, **options
    )

  def _trim_output_features(self, dataset: tf.data.Dataset, sequence_length) -> tf.data.Dataset:
    """Examples are not trimmed; SeqIO would slice their scalars (T5X's infer.py always trims)."""
    del sequence_length
    return dataset

  @property
  def walt_folders(self) -> list[str]:
    """The folder of its cache."""
    return [self._cache_folder()]

  @property
  def walt_provenance(self) -> dict:
    """Provenance as a JSON tree; the trainer stores it next to the checkpoints."""
    return json.loads(self.provenance().to_json())

  @property
  def walt_constants(self) -> CorpusConstants:
    """What is the same for all examples, for the model."""
    provenance = self.provenance()
    statistics = provenance.statistics(self.fields, task=self.name)
    moments = {name: np.array([s.mean, s.std], np.float32) for name, s in statistics.items()}
    null_text = provenance.null_embedding if "text" in self.walt_features else None
    counts = [self._num_classes(split) for split in self.splits]
    return CorpusConstants(moments=moments, null_text=null_text, num_classes=_largest(counts))

  def _num_classes(self, split: str) -> int | None:
    stats = f"{self._cache_folder()}/stats.{split}.json"
    return storage.read_json(stats).get("num_classes") if storage.exists(stats) else None


def _largest(counts: Sequence[int | None]) -> int | None:
  """The largest number of classes; None if one is unknown."""
  known = [count for count in counts if count is not None]
  return max(known, default=None) if len(known) == len(counts) else None


@functools.cache
def _warn_of_absent(mixture: str, absent: Sequence[str], present: Sequence[str]) -> None:
  """Logs once which tasks of a mixture have no cache."""
  logging.warning(
    "Mixture %r: no cache of %s; only %s is read.",
    mixture, ", ".join(absent), ", ".join(present),
  )  # fmt: skip


class CachedMixture(seqio.Mixture):
  """A mixture of caches made with the same tokenizer, text encoder and normalization.

  Caches that do not exist are left out, if there is another one: a corpus may have images only, or videos only.
  """

  @property
  def tasks(self) -> list[seqio.Task]:
    """The tasks that have a cache; all of them if none has, so that the error names them."""
    return [task for task in super().tasks if task.cache_dir] or super().tasks

  def get_dataset(self, *args: Any, **options: Any) -> tf.data.Dataset:
    """SeqIO's; a warning names the tasks without a cache."""
    names = tuple(task.name for task in self.tasks)
    if absent := tuple(task.name for task in super().tasks if task.name not in names):
      _warn_of_absent(self.name, absent, names)
    return super().get_dataset(*args, **options)

  def _cached_tasks(self) -> list[CachedTask]:
    tasks = [task for task in self.tasks if isinstance(task, CachedTask)]
    if len(tasks) < len(self.tasks):
      raise TypeError(f"mixture {self.name!r}: its tasks must be cached tasks of `data.tasks`")
    return tasks

  @property
  def walt_features(self) -> Mapping[str, batch_spec.Feature]:
    """The features of an example, the same for every task."""
    return self._cached_tasks()[0].walt_features

  @property
  def walt_fields(self) -> Mapping[str, str]:
    """Feature of latents -> field of the videos' latents."""
    return self._cached_tasks()[0].walt_fields

  @property
  def walt_constants(self) -> CorpusConstants:
    """Constants of the videos, with which generation decodes; other statistics of the images are logged."""
    first, *others = sorted(self._cached_tasks(), key=lambda task: task.kind != "video")
    common, counts = first.walt_constants, [first.walt_constants.num_classes]
    for other in others:
      constants = other.walt_constants
      counts.append(constants.num_classes)
      for name, moments in constants.moments.items():
        if not np.array_equal(moments, common.moments[name]):
          logging.warning(
            "Mixture %r: mean and standard deviation of %s differ: %s has %s, %s has %s. The first are used for both; "
            "a job that preprocesses images and videos together computes them over both.",
            self.name, name, first.name, common.moments[name].tolist(), other.name, moments.tolist(),
          )  # fmt: skip
    return dataclasses.replace(common, num_classes=_largest(counts))

  @property
  def walt_rates(self) -> dict[str, float]:
    """Share of the examples of each kind ('image', 'video'), from SeqIO's mixing rates."""
    rates = collections.defaultdict[str, float](float)
    for task in self._cached_tasks():
      rates[task.kind] += self.get_rate(task)
    return {kind: rate / sum(rates.values()) for kind, rate in sorted(rates.items())}

  @property
  def walt_folders(self) -> list[str]:
    """The folders of the caches."""
    return [folder for task in self._cached_tasks() for folder in task.walt_folders]

  @property
  def walt_provenance(self) -> dict:
    """The tasks' common provenance.

    Raises:
      Mismatch: naming the first field in which two tasks differ.
    """
    first, *others = self._cached_tasks()
    common = first.walt_provenance
    for other in others:
      found = other.walt_provenance
      # Images have other latents fields; the remaining provenance must be the same.
      fields = found.pop("latents")
      common["latents"] = fields | common["latents"]
      for field in sorted(common.keys() | found.keys()):
        if field == "latents":
          continue
        if common.get(field) != found.get(field):
          raise Mismatch(
            f"mixture {self.name!r}: {field} differs: {first.name} has {common.get(field)!r}, {other.name} has "
            f"{found.get(field)!r}; preprocess both with the same encoders, or train on one"
          )
    return common


def cached_task(
  name: str,
  preprocessors: Sequence,
  features: Mapping[str, batch_spec.Feature],
  *,
  shuffle_buffer_size: int,
  normalized: bool = True,
  statistics_of: str | None = None,
  fields: Mapping[str, str] | None = None,
  kind: str = "video",
  metric_fns: Sequence[Callable[..., Any]] = (),
) -> CachedTask:
  """A task over the serialized records of its cache; nothing is registered under a global name."""
  task = CachedTask(
    name,
    source=_SOURCE,
    preprocessors=[seqio.CacheDatasetPlaceholder(required=True), *preprocessors],
    output_features={name: _seqio_feature(name, f) for name, f in features.items()},
    shuffle_buffer_size=shuffle_buffer_size,
    metric_fns=list(metric_fns),
  )
  task.normalized, task.kind, task.walt_features = normalized, kind, features
  task.statistics_of, task.fields = statistics_of, fields or {}
  return task


def _seqio_feature(name: str, feature: batch_spec.Feature) -> seqio.ContinuousFeature:
  """What SeqIO expects of a task; its text is not padded yet: a string of packed tokens per slot."""
  dtype, rank = tf.as_dtype(feature.dtype), len(feature.shape)
  if name == "text":
    dtype, rank = tf.string, 1
  return seqio.ContinuousFeature(dtype=dtype, rank=rank, add_eos=False)


@functools.cache
def handle(name: str) -> CachedTask:
  """A task without features, for reading the provenance of a cache."""
  return CachedTask(name, source=_SOURCE, output_features={}, preprocessors=[])
