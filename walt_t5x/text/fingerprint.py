"""The fingerprint of a set of weights."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np


def weights_fingerprint(weights: Mapping[str, Any]) -> str:
  """Returns the sha256, in hex, over name, dtype, shape and bytes of every tensor.

  Tensors are read one at a time in the order of their sorted names, so a lazy mapping of any size
  fits in memory.

  Args:
    weights: tensors by flat name ('encoder/encoder_norm/scale').
  """
  digest = hashlib.sha256()
  for name in sorted(weights):
    tensor = np.ascontiguousarray(weights[name])
    digest.update(f"{name} {tensor.dtype.name} {list(tensor.shape)}\n".encode())
    digest.update(tensor.astype(tensor.dtype.newbyteorder("<"), copy=False).data)
  return digest.hexdigest()
