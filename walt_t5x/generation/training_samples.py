"""Clips in TensorBoard; sample videos during training: an action that both engines run after an evaluation.

train_script.train.actions = {'TRAIN_EVAL': [@training_samples.SampleVideos()]}
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec

from data.provenance import read_provenance
from walt_t5x.engine.optimizers import check_average, parameter_average
from walt_t5x.files import mirror, storage
from walt_t5x.generation.checks import tokenizer_params
from walt_t5x.media import writing
from walt_t5x.media.pixels import clip_to_uint8
from walt_t5x.models.vae_model import VaeModel


class SampleVideos:
  """Samples with the current parameters for the conditions of held-out examples, always from the same noise.

  A tokenizer shows its reconstructions. A denoiser's latents are decoded if `vae_checkpoint` is given; otherwise their
  first three channels are shown as colors, which shows structure and motion early. TensorBoard shows the clips as
  animated images under `samples`; the same GIFs are in `<model_dir>/samples`.

  With several hosts this needs the built-in engine: T5X runs actions only on its first host, which cannot execute a
  program over all devices.

  Args:
    dataset_cfg: held-out data; the first examples are used, in the order of the files.
    every: least number of steps between two sets of clips; they are made at evaluations.
    average: sample with the parameter average, as `generate` does; False samples with the parameters.
    vae: the tokenizer's network, to decode a denoiser's latents.
    vae_checkpoint, vae_average: its weights, averaged or not.
    latents: field of the latents, whose statistics are in `<model_dir>/provenance.json`.

  Raises:
    ValueError: `vae`, `vae_checkpoint` and `latents` are not given together, the tokenizer is not the data's own, or
      the optimizer keeps no average.
  """

  def __init__(
    self,
    *,
    model: Any,
    dataset_cfg: Any,
    model_dir: str,
    num_videos: int = 4,
    every: int = 1,
    average: bool = True,
    vae: Any = None,
    vae_checkpoint: str | None = None,
    vae_average: bool = True,
    latents: str | None = None,
    fps: float = 8.0,
  ):
    is_set = [vae is not None, vae_checkpoint is not None, latents is not None]
    if any(is_set) and not all(is_set):
      raise ValueError(
        f"SampleVideos: got vae={is_set[0]}, vae_checkpoint={is_set[1]}, latents={is_set[2]}; give all to decode, or "
        "none to show latents as colors."
      )
    if average:
      check_average(model.optimizer_def, setting="SampleVideos.average")
    self._model, self._dataset_cfg, self._model_dir = model, dataset_cfg, model_dir
    self._num_videos, self._every, self._average, self._fps = num_videos, every, average, fps
    self._vae, self._vae_checkpoint, self._latents = vae, vae_checkpoint, latents
    self._vae_average = vae_average
    self._last: int | None = None
    self._batch: dict[str, np.ndarray] | None = None
    self._tokenizer: tuple[Any, np.ndarray, np.ndarray] | None = None
    self._predict = jax.jit(model.predict_batch)
    # The weights are arguments: a program holds closed-over arrays as constants.
    self._decode = jax.jit(
      lambda params, mean, std, z: vae.apply({"params": params}, z * std + mean, method="decode")
    )

  @property
  def shows_latents(self) -> bool:
    """Whether clips are latents shown as colors, because no tokenizer is given."""
    return self._vae is None and not isinstance(self._model, VaeModel)

  def run(self, train_state: Any, metrics_by_task: Mapping[str, Any]) -> bool:
    """Makes the clips if they are due; never requests a stop."""
    del metrics_by_task
    step = int(jax.device_get(train_state.step))
    if self._last is not None and step - self._last < self._every:
      return False
    self._last = step
    params = train_state.params
    if self._average:
      params = parameter_average(params, train_state.param_states)
    if self._batch is None:
      self._batch = first_rows(self._model, self._dataset_cfg, self._num_videos)
    predicted = self._predict(params, _replicated(self._batch, params))
    if isinstance(self._model, VaeModel):
      pixels = predicted
    elif self.shows_latents:
      pixels = 0.5 + predicted[..., :3] / 6.0  # Black to white is -3 to 3 standard deviations.
    else:
      if self._tokenizer is None:
        self._tokenizer = self._read_tokenizer()
      pixels = self._decode(*_replicated(self._tokenizer, params), predicted)
    pixels = np.asarray(jax.device_get(pixels), np.float32)
    if jax.process_index() == 0:
      self._write(step, np.stack([clip_to_uint8(np.nan_to_num(clip)) for clip in pixels]))
    return False

  def _read_tokenizer(self) -> tuple[Any, np.ndarray, np.ndarray]:
    """The tokenizer's weights, and the mean and standard deviation of each channel of its latents."""
    assert self._vae_checkpoint is not None and self._latents is not None, "given with the vae"
    provenance = read_provenance(self._model_dir)
    statistics = provenance.latents[self._latents]
    params = tokenizer_params(
      self._vae,
      self._vae_checkpoint,
      ema=self._vae_average,
      expected=provenance.vae["fingerprint"],
      setting="SampleVideos.vae_checkpoint (or vae_average)",
    )
    return params, np.asarray(statistics.mean, np.float32), np.asarray(statistics.std, np.float32)

  def _write(self, step: int, clips: np.ndarray) -> None:
    folder = storage.join(self._model_dir, "samples")
    tags = {f"samples/{i}": clip for i, clip in enumerate(clips)}
    for i, gif in enumerate(write_clips(folder, tags, step=step, fps=self._fps).values()):
      storage.write(storage.join(folder, f"step{step:07}_{i}.gif"), gif)
    logging.info("Wrote %d sample videos of step %d to %s.", len(clips), step, folder)


