"""Encodes captions with the T5 encoder of a folder."""

import collections
import functools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, Int32, Integer

from walt_t5x.files import local_folders, storage
from walt_t5x.files.fingerprint import weights_fingerprint
from walt_t5x.text.config import CONFIG_FILE, PAD_ID, VOCABULARY_FILE, WEIGHTS_FILE, T5Config
from walt_t5x.text.import_weights import EncoderWeights
from walt_t5x.text.model import T5Encoder
from walt_t5x.text.safetensors_files import SafetensorsSource, save_weights
from walt_t5x.text.vocabulary import Vocabulary

# Padded lengths, each with its own compiled program. T5 was trained on at most 512 tokens.
LENGTH_BUCKETS = (8, 16, 32, 64, 128, 256, 512)


class TextEncoder:
  """A T5 encoder with its vocabulary, ready to encode captions.

  A caption's embedding does not depend on the other captions in the list: every call to the device
  has a fixed batch size and the bucket of the caption's length.
  """

  def __init__(
    self,
    *,
    config: T5Config,
    params: Mapping[str, Any],
    vocabulary: Vocabulary,
    dtype: Any = jnp.float32,
    batch_size: int = 16,
  ):
    """Puts the weights on the default device.

    Args:
      config: the encoder's sizes.
      params: nested Flax parameters, float32.
      vocabulary: of the encoder.
      dtype: activation dtype, float32 or bfloat16.
      batch_size: captions per call to the device; short lists are padded.

    Raises:
      ValueError: if the vocabulary has more pieces than the embedding table has rows.
    """
    if len(vocabulary) > config.vocab_size:
      raise ValueError(
        f"Vocabulary: got {len(vocabulary)} pieces, expected at most {config.vocab_size} (rows of "
        f"the embedding table); {VOCABULARY_FILE} and {WEIGHTS_FILE} belong to different encoders."
      )
    if batch_size < 1:
      raise ValueError(f"batch_size: got {batch_size}, expected at least 1.")
    self.config = config
    self.vocabulary = vocabulary
    self.batch_size = batch_size
    self.params = jax.tree.map(jnp.asarray, params)
    module = T5Encoder(config, dtype)
    self._apply = jax.jit(
      lambda params, ids: cast(jax.Array, module.apply({"params": params}, ids)).astype(jnp.float32)
    )

  @classmethod
  def load(
    cls, folder: storage.PathLike, *, dtype: Any = jnp.float32, batch_size: int = 16
  ) -> "TextEncoder":
    """Reads a Hugging Face T5 v1.1 folder: config.json, model.safetensors, spiece.model.

    Raises:
      FileNotFoundError: if one of the files is missing.
      ValueError: if the files do not belong together or are not T5 v1.1.
    """
    if not storage.exists(storage.join(folder, CONFIG_FILE)):
      raise FileNotFoundError(
        f"No {CONFIG_FILE} in {folder}. Make a text encoder folder with `python -m "
        "walt_t5x.text.import_encoder` (T5 weights) or `python -m walt_t5x.text.init_encoder` "
        "(random weights, for tests)."
      )
    with local_folders.read_locally(folder) as copy:
      config = T5Config.from_json(copy / CONFIG_FILE)
      vocabulary = Vocabulary.load(copy / VOCABULARY_FILE)
      weights = EncoderWeights(SafetensorsSource(copy), config)
      flat = {name: jnp.asarray(weights[name]) for name in weights}
    return cls(
      config=config,
      params=flax.traverse_util.unflatten_dict(flat, sep="/"),
      vocabulary=vocabulary,
      dtype=dtype,
      batch_size=batch_size,
    )

  @property
  def embedding_dim(self) -> int:
    """Width E of the embedding of one token."""
    return self.config.d_model

  @functools.cached_property
  def fingerprint(self) -> str:
    """The sha256, in hex, of weights and vocabulary; the same for every activation dtype."""
    weights = flax.traverse_util.flatten_dict(self.params, sep="/")
    return encoder_fingerprint(self.config, weights, self.vocabulary)

  def tokenize(self, texts: Sequence[str], max_length: int) -> list[Int32[np.ndarray, " _"]]:
    """Returns the ids of each text, int32, truncated to max_length with an eos at the end, unpadded.

    Args:
      texts: captions; '' is the null caption.
      max_length: largest number of ids, including the eos; at least 1.

    Raises:
      TypeError: if `texts` is a string.
    """
    if isinstance(texts, str):
      raise TypeError(f"tokenize: got one string {texts!r}, expected a list of strings.")
    return [self.vocabulary.encode(text, max_length) for text in texts]

  def encode(self, ids: Sequence[Integer[np.ndarray, " _"]]) -> list[Float32[np.ndarray, "_ E"]]:
    """Returns the embeddings of each caption, float32 [tokens, E] without padding, from the 1 to 512 ids of `tokenize`.

    Raises:
      ValueError: if a caption is empty, too long, or contains padding or ids outside the vocabulary.
    """
    groups: dict[int, list[int]] = collections.defaultdict(list)
    for row, caption in enumerate(ids):
      groups[self._bucket(row, caption)].append(row)
    outputs: list[Any] = [None] * len(ids)
    for length, rows in sorted(groups.items()):
      for start in range(0, len(rows), self.batch_size):
        part = rows[start : start + self.batch_size]
        batch = np.full((self.batch_size, length), PAD_ID, np.int32)
        for slot, row in enumerate(part):
          batch[slot, : len(ids[row])] = ids[row]
        embedding = np.asarray(self._apply(self.params, batch))
        for slot, row in enumerate(part):
          outputs[row] = embedding[slot, : len(ids[row])].copy()
    return outputs

  def _bucket(self, row: int, caption: np.ndarray) -> int:
    if not 1 <= len(caption) <= LENGTH_BUCKETS[-1]:
      raise ValueError(
        f"Caption {row}: got {len(caption)} ids, expected 1 to {LENGTH_BUCKETS[-1]}; lower "
        "max_length in tokenize."
      )
    if caption.min() <= PAD_ID or caption.max() >= self.config.vocab_size:
      raise ValueError(
        f"Caption {row}: got ids from {caption.min()} to {caption.max()}, expected 1 to "
        f"{self.config.vocab_size - 1} without padding; pass the result of tokenize."
      )
    return next(length for length in LENGTH_BUCKETS if length >= len(caption))


