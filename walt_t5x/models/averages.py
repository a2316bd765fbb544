"""Averages as CLU metrics."""

import clu.metrics
from jaxtyping import Array


def average(total: Array, count: Array) -> clu.metrics.Average:
  """total / count, both summed over steps first."""
  # CLU reaches flax.struct through a bare `import flax`, so its fields are not seen.
  return clu.metrics.Average(total=total, count=count)  # pyright: ignore[reportCallIssue]
