"""The fingerprint of everything that decides what a text encoder returns."""

import collections
from collections.abc import Mapping
from typing import Any

import numpy as np

from walt_t5x.files.fingerprint import weights_fingerprint
from walt_t5x.text.config import T5Config
from walt_t5x.text.vocabulary import Vocabulary


def encoder_fingerprint(
  config: T5Config, weights: Mapping[str, Any], vocabulary: Vocabulary
) -> str:
  """Returns the fingerprint of weights, vocabulary and largest relative distance.

  The vocabulary is included because two random encoders of the same seed and size differ in nothing
  else, the distance because it does not appear in the shape of any tensor.

  Args:
    config: the encoder's sizes.
    weights: parameters by flat T5X name, read one at a time.
    vocabulary: its SentencePiece vocabulary.
  """
  rest = {
    "relative_attention_max_distance": np.int32(config.relative_attention_max_distance),
    "vocabulary": np.frombuffer(vocabulary.model, np.uint8),
  }
  # A ChainMap writes only to its first map; the others may be read-only.
  chained = collections.ChainMap(rest, weights)  # pyright: ignore[reportArgumentType]
  return weights_fingerprint(chained)
