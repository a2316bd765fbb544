"""Pickles that hold numpy arrays and nothing else, read without running anything in them."""

import pickle
from typing import Any, BinaryIO

# What a pickled numpy array is made of.
_ARRAYS = {
  ("numpy.core.multiarray", "_reconstruct"),
  ("numpy._core.multiarray", "_reconstruct"),
  ("numpy", "ndarray"),
  ("numpy", "dtype"),
}


class _ArrayUnpickler(pickle.Unpickler):
  """Builds dicts, lists and numpy arrays; rejects every other class or function."""

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) not in _ARRAYS:
      raise pickle.UnpicklingError(
        f"The file asks for {module}.{name}; only numpy arrays are read. Do not trust this file."
      )
    return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_array_pickle(file: BinaryIO) -> Any:
  """Returns a tree of numpy arrays; raises `pickle.UnpicklingError` if the file asks for anything else."""
  return _ArrayUnpickler(file).load()
