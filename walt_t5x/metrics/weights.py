"""Weights of the scoring networks: local safetensors files with checked shapes and fingerprints."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from walt_t5x.files.fingerprint import weights_fingerprint


def check_shapes(
  flat: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]], *, what: str
) -> None:
  """Raises ValueError with the names of tensors that are missing, unknown or of another shape."""
  missing, unknown = sorted(set(expected) - set(flat)), sorted(set(flat) - set(expected))
  wrong = [
    f"{name}: got {flat[name].shape}, expected {expected[name]}"
    for name in sorted(set(flat) & set(expected))
    if tuple(flat[name].shape) != expected[name]
  ]
  if missing or unknown or wrong:
    raise ValueError(
      f"{what} does not fit the network: {len(missing)} tensors missing {missing[:3]}, "
      f"{len(unknown)} unknown {unknown[:3]}, {len(wrong)} of another shape {wrong[:3]}."
    )


def save_weights(path: str | os.PathLike[str], flat: Mapping[str, np.ndarray]) -> str:
  """Writes tensors by flat name atomically; returns their fingerprint."""
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(path.name + ".partial")
  save_file({name: np.ascontiguousarray(tensor) for name, tensor in flat.items()}, partial)
  os.replace(partial, path)
  return weights_fingerprint(flat)
