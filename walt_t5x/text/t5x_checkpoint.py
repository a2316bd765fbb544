"""Reads the encoder of a T5X checkpoint, one tensor at a time.

T5X stores each parameter as one zarr array in the checkpoint folder, named by its path in the tree joined with dots:
`target.encoder.layers_0.attention.query.kernel`. Names and layouts are those of this package: nothing is transposed,
and the relative position table is (heads, buckets).
"""

import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from walt_t5x.text.config import T5Config
from walt_t5x.text.model import parameter_shapes

_PREFIX = "target."
_QUERY = "encoder/layers_0/attention/query/kernel"
_GATE = "encoder/layers_0/mlp/wi_0/kernel"
_EMBEDDING = "token_embedder/embedding"
_TABLE = "encoder/relpos_bias/rel_embedding"


class T5XSource:
  """The parameters under `target` of one checkpoint by flat name ('encoder/encoder_norm/scale').

  Args:
    path: local `checkpoint_<step>` folder of T5X.

  Raises:
    FileNotFoundError: if the folder does not contain such arrays.
  """

  def __init__(self, path: str | pathlib.Path):
    self._folder = pathlib.Path(path)
    self.names = frozenset(
      child.name.removeprefix(_PREFIX).replace(".", "/")
      for child in (self._folder.iterdir() if self._folder.is_dir() else ())
      if child.name.startswith(_PREFIX) and child.is_dir()
    )
    if not self.names:
      raise FileNotFoundError(
        f"{path}: no arrays named {_PREFIX}...; expected the checkpoint_<step> folder of a T5X run"
      )

  def _open(self, name: str) -> Any:
    import tensorstore as ts

    path = (self._folder / (_PREFIX + name.replace("/", "."))).resolve()
    kvstore = {"driver": "file", "path": f"{path}/"}
    return ts.open({"driver": "zarr", "kvstore": kvstore}, open=True, read=True).result()

  def shape(self, name: str) -> tuple[int, ...]:
    """Returns the shape of a parameter without reading its values.

    Raises:
      ValueError: if the parameter does not exist.
    """
    if name not in self.names:
      raise ValueError(f"{self._folder} lacks {name}; expected a T5 v1.1 checkpoint of T5X")
    return tuple(self._open(name).shape)

  def read(self, name: str) -> np.ndarray:
    """Reads one parameter in its stored dtype."""
    return np.asarray(self._open(name).read().result())


def infer_config(source: T5XSource) -> T5Config:
  """Infers the sizes from the tensors.

  Assumption: distances are bucketed up to 128, as in all of T5 v1.1; the tensors do not contain it.

  Raises:
    ValueError: if the tensors are not those of a T5 v1.1 encoder.
  """
  missing = sorted({_QUERY, _GATE, _EMBEDDING, _TABLE} - source.names)
  if missing:
    raise ValueError(
      f"Checkpoint lacks {missing}, expected a T5 v1.1 encoder with T5X's names (gated feed-forward layers). "
      "T5 v1.0 and scanned layers are not supported."
    )
  vocab_size, d_model = source.shape(_EMBEDDING)
  num_heads, num_buckets = source.shape(_TABLE)
  layers = {m[1] for n in source.names if (m := re.match(r"encoder/layers_(\d+)/", n))}
  return T5Config(
    vocab_size=vocab_size,
    d_model=d_model,
    d_kv=source.shape(_QUERY)[1] // num_heads,
    d_ff=source.shape(_GATE)[1],
    num_heads=num_heads,
    num_layers=len(layers),
    relative_attention_num_buckets=num_buckets,
  )


class T5XWeights(Mapping[str, np.ndarray]):
  """The encoder's parameters by flat name, float32, read lazily; a decoder is ignored.

  Args:
    source: the checkpoint.
    config: the encoder's sizes.

  Raises:
    ValueError: if a tensor is missing, unexpected, or does not have the shape that `config` implies.
  """

  def __init__(self, source: T5XSource, config: T5Config):
    self._source, self._shapes = source, parameter_shapes(config)
    for name, expected in self._shapes.items():
      if source.shape(name) != expected:
        raise ValueError(f"{name}: got shape {source.shape(name)}, expected {expected} of {config}")
    if surplus := sorted(n for n in source.names - set(self._shapes) if n.startswith("encoder/")):
      raise ValueError(
        f"Checkpoint has {len(surplus)} encoder tensors that this architecture does not use, e.g. {surplus[0]}"
      )

  def __getitem__(self, name: str) -> np.ndarray:
    if name not in self._shapes:
      raise KeyError(name)
    return np.ascontiguousarray(self._source.read(name), dtype=np.float32)

  def __iter__(self) -> Iterator[str]:
    return iter(self._shapes)

  def __len__(self) -> int:
    return len(self._shapes)
