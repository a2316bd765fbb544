"""Fingerprints: one sha256 for a set of weights, whatever file they came from, and of a file's bytes."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from walt_t5x.files import storage


def weights_fingerprint(weights: Mapping[str, Any]) -> str:
  """Returns the sha256, in hex, over name, dtype, shape and bytes of every tensor.

  Tensors are read one at a time, in the order of their flat names, so a lazy mapping of any size fits in memory.
  """
  digest = hashlib.sha256()
  for name in sorted(weights):
    tensor = np.ascontiguousarray(weights[name])
    digest.update(f"{name} {tensor.dtype.name} {list(tensor.shape)}\n".encode())
    digest.update(tensor.astype(tensor.dtype.newbyteorder("<"), copy=False).data)
  return digest.hexdigest()


def file_sha256(path: storage.PathLike) -> str:
  """Returns the sha256, in hex, of a file's bytes."""
  digest = hashlib.sha256()
  for part in storage.chunks(path):
    digest.update(part)
  return digest.hexdigest()
