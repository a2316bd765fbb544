"""Quality of a shard's latents: PSNR of a few decoded rows, and the bounds on it and on the latents' moments."""

import bisect
import dataclasses
import math
import operator
from collections.abc import Callable, Iterator, Mapping
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
    for name in sorted(sidecar["moments"]) if self.min_psnr is not None else ():
      measured = sidecar["psnr"].get(name)
      if not measured:
        found.append(f"{name}: no PSNR was measured (--qa_samples)")
      elif (psnr := measured["sum"] / measured["count"]) < self.min_psnr:
        found.append(f"{name}: mean PSNR is {psnr:.2f} dB, expected at least {self.min_psnr:g}")
    return found


class Samples:
  """The `count` rows of a shard with the smallest keys, independent of order and batching."""

  def __init__(self, count: int):
    self._count = count
    self._kept: list[tuple[str, Any]] = []

  def offer(self, key: str, take: Callable[[], Any]) -> None:
    """Keeps the value that `take` returns if the row's key, a hex digest, is among the smallest so far."""
    if self._count and (len(self._kept) < self._count or key < self._kept[-1][0]):
      bisect.insort(self._kept, (key, take()), key=operator.itemgetter(0))
      del self._kept[self._count :]

  def rows(self) -> list[Any]:
    """The kept values, smallest key first."""
    return [kept for _, kept in self._kept]


def measure(samples: Samples, encoders: Any, *, rows: int) -> Iterator[tuple[str, float]]:
  """(latents field, decode PSNR in dB) of each sampled row, finite values only.

  The kept values map a latents field to (latents, pixels); `rows` is the batch size of the compiled function.
  """
  kept = samples.rows()
  for name in sorted({name for fields in kept for name in fields}):
    pairs = [fields[name] for fields in kept if name in fields]
    for start in range(0, len(pairs), rows):
      latents, pixels = zip(*pairs[start : start + rows])
      values = encoders.psnr(np.stack(latents), np.stack(pixels), rows)
      yield from ((name, float(value)) for value in values if np.isfinite(value))
