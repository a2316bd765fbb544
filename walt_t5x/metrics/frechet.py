"""The Frechet distance between two Gaussians, and scores over several folds.

  d^2 = |m_1 - m_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1 S_2)^(1/2)

The last trace is the sum of the singular values of S_1^(1/2) S_2^(1/2), with symmetric roots. This
form needs no root of a nonsymmetric product and gives no complex numbers. Its absolute error is a
few ulp of the largest variance even if both covariances are rank deficient: the error of a singular
value is the rounding error, that of the root of an eigenvalue of S_1 S_2 its square root.

Source: Dowson and Landau 1982; FID (arXiv:1706.08500), FVD (arXiv:1812.01717).
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import linalg

from walt_t5x.metrics.feature_statistics import FeatureStatistics


def _root(covariance: Float[np.ndarray, "F F"]) -> Float[np.ndarray, "R F"]:
  """R with R^T R = S, without directions whose variance is below rounding error."""
  values, vectors = linalg.eigh(covariance)
  kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
  return np.sqrt(values[kept])[:, None] * vectors[:, kept].T


def frechet_distance(
  mean_1: Float[np.ndarray, " F"],
  covariance_1: Float[np.ndarray, "F F"],
  mean_2: Float[np.ndarray, " F"],
  covariance_2: Float[np.ndarray, "F F"],
) -> float:
  """d^2 between N(mean_1, covariance_1) and N(mean_2, covariance_2), at least 0.

  Args:
    mean_1, mean_2: [F], any float dtype; computed in float64.
    covariance_1, covariance_2: [F, F], symmetric and positive semidefinite; may be singular.

  Raises:
    ValueError: for shapes that differ, values that are not finite, or a covariance that is not
      symmetric or has negative eigenvalues beyond rounding.
  """
  mean_1, mean_2 = np.asarray(mean_1, np.float64), np.asarray(mean_2, np.float64)
  roots = []
  for name, covariance in (("first", covariance_1), ("second", covariance_2)):
    covariance = np.asarray(covariance, np.float64)
    if mean_1.shape != mean_2.shape or covariance.shape != (mean_1.size, mean_1.size):
      raise ValueError(
        f"Expected means [F] and covariances [F, F] of one size, got {mean_1.shape}, "
        f"{mean_2.shape} and a {name} covariance {covariance.shape}."
      )
    if not np.isfinite(covariance).all() or not np.isfinite(mean_1 + mean_2).all():
      raise ValueError(f"The means or the {name} covariance are not finite.")
    scale = np.abs(covariance).max()
    if np.abs(covariance - covariance.T).max() > 1e-8 * scale:
      raise ValueError(f"The {name} covariance is not symmetric.")
    covariance = (covariance + covariance.T) / 2
    root = _root(covariance)
    lost = np.trace(covariance) - np.square(root).sum()
    if lost < -1e-6 * np.trace(covariance):
      raise ValueError(f"The {name} covariance has negative eigenvalues that sum to {lost:.3g}.")
    roots.append(root)
  product = roots[0] @ roots[1].T
  cross = np.sum(linalg.svdvals(product)) if product.size else 0.0
  spread = np.square(roots[0]).sum() + np.square(roots[1]).sum() - 2 * cross
  return float(max(0.0, np.square(mean_1 - mean_2).sum() + spread))


def frechet_between(
  first: FeatureStatistics, second: FeatureStatistics, *, unbiased: bool = True
) -> float:
  """d^2 between the Gaussians of two sets of features, at least 0."""
  return frechet_distance(*first.compute(unbiased=unbiased), *second.compute(unbiased=unbiased))


@dataclass(frozen=True)
class FoldScore:
  """A score over folds, each with its own samples; prints as "mean +- std"."""

  values: tuple[float, ...]

  def __post_init__(self):
    if not self.values:
      raise ValueError("A score over folds needs at least one fold, got none.")

  @property
  def mean(self) -> float:
    """Mean over the folds."""
    return float(np.mean(self.values))

  @property
  def std(self) -> float:
    """Population standard deviation over the folds."""
    return float(np.std(self.values))

  def __str__(self) -> str:
    return f"{self.mean:.4g}" + (f" +- {self.std:.2g}" if len(self.values) > 1 else "")


def frechet_over_folds(
  samples: Sequence[FeatureStatistics],
  references: Sequence[FeatureStatistics],
  *,
  unbiased: bool = True,
) -> FoldScore:
  """The distance of each fold of samples from its own references; raises ValueError if the numbers of folds differ."""
  if len(samples) != len(references):
    raise ValueError(
      f"Every fold needs its own references: got {len(samples)} folds of samples and "
      f"{len(references)} of references."
    )
  between = functools.partial(frechet_between, unbiased=unbiased)
  return FoldScore(tuple(map(between, samples, references)))
