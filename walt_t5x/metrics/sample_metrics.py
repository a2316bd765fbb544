"""SeqIO `metric_fns`: pure functions of (targets, predictions), for the evaluators of T5X and SeqIO.

tasks.video_task.metric_fns = [@sample_metrics.latent_frechet]
tasks.pixel_task.metric_fns = [@sample_metrics.VideoFrechet()]
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from walt_t5x.media.pixels import to_uint8
from walt_t5x.metrics.feature_statistics import FeatureStatistics
from walt_t5x.metrics.frechet import frechet_between
from walt_t5x.metrics.networks import FeatureNetwork
from walt_t5x.metrics.protocols import PROTOCOLS
from walt_t5x.metrics.protocols.protocol import Statistic


def latent_frechet(targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
  """Frechet distance between the channels of latents, with every position of every clip as a sample; uses no network.

  It depends on means and covariances of channels only, not on space or time: a large distance means that a model is
  broken, a small one does not mean that it is good. Each clip of targets and predictions is [T, h, w, c].
  """
  statistics = []
  for clips in (predictions, targets):
    places = np.stack([np.asarray(clip, np.float64) for clip in clips])
    statistics.append(FeatureStatistics.from_model_output(places.reshape(-1, places.shape[-1])))
  return {"latent_frechet": frechet_between(*statistics)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoFrechet:
  """Frechet distance of a protocol between clips of pixels, such as reconstructions of a tokenizer and their inputs.

  Attributes:
    protocol: name of a protocol, whose first Frechet distance is used.
    weights: file with the weights of its network.
    batch_size: clips per forward pass.
  """

  protocol: str
  weights: str
  batch_size: int = 8

  @functools.cached_property
  def _network(self) -> FeatureNetwork:
    protocol = PROTOCOLS[self.protocol]
    return FeatureNetwork.of_protocol(protocol, self._rule.network, self.weights)

  @property
  def _rule(self):
    rules = PROTOCOLS[self.protocol].scores
    return next(rule for rule in rules if rule.statistic is Statistic.FRECHET)

  def __call__(self, targets: Sequence[Any], predictions: Sequence[Any]) -> dict[str, float]:
    """Returns {"PROTOCOL/SCORE@HASH": distance}; the hash covers length, size and number of the clips.

    Clips are [T, H, W, 3] (or lists of their frames, as SeqIO passes them), uint8, or float in [0, 1], which is rounded
    to bytes. Raises FileNotFoundError if the file of weights does not exist.
    """
    videos = [
      to_uint8(np.stack([np.asarray(clip) for clip in clips])) for clips in (predictions, targets)
    ]
    protocol = PROTOCOLS[self.protocol].replace(
      frames=videos[0].shape[1],
      size=tuple(videos[0].shape[2:4]),
      sample_count=len(videos[0]),
      reference_count=len(videos[1]),
      folds=1,
    )
    name = f"{protocol.name}/{self._rule.name}@{protocol.hash}"
    statistics = [self._statistics(clips) for clips in videos]
    return {name: frechet_between(*statistics, unbiased=self._rule.is_unbiased)}

  def _statistics(self, videos: np.ndarray) -> FeatureStatistics:
    total = FeatureStatistics.empty()
    for first in range(0, len(videos), self.batch_size):
      batch = videos[first : first + self.batch_size]
      features = self._network(batch, batch_size=self.batch_size)[self._rule.layer]
      total = total.merge(FeatureStatistics.from_model_output(features))
    return total
