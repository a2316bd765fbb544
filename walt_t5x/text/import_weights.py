"""The parameters of a T5 encoder from the tensors of a checkpoint, whatever its names and layouts."""

import itertools
from collections.abc import Iterator, Mapping

import numpy as np

from walt_t5x.text.config import T5Config
from walt_t5x.text.model import parameter_shapes
from walt_t5x.text.safetensors_files import EMBEDDING_COPY, SafetensorsSource
from walt_t5x.text.t5x_checkpoint import T5XSource

# `stored_name` of a source returns a parameter's name in the checkpoint, and whether it is transposed there.
Source = SafetensorsSource | T5XSource

_QUERY = "encoder/layers_{}/attention/query/kernel"
_GATE = "encoder/layers_0/mlp/wi_0/kernel"
_EMBEDDING = "token_embedder/embedding"
_TABLE = "encoder/relpos_bias/rel_embedding"


def infer_config(source: Source) -> T5Config:
  """Infers the sizes from the tensors, for a checkpoint without `config.json`.

  Assumption: distances are bucketed up to 128, as in all of T5 v1.1; the tensors do not contain it.

  Raises:
    ValueError: if the tensors are not those of a T5 v1.1 encoder.
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

  Args:
    source: the checkpoint's tensors.
    config: the encoder's sizes.

  Raises:
    ValueError: if a tensor is missing, unexpected, or does not have the shape that `config` implies.
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
