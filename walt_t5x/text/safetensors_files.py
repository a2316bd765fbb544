"""Reads safetensors files, single or sharded, and writes them, one tensor at a time."""

import json
import os
import pathlib
from collections.abc import Callable, Mapping

import numpy as np
import safetensors

from walt_t5x.files import storage

_INDEX = "model.safetensors.index.json"
_WEIGHTS = "model.safetensors"


class SafetensorsSource:
  """The tensors of one checkpoint by name, read lazily.

  Args:
    path: a folder with `model.safetensors` or `model.safetensors.index.json`, the index, or a
      `.safetensors` file.

  Raises:
    FileNotFoundError: if the file or a shard does not exist.
  """

  def __init__(self, path: str | pathlib.Path):
    path = pathlib.Path(path)
    if path.is_dir():
      candidates = [path / _WEIGHTS, path / _INDEX]
      found = [p for p in candidates if p.is_file()]
      if not found:
        raise FileNotFoundError(
          f"{path}: neither {_WEIGHTS} nor {_INDEX}; got {sorted(os.listdir(path))}. Save the "
          "checkpoint as safetensors first (transformers: T5EncoderModel.from_pretrained(folder)"
          ".save_pretrained(folder))."
        )
      path = found[0]
    if not path.is_file():
      raise FileNotFoundError(f"No safetensors file or folder at {path}.")
    self._files: dict[str, pathlib.Path] = {}
    if path.suffix == ".json":
      weight_map = storage.read_json(path)["weight_map"]
      missing = sorted({s for s in weight_map.values() if not (path.parent / s).is_file()})
      if missing:
        raise FileNotFoundError(f"{path} lists shards that are missing from its folder: {missing}.")
      self._files = {name: path.parent / shard for name, shard in weight_map.items()}
    else:
      with safetensors.safe_open(path, framework="numpy") as handle:
        self._files = dict.fromkeys(handle.keys(), path)

  @property
  def names(self) -> frozenset[str]:
    """All tensor names."""
    return frozenset(self._files)

  def shape(self, name: str) -> tuple[int, ...]:
    """Returns one tensor's shape without reading its values."""
    with safetensors.safe_open(self._files[name], framework="numpy") as handle:
      return tuple(handle.get_slice(name).get_shape())

  def read(self, name: str) -> np.ndarray:
    """Reads one tensor in its stored dtype."""
    with safetensors.safe_open(self._files[name], framework="numpy") as handle:
      return handle.get_tensor(name)


def write_safetensors(
  path: str | pathlib.Path,
  shapes: Mapping[str, tuple[int, ...]],
  read: Callable[[str], np.ndarray],
) -> None:
  """Writes float32 tensors to one file, with one of them in memory at a time.

  The file gets its name only when it is complete.

  Args:
    path: the file to write.
    shapes: shape of every tensor by name.
    read: returns a tensor by name; called once per tensor.

  Raises:
    ValueError: if a tensor is not float32 or does not have the given shape.
  """
  path = pathlib.Path(path)
  header: dict[str, object] = {"__metadata__": {"format": "pt"}}
  offset = 0
  for name, shape in shapes.items():
    end = offset + 4 * int(np.prod(shape, dtype=np.int64))
    header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [offset, end]}
    offset = end
  encoded = json.dumps(header).encode()
  encoded += b" " * (-len(encoded) % 8)  # data must start at a multiple of 8
  with storage.writer(path) as file:
    file.write(len(encoded).to_bytes(8, "little"))
    file.write(encoded)
    for name, shape in shapes.items():
      tensor = read(name)
      if tensor.shape != tuple(shape) or tensor.dtype != np.float32:
        raise ValueError(
          f"{name}: got {tensor.dtype} {tensor.shape}, expected float32 {tuple(shape)}."
        )
      file.write(np.ascontiguousarray(tensor, "<f4").data)
