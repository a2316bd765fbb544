"""Inception score, streamed: confidence of a classifier per sample, and diversity of the set.

  IS = exp( E_x KL( p(y|x) || p(y) ) ) = exp( H(p(y)) - E_x H(p(y|x)) ),    p(y) = E_x p(y|x)

so the statistics of a set are n, sum p(y|x) and sum H(p(y|x)), which merge by addition.

Source: arXiv:1606.03498. The score is reported as mean and population standard deviation over
splits: consecutive blocks of the samples for ImageNet (10 splits of 5,000), one block per fold for
UCF-101 with C3D.
"""

from collections.abc import Iterable

import numpy as np
from clu import metrics
from flax import struct
from jaxtyping import Float
from scipy.special import log_softmax

from walt_t5x.metrics.frechet import FoldScore


@struct.dataclass
class InceptionScoreStatistics(metrics.Metric):
  """Statistics of one split, on the host in float64.

  Attributes:
    count: n.
    probabilities: sum of p(y|x), [C].
    entropy: sum of H(p(y|x)), in nats.
  """

  count: int
  probabilities: np.ndarray
  entropy: float

  @classmethod
  def from_model_output(cls, logits: Float[np.ndarray, "N C"], **_) -> "InceptionScoreStatistics":
    """Statistics of one batch of logits (before the softmax); raises ValueError if not finite."""
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or 0 in logits.shape or not np.isfinite(logits).all():
      raise ValueError(
        f"Expected finite logits [N, C] with N, C > 0, got shape {logits.shape}, "
        f"{int((~np.isfinite(logits)).sum())} not finite."
      )
    log_p = log_softmax(logits, axis=-1)
    p = np.exp(log_p)
    return cls(count=len(logits), probabilities=p.sum(0), entropy=float(-(p * log_p).sum()))

  @classmethod
  def empty(cls) -> "InceptionScoreStatistics":
    """Statistics of no samples; merges with any number of classes."""
    return cls(count=0, probabilities=np.zeros(0), entropy=0.0)

  def merge(self, other: "InceptionScoreStatistics") -> "InceptionScoreStatistics":
    """Statistics of the union of both sets; raises ValueError if the numbers of classes differ."""
    if not self.count:
      return other
    if not other.count:
      return self
    if self.probabilities.shape != other.probabilities.shape:
      raise ValueError(
        f"Cannot merge scores over {self.probabilities.size} and {other.probabilities.size} classes."
      )
    return InceptionScoreStatistics(
      count=self.count + other.count,
      probabilities=self.probabilities + other.probabilities,
      entropy=self.entropy + other.entropy,
    )

  def compute(self) -> float:
    """The score, between 1 and the number of classes; raises ValueError if the count is 0."""
    if not self.count:
      raise ValueError("An inception score needs at least one sample, got none.")
    marginal = self.probabilities / self.count
    seen = marginal[marginal > 0]
    return float(np.exp(-(seen * np.log(seen)).sum() - self.entropy / self.count))


def split_of(index: int, *, count: int, splits: int) -> int:
  """The split of sample `index`, in [0, splits): consecutive blocks whose sizes differ by at most one.

  Raises ValueError unless 0 <= index < count and 1 <= splits <= count.
  """
  if not 0 <= index < count or not 1 <= splits <= count:
    raise ValueError(
      f"Expected 0 <= index < count and 1 <= splits <= count, got {index=} {count=} {splits=}."
    )
  return ((index + 1) * splits - 1) // count


def score_splits(statistics: Iterable[InceptionScoreStatistics]) -> FoldScore:
  """Mean and standard deviation of the scores of the splits."""
  return FoldScore(tuple(s.compute() for s in statistics))
