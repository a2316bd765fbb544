"""Embeddings of clips, which parts keep as unit vectors in float16.

The components are multiples of 2^-24, so float64 holds each dot product of two vectors without rounding: every CPU and
library gives the same cosine.
"""

import base64
import functools
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from beam_jobs.curation import scores
from walt_t5x.files.mismatch import Mismatch


class ClipEmbedding(Protocol):
  """Gives a vector to a clip; those of clips that mean the same have almost the same direction."""

  def __call__(self, frames: np.ndarray) -> np.ndarray:
    """[D] float, of frames uint8 [T, H, W, 3]; D is the same for all clips."""
    ...


@functools.lru_cache(maxsize=1)
def load(name: str) -> ClipEmbedding:
  """The embedding `MODULE:CLASS`, made once by each worker; raises ValueError if there is none."""
  return scores.load(name, flag="--embedding")


def check(name: str) -> None:
  """Raises ValueError if the class `name` does not exist, or gives no vector to a clip of random pixels."""
  embedded(np.random.default_rng(0).integers(0, 256, (2, 128, 128, 3), dtype=np.uint8), name)


def embedded(frames: np.ndarray, name: str) -> str:
  """What a part keeps of the embedding of a clip by the class `name`; "" without a name."""
  return pack(scores.called(load(name), frames), name) if name else ""


def pack(vector: np.ndarray, name: str) -> str:
  """A vector divided by its norm, in base64 of float16; one of zeros stays as it is, and is similar to none.

  Raises:
    Mismatch: it is not a vector of finite numbers; names the class.
  """
  values = np.asarray(vector, np.float64)
  if values.ndim != 1 or not values.size or not np.isfinite(values).all():
    got = f"shape {values.shape}" if values.ndim != 1 or not values.size else "NaN or infinity"
    raise Mismatch(f"--embedding={name}: got {got}, expected a vector of finite numbers for a clip")
  norm = np.linalg.norm(values)
  return base64.b64encode((values / (norm or 1.0)).astype("<f2").tobytes()).decode()


def unpack(text: str) -> bytes:
  """float16 of a packed vector; nothing of ""."""
  return base64.b64decode(text)


def stacked(found: Sequence[bytes]) -> np.ndarray:
  """[n, D] float16.

  Raises:
    Mismatch: they differ in length.
  """
  sizes = sorted({len(one) // 2 for one in found})
  if len(sizes) > 1:
    raise Mismatch(
      f"--embedding: got vectors of {sizes[0]} and of {sizes[-1]} numbers, expected the same number for all clips"
    )
  return np.frombuffer(b"".join(found), "<f2").reshape(len(found), sizes[0] if sizes else 0)


def cosine_distances(many: np.ndarray, one: np.ndarray) -> np.ndarray:
  """1 minus the cosine between each of the vectors [n, D] and one [D]; both float64 of float16."""
  return 1.0 - many @ one
