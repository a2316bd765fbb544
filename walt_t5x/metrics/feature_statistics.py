"""Mean and covariance of features, streamed in float64 and mergeable over hosts, devices and workers.

For n features x_i it stores

  n,    m = 1/n sum x_i,    S = sum (x_i - m)(x_i - m)^T

and two sets a, b merge exactly (Chan, Golub, LeVeque 1979) into

  m = m_a + d n_b / n,    S = S_a + S_b + d d^T n_a n_b / n,    d = m_b - m_a,    n = n_a + n_b.

Unlike sum x x^T - n m m^T, the scatter about the mean has no cancellation, so features far from
zero lose no digits.
"""

import io
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from clu import metrics
from flax import struct
from jaxtyping import Float

from walt_t5x.files import storage
from walt_t5x.files.damage import Damaged


@struct.dataclass
class FeatureStatistics(metrics.Metric):
  """The statistics of a set of features; a CLU metric whose arrays are on the host in float64.

  Attributes:
    count: n.
    mean: m, [F].
    scatter: S, [F, F].
  """

  count: int
  mean: np.ndarray
  scatter: np.ndarray

  @classmethod
  def from_model_output(cls, features: Float[np.ndarray, "N F"], **_) -> "FeatureStatistics":
    """Statistics of one batch, a row per sample, of any float dtype; raises ValueError if empty or not finite."""
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or 0 in features.shape:
      raise ValueError(f"Expected features [N, F] with N, F > 0, got {features.shape}.")
    if not np.isfinite(features).all():
      bad = int((~np.isfinite(features).all(1)).sum())
      raise ValueError(
        f"{bad} of {len(features)} feature rows are not finite. Check the samples: the model that "
        "generated them may have diverged, or the network's weights may be damaged."
      )
    mean = features.mean(0)
    centered = features - mean
    return cls(count=len(features), mean=mean, scatter=centered.T @ centered)

  @classmethod
  def empty(cls) -> "FeatureStatistics":
    """Statistics of no features; merges with any dimension."""
    return cls(count=0, mean=np.zeros(0), scatter=np.zeros((0, 0)))

  def merge(self, other: "FeatureStatistics") -> "FeatureStatistics":
    """Statistics of the union of both sets; raises ValueError if their features have different sizes."""
    if not self.count:
      return other
    if not other.count:
      return self
    if self.mean.shape != other.mean.shape:
      raise ValueError(
        f"Cannot merge statistics of {self.mean.size} and of {other.mean.size} features. "
        "Use the same network and layer for both."
      )
    count = self.count + other.count
    delta = other.mean - self.mean
    return FeatureStatistics(
      count=count,
      mean=self.mean + delta * (other.count / count),
      scatter=self.scatter
      + other.scatter
      + np.outer(delta, delta) * (self.count * other.count / count),
    )

  @property
  def covariance(self) -> Float[np.ndarray, "F F"]:
    """The unbiased estimate S / (n - 1); raises ValueError for fewer than two samples."""
    if self.count < 2:
      raise ValueError(
        f"A covariance needs at least 2 samples, got {self.count}. Provide more samples."
      )
    return self.scatter / (self.count - 1)

  def compute(self, *, unbiased: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """(mean, covariance), S / (n - 1) or, if not unbiased, S / n; raises ValueError for fewer than two samples."""
    return self.mean, self.covariance * (1 if unbiased else (self.count - 1) / self.count)


def write_arrays(path: storage.PathLike, **arrays: Any) -> None:
  """Writes a `.npz` file atomically; creates the folder."""
  with storage.writer(path) as stream:
    np.savez(stream, allow_pickle=False, **arrays)


def read_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
  """The arrays of a `.npz` file, whose checksums numpy compares; raises `Damaged` if it cannot be read."""
  content = io.BytesIO(storage.read(path))
  try:
    with np.load(content, allow_pickle=False) as arrays:
      return dict(arrays)
  except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, KeyError, RuntimeError) as error:
    raise Damaged(f"{os.fspath(path)} is damaged: {error}; make or copy it again") from error


def save_statistics(path: Path, statistics: FeatureStatistics) -> None:
  """Writes a `.npz` file atomically."""
  write_arrays(path, **vars(statistics))


def load_statistics(path: str | os.PathLike[str]) -> FeatureStatistics:
  """Reads a file written by `save_statistics`; raises ValueError for another layout."""
  arrays = read_arrays(path)
  if set(arrays) != {"count", "mean", "scatter"}:
    raise ValueError(
      f"{path} contains {sorted(arrays)}; expected count, mean and scatter as written by `save_statistics`."
    )
  return FeatureStatistics(
    count=int(arrays["count"]), mean=arrays["mean"], scatter=arrays["scatter"]
  )


def load_gaussian(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
  """Reads (mean, covariance) of published reference statistics: an .npz with mu [F] and sigma [F, F].

  Raises ValueError if one is missing or their shapes do not match.
  """
  arrays = read_arrays(path)
  if not {"mu", "sigma"} <= set(arrays):
    raise ValueError(f"{path} contains {sorted(arrays)}; expected mu and sigma.")
  mean, covariance = arrays["mu"].astype(np.float64), arrays["sigma"].astype(np.float64)
  if covariance.shape != (mean.size, mean.size):
    raise ValueError(
      f"{path}: mu is {mean.shape}, sigma {covariance.shape}, expected [F] and [F, F]."
    )
  return mean, covariance
