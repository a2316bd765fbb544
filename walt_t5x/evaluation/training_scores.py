"""A score of the samples during training: an action that both engines run after an evaluation.

train_script.train.actions = {'TRAIN_EVAL': [@training_scores.ScoreVideos()]}
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

from walt_t5x.evaluation.media_files import Media, find_media
from walt_t5x.evaluation.parts import PartStatistics
from walt_t5x.evaluation.scoring import Evaluation, reference_folds
from walt_t5x.files.paths import as_path
from walt_t5x.generation.training_samples import SampleVideos
from walt_t5x.metrics.networks import FeatureNetwork
from walt_t5x.metrics.protocols import PROTOCOLS


class ScoreVideos(SampleVideos):
  """Samples for the conditions of held-out examples and scores the clips by a protocol; TensorBoard shows the curve.

  The score is named `PROTOCOL/SCORE@HASH`. The hash covers the number of clips, their length and their size, so a
  curve of 32 clips cannot be confused with a published number. With few clips a Frechet distance is far larger than
  with ten thousand, so curves are only comparable with curves of the same hash. Events and `metrics.jsonl` are written
  to `<model_dir>/scores` through CLU.

  All clips are sampled in one batch. References are resized to the samples' size.

  Args:
    protocol: name of a protocol whose references are clips.
    reference: folder of media or manifest, as in `walt_t5x.evaluate`.
    weights: network -> file of its weights.
    reference_split: keep only the manifest rows of this split.
    reference_count: number of reference clips; None for one of every file.
    options: options of `SampleVideos`: model, dataset_cfg, model_dir, num_videos, every, average, vae, ...

  Raises:
    ValueError: the protocol is unknown or has no videos, or a denoiser has no `vae` to decode its latents.
    FileNotFoundError: weights or references are missing.
  """

  def __init__(
    self,
    *,
    protocol: str,
    reference: str,
    weights: Mapping[str, str],
    reference_split: str | None = None,
    reference_count: int | None = None,
    batch_size: int = 8,
    **options: Any,
  ):
    super().__init__(**options)
    # Samples have no paired references.
    videos = sorted(
      name
      for name, p in PROTOCOLS.items()
      if p.frames > 1 and not any(rule.is_paired for rule in p.scores)
    )
    if protocol not in videos:
      raise ValueError(f"ScoreVideos: got protocol={protocol!r}, expected one of {videos}.")
    if self.shows_latents:
      raise ValueError("ScoreVideos scores pixels: set vae, vae_checkpoint and latents to decode.")
    self._protocol = PROTOCOLS[protocol]
    self._networks = {
      name: FeatureNetwork.of_protocol(self._protocol, name, weights.get(name))
      for name in self._protocol.networks
    }
    self._reference = find_media(reference, split=reference_split)
    self._reference_count, self._batch_size = reference_count, batch_size
    self._folds: list[PartStatistics] | None = None

  def _write(self, step: int, clips: np.ndarray) -> None:
    from walt_t5x.engine.builtin.summaries import create_writer

    protocol = self._protocol.replace(
      frames=clips.shape[1],
      size=tuple(clips.shape[2:4]),
      sample_count=len(clips),
      reference_count=self._reference_count,
      folds=1,
    )
    samples = [
      Media(name=str(i), path=as_path("."), read=lambda clip=clip: clip, generated=True)
      for i, clip in enumerate(clips)
    ]
    evaluation = Evaluation(
      protocol, samples, self._reference, self._networks, batch_size=self._batch_size
    )
    if self._folds is None:
      # The references do not change; a resumed run finds their statistics by content.
      local = "://" not in self._model_dir
      cache = as_path(self._model_dir) / "scores" / "references" if local else None
      self._folds = reference_folds(evaluation, cache)
    scores = evaluation.scores(evaluation.folds(references=False), self._folds)
    values = {f"{protocol.name}/{s.rule.name}@{s.protocol_hash}": s.value.mean for s in scores}
    writer = create_writer(self._model_dir, "scores")
    writer.write_scalars(step, values)
    writer.close()
    described = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    networks = ", ".join(network.description for network in self._networks.values())
    logging.info("Step %d, %d samples: %s (%s)", step, len(clips), described, networks)
