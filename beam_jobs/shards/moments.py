"""Moments of latents per channel, which add up over shards."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass
class Moments:
  """Count, sum and sum of squares per channel, float64; moments of parts add up to those of all data."""

  count: int = 0
  sum: Any = 0.0
  sum_squares: Any = 0.0

  @classmethod
  def of(cls, latents: np.ndarray) -> "Moments":
    """Moments of (..., c)."""
    values = np.asarray(latents).astype(np.float64).reshape(-1, np.shape(latents)[-1])
    return cls(len(values), values.sum(axis=0), np.square(values).sum(axis=0))

  def __add__(self, other: "Moments") -> "Moments":
    return Moments(
      self.count + other.count, self.sum + other.sum, self.sum_squares + other.sum_squares
    )

  def mean_std(self) -> tuple[list[float], list[float]]:
    """Mean and population standard deviation per channel."""
    mean = self.sum / self.count
    variance = np.maximum(self.sum_squares / self.count - np.square(mean), 0.0)
    return mean.tolist(), np.sqrt(variance).tolist()

  def to_json(self) -> dict[str, Any]:
    """Plain values; JSON preserves float64 exactly."""
    return {
      "count": self.count,
      "sum": np.asarray(self.sum).tolist(),
      "sum_squares": np.asarray(self.sum_squares).tolist(),
    }

  @classmethod
  def from_json(cls, raw: Mapping[str, Any]) -> "Moments":
    """The inverse of `to_json`."""
    return cls(raw["count"], np.array(raw["sum"]), np.array(raw["sum_squares"]))
