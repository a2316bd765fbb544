"""Averages as CLU metrics."""

import clu.metrics
from jaxtyping import Array


def average(total: Array, count: Array) -> clu.metrics.Average:
  """total / count, where each is first summed over steps."""
  # CLU imports flax.struct by a bare `import flax`, so pyright does not see the fields.
  return clu.metrics.Average(total=total, count=count)  # pyright: ignore[reportCallIssue]
