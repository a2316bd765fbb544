"""Duplicates within a shard: identical bytes, or images that look the same.

Only rows of the same shard are compared. To find duplicates in the entire corpus, give rows whose media may be the same
an equal `group` in the manifest (a content hash, a video id): the group decides the shard.
"""

from collections.abc import Mapping

import numpy as np

from walt_t5x.media.rules import Rejected

# Bits of one image's hash: 8 x 8 differences along rows and 8 x 8 along columns.
HASH_BITS = 128


def difference_hash(picture: np.ndarray) -> np.ndarray:
  """dHash, uint64 (2,), of one image, uint8 (height, width, 3).

  Its bits say whether each of 8 x 8 cells is darker than the next one, along rows, then along columns.
  """
  from PIL import Image

  image = Image.fromarray(picture).convert("L")
  across = np.asarray(image.resize((9, 8), Image.Resampling.BOX), np.int16)
  down = np.asarray(image.resize((8, 9), Image.Resampling.BOX), np.int16)
  bits = np.concatenate([(across[:, 1:] > across[:, :-1]).ravel(), (down[1:] > down[:-1]).ravel()])
  return np.packbits(bits).view(np.uint64)


def perceptual_hash(frames: np.ndarray) -> np.ndarray:
  """Hashes uint64 (3, 2) of the first, middle and last frame of a clip, uint8 (frames, height, width, 3)."""
  chosen = (0, len(frames) // 2, len(frames) - 1)
  hashes = {index: difference_hash(frames[index]) for index in set(chosen)}
  return np.stack([hashes[index] for index in chosen])


class Seen:
  """The media of one shard so far, in row order; the first of several duplicates is kept.

  Args:
    mode: 'none', 'exact' (same bytes and same time window) or 'near' (that, or similar images).
    near_bits: a clip is a near duplicate if each of its three frames differs by at most this many of 128 bits.
  """

  def __init__(self, mode: str, near_bits: int):
    if not 0 <= near_bits < HASH_BITS // 2:
      raise ValueError(f"near_bits: got {near_bits}, expected 0 to {HASH_BITS // 2 - 1}")
    self._mode, self._near_bits = mode, near_bits
    self._exact: dict[str, str] = {}
    self._hashes = np.zeros((64, 3, 2), np.uint64)
    self._uris: list[str] = []

  def check(self, uri: str, media_id: str, frames: Mapping[tuple[int, int], np.ndarray]) -> None:
    """Adds the media of a row.

    Args:
      uri: named in the message of a later duplicate.
      media_id: hash of the content and the time window.
      frames: uint8 (frames, height, width, 3) by (height, width); the smallest resolution is hashed.

    Raises:
      Rejected: 'exact_duplicate' or 'near_duplicate', naming the first row.
    """
    if self._mode == "none":
      return
    if media_id in self._exact:
      raise Rejected("exact_duplicate", f"the same media as {self._exact[media_id]}")
    if self._mode == "near":
      self._check_near(uri, perceptual_hash(frames[min(frames)]))
    self._exact[media_id] = uri

  def _check_near(self, uri: str, hashes: np.ndarray) -> None:
    count = len(self._uris)
    bits = np.bitwise_count(self._hashes[:count] ^ hashes).sum(axis=-1, dtype=np.int64)
    worst = bits.max(axis=-1, initial=0)
    found = np.flatnonzero(worst <= self._near_bits)
    if len(found):
      distance = f"{worst[found[0]]} of {HASH_BITS} bits from {self._uris[found[0]]}"
      limit = f"expected more than {self._near_bits} (--near_duplicate_bits)"
      raise Rejected("near_duplicate", f"{distance}, {limit}")
    if count == len(self._hashes):
      self._hashes = np.concatenate([self._hashes, np.zeros_like(self._hashes)])
    self._hashes[count] = hashes
    self._uris.append(uri)
