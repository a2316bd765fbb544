"""Quality of a shard's latents: a few rows decoded again, and the band that their PSNR and all moments must keep to."""

import dataclasses
import heapq
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from beam_jobs.shards.moments import Moments


@dataclasses.dataclass(frozen=True, kw_only=True)
class Band:
  """What a shard must keep to; one that does not is quarantined.

  Args:
    min_psnr: mean decode PSNR in dB of the sampled rows, of every latents field; None is unchecked.
    mean: lowest and highest mean of a channel over the shard.
    std: lowest and highest standard deviation of a channel over the shard.
  """

  min_psnr: float | None = None
  mean: tuple[float, float] = (-math.inf, math.inf)
  std: tuple[float, float] = (0.0, math.inf)

  def violations(self, sidecar: Mapping[str, Any]) -> list[str]:
    """What of a shard lies outside, in words; from its sidecar's `moments` and `psnr`."""
    found = []
    for name, raw in sorted(sidecar["moments"].items()):
      moments = zip(("mean", "std"), Moments.from_json(raw).mean_std(), strict=True)
      for kind, values in moments:
        low, high = getattr(self, kind)
        found += [
          f"{name}: {kind} of channel {channel} is {value:.4g}, the band is {low:g} to {high:g}"
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
          found.append(f"{name}: mean PSNR is {psnr:.2f} dB, the least is {self.min_psnr:g}")
    return found


class Samples:
  """The `count` rows of a shard with the smallest keys, whatever their order and batches."""

  def __init__(self, count: int):
    self._count = count
    self._heap: list[tuple[int, int, Any]] = []

  def offer(self, key: str, take: Any) -> None:
    """Keep a row, if it is among the smallest so far.

    Args:
      key: hex digest of the row.
      take: called without arguments for what to keep, only if it is kept.
    """
    number = -int(key[:16], 16)
    if len(self._heap) < self._count:
      heapq.heappush(self._heap, (number, len(self._heap), take()))
    elif self._count and number > self._heap[0][0]:
      heapq.heapreplace(self._heap, (number, self._heap[0][1], take()))

  def rows(self) -> list[Any]:
    """What was kept, smallest key first."""
    return [kept for _, _, kept in sorted(self._heap, key=lambda entry: -entry[0])]


def measure(samples: Samples, encoders: Any, *, rows: int) -> dict[str, list[float]]:
  """Decode PSNR in dB of the sampled rows by latents field, finite values only.

  Args:
    samples: what was kept of each row: latents field to (latents, pixels).
    encoders: have `psnr`.
    rows: rows of the compiled call.
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
