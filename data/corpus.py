"""Constants of a corpus, the same for all its examples: the model holds them, and no example carries them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class CorpusConstants:
  """Constants of the data that a denoiser reads.

  Attributes:
    moments: feature of latents ("latents", "low_resolution") -> float32 [2, c], mean and standard deviation of each
      channel over the corpus. Without normalization they are 0 and 1.
    null_text: float32 [n, E], the encoded empty caption, for classifier-free drop; None without text.
    num_classes: 1 + the largest label, 0 without labels; None for caches that do not record it.
  """

  moments: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  null_text: np.ndarray | None = None
  num_classes: int | None = None


def constants_of(dataset: Any) -> Callable[[], CorpusConstants]:
  """A function that reads the constants of a task or mixture of `data.tasks`; nothing is read before.

  The function raises FileNotFoundError if no cache directory contains the task, and Mismatch if a field is
  missing or cannot be normalized. A dataset may be given by its registered name.
  """

  def read() -> CorpusConstants:
    import seqio

    found: Any = seqio.get_mixture_or_task(dataset) if isinstance(dataset, str) else dataset
    return found.walt_constants

  return read
