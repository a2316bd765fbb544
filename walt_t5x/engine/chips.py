"""Published figures of accelerators: memory and peak FLOP/s, by the name of a TPU and by JAX's device kind."""

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  import jax

GIB = 1024**3


@dataclasses.dataclass(frozen=True)
class Chip:
  """Published figures of one JAX device: memory in bytes, dense bfloat16 FLOP/s.

  A device is a chip, except for 7x, where each half of a chip is one.
  """

  hbm_bytes: int
  peak_flops: float
  topology_prefix: str = ""


# Google Cloud's pages of each generation, 2025.
TPUS = {
  "v4": Chip(32 * GIB, 275e12),
  "v5e": Chip(16 * GIB, 197e12),
  "v5p": Chip(95 * GIB, 459e12),
  "v6e": Chip(32 * GIB, 918e12),
  "7x": Chip(96 * GIB, 2307e12 / 2, topology_prefix="tpu"),
}
# Prefixes of `device_kind`, longest first. NVIDIA's figures are those of its data sheets.
_PEAKS = {
  "TPU v6 lite": TPUS["v6e"].peak_flops,
  "TPU v5p": TPUS["v5p"].peak_flops,
  "TPU v5 lite": TPUS["v5e"].peak_flops,
  "TPU v5": TPUS["v5p"].peak_flops,
  "TPU v4": TPUS["v4"].peak_flops,
  "NVIDIA H200": 989e12,
  "NVIDIA H100 80GB": 989e12,
  "NVIDIA A100": 312e12,
  "NVIDIA L4": 121e12,
}


def peak_flops(device: "jax.Device") -> float | None:
  """Peak FLOP/s of one device, or None if the table does not include it."""
  return next((peak for kind, peak in _PEAKS.items() if device.device_kind.startswith(kind)), None)
