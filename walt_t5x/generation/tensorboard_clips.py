"""Clips in TensorBoard as animated GIFs, which its image plugin displays."""

import os
from collections.abc import Mapping, Sequence

import numpy as np

from walt_t5x.media import writing


def write_clips(
  folder: str,
  clips: Mapping[str, np.ndarray],
  *,
  step: int,
  fps: float,
  scalars: Mapping[str, float] | None = None,
) -> dict[str, bytes]:
  """Writes an event file; CLU and tf.summary do not support videos.

  Args:
    folder: folder of the event files; created if missing.
    clips: tag -> frames [T, H, W, 3], uint8 or in [0, 1].
    step: training step.
    fps: frame rate of the clips.
    scalars: tag -> number, also written.

  Returns:
    The GIF of each tag.
  """
  import tensorflow as tf
  from tensorboard.plugins.image import metadata

  os.makedirs(folder, exist_ok=True) if "://" not in folder else tf.io.gfile.makedirs(folder)
  gifs, writer = {}, tf.summary.create_file_writer(folder)
  with writer.as_default():
    for tag, clip in clips.items():
      gifs[tag] = writing.encode_video(clip, suffix=".gif", fps=fps)
      shape: Sequence[str] = [str(clip.shape[2]), str(clip.shape[1])]
      described = metadata.create_summary_metadata(display_name=None, description="")
      tf.summary.write(tag, tf.constant([*shape, gifs[tag]]), step=step, metadata=described)
    for tag, value in (scalars or {}).items():
      tf.summary.scalar(tag, value, step=step)
  writer.close()
  return gifs
