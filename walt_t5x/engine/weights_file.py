"""Weights without a training state: `checkpoint_<step>/weights.safetensors`, as presets have them.

The file holds one set of parameters by flat name. They are stored in bfloat16 or float32 and read as float32, their
dtype in training, so that a network gets the same arrays as from a checkpoint of the rounded weights.
"""

import contextlib
import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from walt_t5x.files import damage, local_folders, storage, tensors

FILE_NAME = "weights.safetensors"
DTYPES = ("bfloat16", "float32")


def exists(checkpoint: storage.PathLike) -> bool:
  """Whether a checkpoint folder has this file."""
  return storage.exists(storage.join(checkpoint, FILE_NAME))


def rounded(params: Any, *, dtype: str) -> Any:
  """The parameters as they are read after they were written in one of `DTYPES`: rounded to it, float32."""
  return jax.tree.map(lambda leaf: np.asarray(leaf, jnp.dtype(dtype)).astype(np.float32), params)


def write(checkpoint: storage.PathLike, params: Mapping[str, Any], *, dtype: str) -> None:
  """Writes nested parameters into a checkpoint folder; the same parameters give the same bytes.

  Raises:
    ValueError: a parameter is not floating point, or `dtype` is not one of `DTYPES`.
  """
  if dtype not in DTYPES:
    raise ValueError(f"weights: got {dtype=}, expected one of {DTYPES}")
  flat: dict[str, Any] = traverse_util.flatten_dict(dict(params), sep="/")
  for name, array in flat.items():
    if not jnp.issubdtype(array.dtype, jnp.floating):
      raise ValueError(f"{name}: got {array.dtype}, expected floating point")
  stored = {name: np.ascontiguousarray(array, jnp.dtype(dtype)) for name, array in flat.items()}
  # One metadata field, because safetensors does not fix their order.
  file = io.BytesIO(safetensors.numpy.save(stored, metadata=tensors.BLANK))
  tensors.seal(file)
  storage.write(storage.join(checkpoint, FILE_NAME), file.getvalue())


def shapes(checkpoint: storage.PathLike) -> dict[tuple[str, ...], jax.ShapeDtypeStruct]:
  """Shape and dtype of every array as `read` returns it, by the names on its path. Reads no array."""
  with _local(checkpoint) as path, _open(path) as file:
    return {
      tuple(name.split("/")): jax.ShapeDtypeStruct(file.get_slice(name).get_shape(), np.float32)
      for name in sorted(file.keys())
    }


def read(
  checkpoint: storage.PathLike, names: Iterable[tuple[str, ...]]
) -> dict[tuple[str, ...], np.ndarray]:
  """The named arrays, float32.

  Raises:
    Damaged: the file changed after it was written.
  """
  with _local(checkpoint) as path:
    tensors.check(path)
    with _open(path) as file:
      return {name: file.get_tensor("/".join(name)).astype(np.float32) for name in names}


@contextlib.contextmanager
def _local(checkpoint: storage.PathLike) -> Iterator[str]:
  with local_folders.read_locally(checkpoint, [FILE_NAME]) as folder:
    yield str(folder / FILE_NAME)


def _open(path: str) -> Any:
  try:
    return safetensors.safe_open(path, framework="numpy")
  except safetensors.SafetensorError as error:
    raise damage.Damaged(f"{path} is not a safetensors file: {error}; copy it again") from error
