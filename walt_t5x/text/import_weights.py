"""Converts Hugging Face T5 weights to and from the Flax tree, one tensor at a time.

Torch stores linear kernels as (out, in) and the relative position table as (buckets, heads); the
Flax tree has (in, out) and (heads, buckets). For T5-XL that table is 32 x 32, so a missing transpose
raises no error: every name below states whether it is transposed.
"""

import pathlib
import re
from collections.abc import Iterator, Mapping

import numpy as np

from walt_t5x.text.config import T5Config
from walt_t5x.text.model import parameter_shapes
from walt_t5x.text.safetensors_files import SafetensorsSource, write_safetensors

_ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}
_EMBEDDING = "shared.weight"
_EMBEDDING_COPY = "encoder.embed_tokens.weight"
_RELATIVE_BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"


def torch_name(name: str) -> tuple[str, bool]:
  """Returns the torch name of a Flax parameter and whether the two are transposed.

  Args:
    name: flat T5X name, e.g. 'encoder/layers_0/mlp/wo/kernel'.

  Raises:
    KeyError: if the T5 encoder does not have this parameter.
  """
  fixed = {
    "token_embedder/embedding": (_EMBEDDING, False),
    "encoder/relpos_bias/rel_embedding": (_RELATIVE_BIAS, True),
    "encoder/encoder_norm/scale": ("encoder.final_layer_norm.weight", False),
  }
  if name in fixed:
    return fixed[name]
  match = re.fullmatch(r"encoder/layers_(\d+)/(.+)", name)
  layer, rest = match.groups() if match else ("", "")
  block = f"encoder.block.{layer}.layer"
  if rest == "pre_attention_layer_norm/scale":
    return f"{block}.0.layer_norm.weight", False
  if rest == "pre_mlp_layer_norm/scale":
    return f"{block}.1.layer_norm.weight", False
  if match := re.fullmatch(r"attention/(query|key|value|out)/kernel", rest):
    return f"{block}.0.SelfAttention.{_ATTENTION[match[1]]}.weight", True
  if match := re.fullmatch(r"mlp/(wi_0|wi_1|wo)/kernel", rest):
    return f"{block}.1.DenseReluDense.{match[1]}.weight", True
  raise KeyError(f"{name} is not a parameter of the T5 v1.1 encoder.")


def infer_config(source: SafetensorsSource) -> T5Config:
  """Infers the sizes from the tensors, for a file without `config.json`.

  Assumption: distances are bucketed up to 128, as in all of T5 v1.1; the tensors do not contain it.

  Args:
    source: the checkpoint.

  Raises:
    ValueError: if the tensors are not those of a T5 v1.1 encoder.
  """
  query = "encoder.block.0.layer.0.SelfAttention.q.weight"
  gate = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"
  embedding = _EMBEDDING if _EMBEDDING in source.names else _EMBEDDING_COPY
  missing = sorted({query, gate, embedding, _RELATIVE_BIAS} - source.names)
  if missing:
    raise ValueError(
      f"Checkpoint lacks {missing}, expected a T5 v1.1 encoder (gated feed-forward layers, torch "
      "names as in google/t5-v1_1-*). T5 v1.0 and files of other layouts are not supported."
    )
  vocab_size, d_model = source.shape(embedding)
  num_buckets, num_heads = source.shape(_RELATIVE_BIAS)
  layers = {m[1] for n in source.names if (m := re.match(r"encoder\.block\.(\d+)\.", n))}
  return T5Config(
    vocab_size=vocab_size,
    d_model=d_model,
    d_kv=source.shape(query)[0] // num_heads,
    d_ff=source.shape(gate)[0],
    num_heads=num_heads,
    num_layers=len(layers),
    relative_attention_num_buckets=num_buckets,
  )


class HuggingFaceWeights(Mapping[str, np.ndarray]):
  """The Flax parameters of a Hugging Face checkpoint by flat T5X name, read lazily.

  Every tensor is float32 and in Flax layout. The decoder of an encoder-decoder checkpoint is
  ignored.

  Args:
    source: the checkpoint's tensors.
    config: the encoder's sizes.

  Raises:
    ValueError: if a tensor is missing, unexpected, or does not have the shape that `config` implies.
  """

  def __init__(self, source: SafetensorsSource, config: T5Config):
    self._source = source
    self._names: dict[str, tuple[str, bool]] = {}
    for name, shape in parameter_shapes(config).items():
      stored, transposed = torch_name(name)
      if stored == _EMBEDDING and stored not in source.names:
        stored = _EMBEDDING_COPY
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
      self._names[name] = (stored, transposed)
    used = {stored for stored, _ in self._names.values()} | {_EMBEDDING_COPY}
    surplus = sorted(n for n in source.names - used if n.startswith("encoder."))
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


def save_weights(
  path: str | pathlib.Path, config: T5Config, weights: Mapping[str, np.ndarray]
) -> None:
  """Writes Flax parameters as a safetensors file that Hugging Face's `T5EncoderModel` loads.

  Args:
    path: the file to write.
    config: the encoder's sizes.
    weights: parameters by flat T5X name, float32; read one at a time.

  Raises:
    ValueError: if names or shapes do not match `config`.
  """
  shapes = parameter_shapes(config)
  if set(weights) != set(shapes):
    difference = sorted(set(weights) ^ set(shapes))
    raise ValueError(
      f"Weights and config disagree on {len(difference)} names, e.g. {difference[0]}."
    )
  by_torch_name = {torch_name(name)[0]: (name, torch_name(name)[1]) for name in shapes}

  def torch_layout(array, transposed):
    return array.T if transposed else array

  write_safetensors(
    path,
    {
      stored: shapes[name][::-1] if transposed else shapes[name]
      for stored, (name, transposed) in by_torch_name.items()
    },
    lambda stored: torch_layout(weights[by_torch_name[stored][0]], by_torch_name[stored][1]),
  )
