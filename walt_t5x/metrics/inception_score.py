"""Inception score, streamed: how sure a classifier is of each sample, and how varied the set is.

  IS = exp( E_x KL( p(y|x) || p(y) ) ) = exp( H(p(y)) - E_x H(p(y|x)) ),    p(y) = E_x p(y|x)

so a part keeps n, sum p(y|x) and sum H(p(y|x)), and parts merge by addition.

Source: arXiv:1606.03498. The score is reported as mean and population standard deviation over
splits: consecutive blocks of the samples for ImageNet (10 splits of 5,000), one block a fold for
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
  """What one split keeps, on the host in float64.

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
    """Statistics of one batch of logits (before the softmax).

    Raises:
      ValueError: another rank, no rows, or values that are not finite.
    """
    logits = np.asarray(logits, np.float64)
    if logits.ndim != 2 or 0 in logits.shape or not np.isfinite(logits).all():
      raise ValueError(
        f"Finite logits [N, C] with N, C > 0 are expected, got shape {logits.shape}, "
        f"{int((~np.isfinite(logits)).sum())} not finite."
      )
    log_p = log_softmax(logits, axis=-1)
    p = np.exp(log_p)
    return cls(count=len(logits), probabilities=p.sum(0), entropy=float(-(p * log_p).sum()))

  @classmethod
  def empty(cls, num_classes: int = 0) -> "InceptionScoreStatistics":
    """No samples; merges with any number of classes when it is 0."""
    return cls(count=0, probabilities=np.zeros(num_classes), entropy=0.0)

  def merge(self, other: "InceptionScoreStatistics") -> "InceptionScoreStatistics":
    """Statistics of both sets together."""
    if not self.count:
      return other
    if not other.count:
      return self
    if self.probabilities.shape != other.probabilities.shape:
      raise ValueError(
        f"Scores over {self.probabilities.size} and {other.probabilities.size} classes cannot merge."
      )
    return InceptionScoreStatistics(
      count=self.count + other.count,
      probabilities=self.probabilities + other.probabilities,
      entropy=self.entropy + other.entropy,
    )

  def compute(self) -> float:
    """The score, between 1 and the number of classes.

    Raises:
      ValueError: without any sample.
    """
    if not self.count:
      raise ValueError("An inception score takes at least one sample, got none.")
    marginal = self.probabilities / self.count
    seen = marginal[marginal > 0]
    return float(np.exp(-(seen * np.log(seen)).sum() - self.entropy / self.count))


def split_of(index: int, *, count: int, splits: int) -> int:
  """The split of sample `index`: consecutive blocks whose sizes differ by at most one."""
  if not 0 <= index < count or not 1 <= splits <= count:
    raise ValueError(
      f"0 <= index < count and 1 <= splits <= count, got {index=} {count=} {splits=}."
    )
  return ((index + 1) * splits - 1) // count


def inception_score(logits: Float[np.ndarray, "N C"], *, splits: int = 1) -> FoldScore:
  """The score of each split of a whole set, in the set's own order.

  Args:
    logits: one row a sample, before the softmax.
    splits: number of consecutive blocks.

  Raises:
    ValueError: more splits than samples.
  """
  number = np.array([split_of(i, count=len(logits), splits=splits) for i in range(len(logits))])
  return score_splits(
    InceptionScoreStatistics.from_model_output(logits[number == k]) for k in range(splits)
  )


def score_splits(statistics: Iterable[InceptionScoreStatistics]) -> FoldScore:
  """Mean and spread of the splits' scores."""
  return FoldScore(tuple(s.compute() for s in statistics))
