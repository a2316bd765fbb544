"""Quality of a shard's latents: PSNR of a few decoded rows, and the bounds on it and on the latents' moments."""

import dataclasses
import heapq
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from beam_jobs.shards.moments import Moments


@dataclasses.dataclass(frozen=True, kw_only=True)
class Band:
  """Quality bounds; a shard outside them is quarantined.

  Args:
    min_psnr: minimum of the mean decode PSNR in dB over the sampled rows, per latents field; None is unchecked.
    mean: minimum and maximum of a channel's mean over the shard.
    std: minimum and maximum of a channel's standard deviation over the shard.
  """

  min_psnr: float | None = None
  mean: tuple[float, float] = (-math.inf, math.inf)
  std: tuple[float, float] = (0.0, math.inf)

  def violations(self, sidecar: Mapping[str, Any]) -> list[str]:
    """Messages for each bound that a shard violates, from its sidecar's `moments` and `psnr`."""
    found = []
    for name, raw in sorted(sidecar["moments"].items()):
      moments = zip(("mean", "std"), Moments.from_json(raw).mean_std(), strict=True)
      for kind, values in moments:
        low, high = getattr(self, kind)
        found += [
          f"{name}: {kind} of channel {channel} is {value:.4g}, expected {low:g} to {high:g}"
          for channel, value in enumerate(values)
          if not low <= value <= high
        ]
    if self.min_psnr is not None:
      for name in sorted(sidecar["moments"]):
        measured = sidecar["psnr"].get(name)
        if not measured:
          found.append(f"{name}: no PSNR was measured (--qa_samples)")
        elif measured["sum"] / measured["count"] < self.min_psnr:
          psnr = measured["sum"] / measured["count"]
          found.append(f"{name}: mean PSNR is {psnr:.2f} dB, expected at least {self.min_psnr:g}")
    return found


class Samples:
  """The `count` rows of a shard with the smallest keys, independent of order and batching."""

  def __init__(self, count: int):
    self._count = count
    self._heap: list[tuple[int, int, Any]] = []

  def offer(self, key: str, take: Any) -> None:
    """Keeps a row if its key is among the smallest so far.

    Args:
      key: hex digest of the row.
      take: called without arguments for the value to keep, only if the row is kept.
    """
    number = -int(key[:16], 16)
    if len(self._heap) < self._count:
      heapq.heappush(self._heap, (number, len(self._heap), take()))
    elif self._count and number > self._heap[0][0]:
      heapq.heapreplace(self._heap, (number, self._heap[0][1], take()))

  def rows(self) -> list[Any]:
    """The kept values, smallest key first."""
    return [kept for _, _, kept in sorted(self._heap, key=lambda entry: -entry[0])]


def measure(samples: Samples, encoders: Any, *, rows: int) -> dict[str, list[float]]:
  """Decode PSNR in dB of the sampled rows by latents field, finite values only.

  Args:
    samples: kept values, which map a latents field to (latents, pixels).
    encoders: object with `psnr`.
    rows: batch size of the compiled function.
  """
  kept = samples.rows()
  found: dict[str, list[float]] = {}
  for name in sorted({name for fields in kept for name in fields}):
    pairs = [fields[name] for fields in kept if name in fields]
    for start in range(0, len(pairs), rows):
      latents, pixels = zip(*pairs[start : start + rows])
      values = encoders.psnr(np.stack(latents), np.stack(pixels), rows)
      found.setdefault(name, []).extend(float(v) for v in values if np.isfinite(v))
  return found
