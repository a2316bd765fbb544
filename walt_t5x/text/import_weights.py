"""The parameters of a T5 encoder from the tensors of a checkpoint, whatever its names and layouts."""

import itertools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from walt_t5x.text.config import T5Config
from walt_t5x.text.model import parameter_shapes
from walt_t5x.text.safetensors_files import EMBEDDING_COPY, SafetensorsSource

_QUERY = "encoder/layers_{}/attention/query/kernel"
_GATE = "encoder/layers_0/mlp/wi_0/kernel"
_EMBEDDING = "token_embedder/embedding"
_TABLE = "encoder/relpos_bias/rel_embedding"
_T5X_PREFIX = "target."


class T5XSource:
  """The parameters of one T5X checkpoint, a local folder `checkpoint_<step>`, by flat name.

  T5X stores each parameter as one zarr array in the folder, named by its path in the tree joined with dots:
  `target.encoder.layers_0.attention.query.kernel`. Names and layouts are those of this package: nothing is transposed,
  and the relative position table is (heads, buckets). Raises FileNotFoundError if the folder has no such arrays.
  """

  def __init__(self, path: str | pathlib.Path):
    self._folder = pathlib.Path(path)
    self.names = frozenset(
      child.name.removeprefix(_T5X_PREFIX).replace(".", "/")
      for child in (self._folder.iterdir() if self._folder.is_dir() else ())
      if child.name.startswith(_T5X_PREFIX) and child.is_dir()
    )
    if not self.names:
      raise FileNotFoundError(
        f"{path}: no arrays named {_T5X_PREFIX}...; expected the checkpoint_<step> folder of a T5X run"
      )

  def stored_name(self, name: str) -> tuple[str, bool]:
    """Returns the name itself; nothing is transposed."""
    return name, False

  def _open(self, name: str) -> Any:
    import tensorstore as ts

    path = (self._folder / (_T5X_PREFIX + name.replace("/", "."))).resolve()
    kvstore = {"driver": "file", "path": f"{path}/"}
    return ts.open({"driver": "zarr", "kvstore": kvstore}, open=True, read=True).result()

  def shape(self, name: str) -> tuple[int, ...]:
    """Returns the shape of a parameter without reading its values."""
    return tuple(self._open(name).shape)

  def read(self, name: str) -> np.ndarray:
    """Reads one parameter in its stored dtype."""
    return np.asarray(self._open(name).read().result())


# `stored_name` of a source returns a parameter's name in the checkpoint, and whether it is transposed there.
Source = SafetensorsSource | T5XSource


def infer_config(source: Source) -> T5Config:
  """Infers the sizes from the tensors, for a checkpoint without `config.json`.

  Assumption: distances are bucketed up to 128, as in all of T5 v1.1; the tensors do not contain it.
  Raises ValueError if the tensors are not those of a T5 v1.1 encoder.
  """

  def shape(name: str) -> tuple[int, ...]:
    stored, transposed = source.stored_name(name)
    return source.shape(stored)[::-1] if transposed else source.shape(stored)

  required = {source.stored_name(n)[0] for n in (_QUERY.format(0), _GATE, _EMBEDDING, _TABLE)}
  if missing := sorted(required - source.names):
    raise ValueError(
      f"Checkpoint lacks {missing}, expected a T5 v1.1 encoder (gated feed-forward layers) with torch's names, as in "
      "google/t5-v1_1-*, or T5X's. T5 v1.0, scanned layers and files of other layouts are not supported."
    )
  vocab_size, d_model = shape(_EMBEDDING)
  num_heads, num_buckets = shape(_TABLE)
  layers = (source.stored_name(_QUERY.format(n))[0] in source.names for n in itertools.count())
  return T5Config(
    vocab_size=vocab_size,
    d_model=d_model,
    d_kv=shape(_QUERY.format(0))[1] // num_heads,
    d_ff=shape(_GATE)[1],
    num_heads=num_heads,
    num_layers=sum(itertools.takewhile(bool, layers)),
    relative_attention_num_buckets=num_buckets,
  )


class EncoderWeights(Mapping[str, np.ndarray]):
  """The Flax parameters of a checkpoint by flat T5X name, float32, read lazily; a decoder is ignored.

  Raises ValueError if a tensor is missing, unexpected, or does not have the shape that `config` implies.
  """

  def __init__(self, source: Source, config: T5Config):
    self._source = source
    self._names: dict[str, tuple[str, bool]] = {}
    for name, shape in parameter_shapes(config).items():
      stored, transposed = self._names[name] = source.stored_name(name)
      if stored not in source.names:
        raise ValueError(
          f"Checkpoint lacks {stored} (for {name}); expected a complete T5 v1.1 encoder."
        )
      expected = shape[::-1] if transposed else shape
      if source.shape(stored) != expected:
        raise ValueError(
          f"{stored}: got shape {source.shape(stored)}, expected {expected}; config.json and the "
          "weights disagree."
        )
    used = {stored for stored, _ in self._names.values()} | {EMBEDDING_COPY}
    surplus = sorted(n for n in source.names - used if n.startswith(("encoder.", "encoder/")))
    if surplus:
      raise ValueError(
        f"Checkpoint has {len(surplus)} encoder tensors that this architecture does not use, "
        f"e.g. {surplus[0]}; config.json and the weights disagree."
      )

  def __getitem__(self, name: str) -> np.ndarray:
    stored, transposed = self._names[name]
    tensor = self._source.read(stored)
    return np.ascontiguousarray(tensor.T if transposed else tensor, dtype=np.float32)

  def __iter__(self) -> Iterator[str]:
    return iter(self._names)

  def __len__(self) -> int:
    return len(self._names)
