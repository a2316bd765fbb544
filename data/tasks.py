"""SeqIO tasks over cached latents and pixels, and mixtures of images and videos.

A task reads a folder that `python -m beam_jobs.preprocess --output=CACHE --task=NAME` wrote: `NAME_images` or
`NAME_videos` in one of SeqIO's cache directories (`--seqio_additional_cache_dirs=CACHE`). Tasks are plain objects
bound to `DatasetConfig.mixture_or_task_name` by gin, so they need not be registered under a global name:

    train/engine.DatasetConfig.mixture_or_task_name = @train/tasks.image_video_mixture()

The channel statistics, the embedding width and the null caption come from the cache's own provenance.json when the
dataset is built.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, cast

import seqio
import tensorflow as tf

from data import batch_spec, cached_tasks, schema
from data.cached_tasks import CachedMixture, CachedTask, cached_task
from data.rows import RowFormat, Rows

_DEFAULT_ROW = RowFormat()


def video_task(
  *,
  task: str,
  latents: str,
  low_resolution: str | None = None,
  row: RowFormat = _DEFAULT_ROW,
  shuffle_buffer_size: int = 1000,
  metric_fns: Sequence[Callable[..., Any]] = (),
) -> CachedTask:
  """Videos of `<task>_videos`, one per example.

  Args:
    task: --task of preprocessing.
    latents: field of the latents, e.g. "latents/5x16x16".
    low_resolution: field of the previous stage, for a super-resolution stage.
    row: text and label of an example.
    shuffle_buffer_size: number of examples in the shuffle buffer.
    metric_fns: SeqIO's, of (targets, predictions), such as `walt_t5x.metrics.sample_metrics.latent_frechet`.
  """
  name = f"{task}_videos"
  fields = {"latents": latents} | ({"low_resolution": low_resolution} if low_resolution else {})
  return cached_task(
    name,
    [Rows(task=name, fields=fields, row=row)],
    _features(latents, low_resolution, row),
    fields=fields,
    shuffle_buffer_size=shuffle_buffer_size,
    normalized=row.normalize_latents,
    statistics_of=row.statistics_of,
    metric_fns=metric_fns,
  )


def image_task(
  *,
  task: str,
  latents: str,
  low_resolution: str | None = None,
  row: RowFormat = _DEFAULT_ROW,
  shuffle_buffer_size: int = 1000,
) -> CachedTask:
  """Images of `<task>_images`, 1 + t of them stacked per example.

  Args: see `video_task`.
    latents: field of the *video* latents with the shape of the stack, e.g. "latents/5x16x16" stacks 5 images of
      "latents/1x16x16".
    low_resolution: likewise, for a super-resolution stage.
    row: text and label of an example; its slots must be 1 + t.

  Raises:
    ValueError: if the number of text slots is not the number of images.
  """
  name = f"{task}_images"
  frames, *_ = schema.latents_shape(latents)
  if row.text_slots != frames:
    raise ValueError(
      f"image_task: got RowFormat.text_slots={row.text_slots} for stacks of {frames} images; set it to {frames}"
    )
  fields = {"latents": latents} | ({"low_resolution": low_resolution} if low_resolution else {})
  fields = {
    feature: schema.latents_field(1, *schema.latents_shape(field)[1:])
    for feature, field in fields.items()
  }
  return cached_task(
    name,
    [Rows(task=name, fields=fields, row=row, frames=frames)],
    _features(latents, low_resolution, row),
    fields=fields,
    shuffle_buffer_size=shuffle_buffer_size,
    normalized=row.normalize_latents,
    statistics_of=row.statistics_of,
    kind="image",
  )


def image_video_mixture(
  *,
  task: str,
  latents: str,
  low_resolution: str | None = None,
  row: RowFormat = _DEFAULT_ROW,
  image_rate: float = 1.0,
  video_rate: float = 1.0,
  shuffle_buffer_size: int = 1000,
  metric_fns: Sequence[Callable[..., Any]] = (),
) -> CachedMixture:
  """Videos and image stacks at the given rates (joint training, Section 4.2).

  Args: see `video_task`; the text slots of `row` are set to 1 + t.
    image_rate: relative number of image examples.
    video_rate: relative number of video examples. Assumption: 1 : 1, the paper does not state a rate.
    metric_fns: metrics of the video examples.
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


