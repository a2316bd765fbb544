"""Reads and writes T5 encoders in Hugging Face's format: safetensors, single or sharded, one tensor at a time.

Torch stores linear kernels as (out, in) and the relative position table as (buckets, heads); the
Flax tree has (in, out) and (heads, buckets). For T5-XL that table is 32 x 32, so a missing transpose
raises no error: every name below states whether it is transposed.
"""

import json
import math
import os
import pathlib
import re
from collections.abc import Iterable, Mapping

import jax.numpy as jnp
import numpy as np
import safetensors

from walt_t5x.files import storage, tensors
from walt_t5x.text.config import WEIGHTS_FILE, T5Config
from walt_t5x.text.model import parameter_shapes

_INDEX = f"{WEIGHTS_FILE}.index.json"
_DTYPES = {"float32": "F32", "bfloat16": "BF16"}

_EMBEDDING = "shared.weight"
EMBEDDING_COPY = "encoder.embed_tokens.weight"
# Flat T5X name -> (torch name, whether the two are transposed).
_NAMES = {
  "token_embedder/embedding": (_EMBEDDING, False),
  "encoder/relpos_bias/rel_embedding": (
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
    True,
  ),
  "encoder/encoder_norm/scale": ("encoder.final_layer_norm.weight", False),
}
# The same within encoder/layers_<n> and encoder.block.<n>.
_NAMES_IN_LAYER = {
  "pre_attention_layer_norm/scale": ("layer.0.layer_norm.weight", False),
  "attention/query/kernel": ("layer.0.SelfAttention.q.weight", True),
  "attention/key/kernel": ("layer.0.SelfAttention.k.weight", True),
  "attention/value/kernel": ("layer.0.SelfAttention.v.weight", True),
  "attention/out/kernel": ("layer.0.SelfAttention.o.weight", True),
  "pre_mlp_layer_norm/scale": ("layer.1.layer_norm.weight", False),
  "mlp/wi_0/kernel": ("layer.1.DenseReluDense.wi_0.weight", True),
  "mlp/wi_1/kernel": ("layer.1.DenseReluDense.wi_1.weight", True),
  "mlp/wo/kernel": ("layer.1.DenseReluDense.wo.weight", True),
}


def torch_name(name: str) -> tuple[str, bool]:
  """(torch name, whether the two are transposed) of a flat T5X name such as 'encoder/layers_0/mlp/wo/kernel'.

  Raises KeyError if the T5 encoder does not have this parameter.
  """
  if name in _NAMES:
    return _NAMES[name]
  match = re.fullmatch(r"encoder/layers_(\d+)/(.+)", name)
  if match is None or match[2] not in _NAMES_IN_LAYER:
    raise KeyError(f"{name} is not a parameter of the T5 v1.1 encoder.")
  stored, transposed = _NAMES_IN_LAYER[match[2]]
  return f"encoder.block.{match[1]}.{stored}", transposed


class SafetensorsSource:
  """The tensors of one checkpoint by torch name, read lazily.

  `path` is a folder with `model.safetensors` or `model.safetensors.index.json`, the index, or a `.safetensors` file.
  Raises FileNotFoundError if the file or a shard does not exist.
  """

  def __init__(self, path: str | pathlib.Path):
    path = pathlib.Path(path)
    if path.is_dir():
      candidates = [path / WEIGHTS_FILE, path / _INDEX]
      found = [p for p in candidates if p.is_file()]
      if not found:
        raise FileNotFoundError(
          f"{path}: neither {WEIGHTS_FILE} nor {_INDEX}; got {sorted(os.listdir(path))}. Save the "
          "checkpoint as safetensors first (transformers: T5EncoderModel.from_pretrained(folder)"
          ".save_pretrained(folder))."
        )
      path = found[0]
    if not path.is_file():
      raise FileNotFoundError(f"No safetensors file or folder at {path}.")
    if path.suffix == ".json":
      weight_map = storage.read_json(path)["weight_map"]
      missing = sorted({s for s in weight_map.values() if not (path.parent / s).is_file()})
      if missing:
        raise FileNotFoundError(f"{path} lists shards that are missing from its folder: {missing}.")
      self._files = {name: path.parent / shard for name, shard in weight_map.items()}
    else:
      with safetensors.safe_open(path, framework="numpy") as handle:
        self._files = dict.fromkeys(handle.keys(), path)
    for file in sorted(set(self._files.values())):
      tensors.check(file)
    self.names = frozenset(self._files)

  def stored_name(self, name: str) -> tuple[str, bool]:
    """Returns `torch_name`; the embedding table may be stored under its second name."""
    stored, transposed = torch_name(name)
    if stored == _EMBEDDING and stored not in self.names:
      stored = EMBEDDING_COPY
    return stored, transposed

  def shape(self, stored: str) -> tuple[int, ...]:
    """Returns one tensor's shape without reading its values."""
    with safetensors.safe_open(self._files[stored], framework="numpy") as handle:
      return tuple(handle.get_slice(stored).get_shape())

  def read(self, stored: str) -> np.ndarray:
    """Reads one tensor in its stored dtype."""
    with safetensors.safe_open(self._files[stored], framework="numpy") as handle:
      return handle.get_tensor(stored)


def save_weights(
  path: storage.PathLike,
  config: T5Config,
  weights: Mapping[str, np.ndarray],
  names: Iterable[str] | None = None,
  *,
  dtype: str = "float32",
) -> None:
  """Writes Flax parameters as a safetensors file that Hugging Face's `T5EncoderModel` loads.

  The file gets its name only when it is complete.

  Args:
    path: the file to write.
    config: the encoder's sizes.
    weights: parameters by flat T5X name, float32; each is read once.
    names: the parameters of this file if it is one of several shards; by default all.
    dtype: what is stored, "float32" or "bfloat16"; readers convert to float32.

  Raises:
    ValueError: if names, shapes or the dtype do not match `config`.
  """
  shapes = parameter_shapes(config)
  if set(weights) != set(shapes):
    difference = sorted(set(weights) ^ set(shapes))
    raise ValueError(
      f"Weights and config disagree on {len(difference)} names, e.g. {difference[0]}."
    )
  names = list(shapes if names is None else names)
  header: dict[str, object] = {"__metadata__": {"format": "pt", **tensors.BLANK}}
  offset = 0
  for name in names:
    stored, transposed = torch_name(name)
    shape = shapes[name][::-1] if transposed else shapes[name]
    end = offset + jnp.dtype(dtype).itemsize * math.prod(shape)
    header[stored] = {"dtype": _DTYPES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
    offset = end
  encoded = json.dumps(header, separators=(",", ":")).encode()
  encoded += b" " * (-len(encoded) % 8)  # data must start at a multiple of 8
  with storage.writer(path) as file:
    file.write(len(encoded).to_bytes(8, "little"))
    file.write(encoded)
    for name in names:
      tensor = weights[name]
      if tensor.shape != shapes[name] or tensor.dtype != np.float32:
        raise ValueError(
          f"{name}: got {tensor.dtype} {tensor.shape}, expected float32 {shapes[name]}."
        )
      stored_layout = tensor.T if torch_name(name)[1] else tensor
      file.write(np.ascontiguousarray(stored_layout, jnp.dtype(dtype)).view(np.uint8).data)
    file.flush()
    with open(file.name, "r+b") as written:
      tensors.seal(written)