def write_clips(
  folder: str,
  clips: Mapping[str, np.ndarray],
  *,
  step: int,
  fps: float,
  scalars: Mapping[str, float] | None = None,
) -> dict[str, bytes]:
  """Writes clips, tag -> frames [T, H, W, 3], as TensorBoard images: animated GIFs; returns the GIF of each tag.

  CLU and tf.summary do not support videos. `scalars` are written to the same event file.
  """
  import tensorflow as tf
  from tensorboard.plugins.image import metadata

  storage.make_folder(folder)
  copied = mirror.Mirror(folder)
  gifs, writer = {}, tf.summary.create_file_writer(copied.folder)
  with writer.as_default():
    for tag, clip in clips.items():
      gifs[tag] = writing.encode_video(clip, suffix=".gif", fps=fps)
      width, height = str(clip.shape[2]), str(clip.shape[1])
      described = metadata.create_summary_metadata(display_name=None, description="")
      tf.summary.write(tag, tf.constant([width, height, gifs[tag]]), step=step, metadata=described)
    for tag, value in (scalars or {}).items():
      tf.summary.scalar(tag, value, step=step)
  writer.close()
  copied.try_upload()
  return gifs


def _replicated(tree: Any, params: Any) -> Any:
  """The arrays, on every device that holds parameters."""
  sharding = jax.tree.leaves(params)[0].sharding
  if isinstance(sharding, NamedSharding):
    sharding = NamedSharding(sharding.mesh, PartitionSpec())
  return jax.tree.map(
    lambda value: jax.make_array_from_callback(value.shape, sharding, lambda index: value[index]),
    tree,
  )


def first_rows(model: Any, dataset_cfg: Any, count: int) -> dict[str, np.ndarray]:
  """The first examples of a dataset from the model's converter; the same on every host.

  Raises:
    ValueError: the dataset has fewer.
  """
  from walt_t5x.engine.builtin.datasets import get_dataset

  cfg = dataclasses.replace(dataset_cfg, batch_size=count, shuffle=False)
  rows = get_dataset(cfg, 0, 1, model.FEATURE_CONVERTER_CLS, num_epochs=1)
  batch = next(iter(rows.as_numpy_iterator()), None)
  if batch is None:
    raise ValueError(
      f"SampleVideos: split {dataset_cfg.split!r} has fewer than num_videos={count} examples; lower num_videos."
    )
  return batch