def _features(
  latents: str, low_resolution: str | None, row: RowFormat
) -> dict[str, batch_spec.Feature]:
  return batch_spec.latents_features(
    latents,
    low_resolution=low_resolution,
    text=row.text_length > 0,
    label=row.label,
    slots=row.text_slots,
    text_length=row.text_length,
  )


def pixel_task(
  *,
  task: str,
  pixels: str,
  crops_of: Sequence[str] = (),
  crops_only: bool = False,
  images: bool = False,
  shuffle_buffer_size: int = 1000,
  metric_fns: Sequence[Callable[..., Any]] = (),
) -> CachedTask:
  """Pixels of clips of `<task>_videos`, or of images of `<task>_images`, for training the tokenizer.

  Args:
    task: --task of preprocessing with `--content=pixels`.
    pixels: field of the pixels, e.g. "pixels/17x128x128", or "pixels/1x256x256" for images.
    crops_of: fields of the same clip at larger sizes. Each record then also gives a random crop of each of them, of
      the size of `pixels`. A tokenizer that is used at several sizes sees all scales at the cost of the smallest one.
    crops_only: whether to leave out the clip at the size of `pixels` itself, which the cache then need not have.
    images: whether to read the images, for an image tokenizer.
    shuffle_buffer_size: number of examples in the shuffle buffer.
    metric_fns: SeqIO's, of (targets, predictions), such as `walt_t5x.metrics.sample_metrics.VideoFrechet`.
  """

  shape = (*schema.pixels_shape(pixels), 3)
  if isinstance(crops_of, str):
    raise ValueError(f"pixel_task: got {crops_of=}, expected a list of fields, [{crops_of!r}]")
  for larger in crops_of:
    if not all(map(int.__le__, shape, (*schema.pixels_shape(larger), 3))):
      raise ValueError(
        f"pixel_task: got {larger!r} in crops_of, expected sizes from which {pixels} can be cropped"
      )
  if crops_only and not crops_of:
    raise ValueError(
      "pixel_task: got crops_only=True without crops_of, expected larger fields to crop"
    )
  fields = [*([] if crops_only else [pixels]), *crops_of]

  def clip(parsed: dict[str, tf.Tensor], field: str) -> tf.Tensor:
    return schema.parse_pixels({field: parsed[field][0]}, field)

  @tf.autograph.experimental.do_not_convert  # Its translation takes a second.
  def examples(record: tf.Tensor, seed: tf.Tensor) -> dict[str, tf.Tensor]:
    parsed = schema.parse_records(record[None], fields)
    videos = [] if crops_only else [clip(parsed, pixels)]
    for index, larger in enumerate(crops_of):
      place = tf.random.fold_in(seed, index)
      videos.append(tf.image.stateless_random_crop(clip(parsed, larger), shape, place))
    return {"video": tf.stack(videos)}

  name = f"{task}_images" if images else f"{task}_videos"

  def parse(dataset: tf.data.Dataset) -> tf.data.Dataset:
    cached_tasks.handle(name).check_fields(fields, split="train")
    # SeqIO's decorator has no type annotations.
    drawn = seqio.map_over_dataset(examples, num_seeds=1)
    return cast(Callable[[tf.data.Dataset], tf.data.Dataset], drawn)(dataset).unbatch()

  return cached_task(
    name,
    [parse],
    batch_spec.video_features(pixels),
    shuffle_buffer_size=shuffle_buffer_size,
    metric_fns=metric_fns,
  )