def encoder_fingerprint(
  config: T5Config, weights: Mapping[str, Any], vocabulary: Vocabulary
) -> str:
  """Returns the fingerprint of weights, vocabulary and largest relative distance.

  The vocabulary is included because two random encoders of the same seed and size differ in nothing
  else, the distance because it does not appear in the shape of any tensor. `weights` has the parameters by flat T5X
  name, and is read one at a time.
  """
  rest = {
    "relative_attention_max_distance": np.int32(config.relative_attention_max_distance),
    "vocabulary": np.frombuffer(vocabulary.model, np.uint8),
  }
  # A ChainMap writes only to its first map; the others may be read-only.
  chained = collections.ChainMap(rest, weights)  # pyright: ignore[reportArgumentType]
  return weights_fingerprint(chained)


def save_encoder(
  folder: storage.PathLike,
  *,
  config: T5Config,
  weights: Mapping[str, np.ndarray],
  vocabulary: Vocabulary,
  dtype: str = "float32",
) -> None:
  """Writes a text encoder folder that `TextEncoder.load` and Hugging Face read.

  Existing files are replaced. config.json is written last, so a folder left by an interrupted write does not load.
  `weights` has the parameters by flat T5X name, float32, and is read one at a time; `dtype` is that of the file.
  """
  storage.delete(storage.join(folder, CONFIG_FILE))
  save_weights(storage.join(folder, WEIGHTS_FILE), config, weights, dtype=dtype)
  storage.write(storage.join(folder, VOCABULARY_FILE), vocabulary.model)
  storage.write(storage.join(folder, CONFIG_FILE), config.to_json())
