"""Writes images, clips and scores of a tokenizer's reconstructions at every evaluation of a training run.

An action of the engine: `train_script.train.actions = {'TRAIN_EVAL': [@ReconstructionSummaries()]}`.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, UInt8

from walt_t5x.engine.optimizers import check_average, parameter_average
from walt_t5x.files import mirror
from walt_t5x.media import writing
from walt_t5x.media.pixels import to_float, to_uint8
from walt_t5x.models.vae_model import VaeModel

Clips = Float[np.ndarray, "B T H W 3"]
# (originals, reconstructions), both in [0, 1] -> name -> number. rFVD is such a hook, given the features of I3D.
Score = Callable[[Clips, Clips], Mapping[str, float]]


def comparison_strip(
  original: Clips, reconstruction: Clips, *, frames: int = 5
) -> UInt8[np.ndarray, "H2 W2 3"]:
  """Each clip as two lines of evenly spaced frames, including first and last: original above, reconstruction below."""
  times = np.unique(np.linspace(0, original.shape[1] - 1, frames).round().astype(int))
  lines = []
  for pair in zip(to_uint8(original), to_uint8(reconstruction)):
    lines += [np.concatenate(list(clip[times]), axis=1) for clip in pair]
  return np.concatenate(lines, axis=0)


def comparison_video(original: Clips, reconstruction: Clips) -> UInt8[np.ndarray, "T H2 W2 3"]:
  """A video of all clips, one below the other, with the original on the left and the reconstruction on the right."""
  both = np.concatenate([to_uint8(original), to_uint8(reconstruction)], axis=3)
  return np.concatenate(list(both), axis=1)


class ReconstructionSummaries:
  """Writes `<model_dir>/reconstructions/<step>.mp4`, a TensorBoard image, and the values of `scores`.

  Args:
    task: a SeqIO task with `video`, such as `data.tasks.pixel_task`.
    clips: number of clips, from the start of the split.
    average: reconstruct with the parameter average, as later programs do; False uses the parameters.
    fps: frame rate of the mp4.
    scores: additional scores of the clips, logged under "reconstructions/".

  Raises ValueError if `average` is set and the optimizer keeps none.
  """

  def __init__(
    self,
    *,
    model: VaeModel,
    task: Any,
    model_dir: str,
    clips: int = 4,
    average: bool = True,
    split: str = "validation",
    fps: float = 8.0,
    scores: Sequence[Score] = (),
  ):
    if average:
      check_average(model.optimizer_def, setting="ReconstructionSummaries.average")
    self._task, self._clips, self._average, self._split = task, clips, average, split
    self._folder, self._fps = os.path.join(model_dir, "reconstructions"), fps
    self._scores = tuple(scores)
    self._video: np.ndarray | None = None
    self._writer: Any = None
    self._reconstruct = jax.jit(lambda params, video: model.predict_batch(params, {"video": video}))

  def run(self, train_state: Any, metrics_by_task: Mapping[str, Any] | None = None) -> bool:
    """Every host reconstructs the same clips; host 0 writes them. Never requests a stop."""
    del metrics_by_task
    if self._video is None:
      self._video = self._read()
    params = train_state.params
    if self._average:
      params = parameter_average(params, train_state.param_states)
    found = jax.device_get(self._reconstruct(params, self._video))
    if jax.process_index() == 0:
      self._write(int(jax.device_get(train_state.step)), to_float(self._video), found)
    return False

  def _read(self) -> np.ndarray:
    dataset = self._task.get_dataset(
      sequence_length=None,
      split=self._split,
      use_cached=True,
      shuffle=False,
      num_epochs=1,
      trim_output_features=False,
    )
    rows = [row["video"] for row in dataset.take(self._clips).as_numpy_iterator()]
    if not rows:
      raise ValueError(
        f"ReconstructionSummaries: split {self._split!r} of {self._task.name} has no clips; set split to one that has."
      )
    return np.stack(rows)

  def _write(self, step: int, original: np.ndarray, reconstruction: np.ndarray) -> None:
    copied = mirror.shared(self._folder)
    os.makedirs(copied.folder, exist_ok=True)
    clip = comparison_video(original, reconstruction)
    writing.write_video(os.path.join(copied.folder, f"{step}.mp4"), clip, fps=self._fps)
    if self._writer is None:
      from clu import metric_writers

      self._writer = metric_writers.create_default_writer(copied.folder, asynchronous=False)
    image = comparison_strip(original, reconstruction)[None] / np.float32(255)
    self._writer.write_images(step, {"reconstructions": image})
    for score in self._scores:
      numbers = score(original, reconstruction)
      self._writer.write_scalars(step, {f"reconstructions/{k}": v for k, v in numbers.items()})
    self._writer.flush()
    copied.try_upload()
