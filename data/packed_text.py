"""Text embeddings as bytes: int8 with a step for every 8 channels. numpy alone; models unpack the same bytes in JAX.

A token of E channels is one struct (`token_layout`), so a caption of n tokens is n of them one after another:

  scale    float32            largest magnitude of the token / 127
  octaves  uint8[ceil(E/8)]   a block of 8 channels steps by scale * 2^(-octaves / 16)
  values   int8[E]            embedding = values * step of their block

A block's step is the least of those 256 with which its largest value fits in int8, so that an outlier costs its own 8
channels alone. It is at most 2^(1/16) = 4.4% above the least possible one, down to 2^-16 of the token's scale. An
octave code is half of the bfloat16 scale that a block of 16 channels would cost the same bytes with.

With rounding errors spread evenly over a step, ||error|| / ||token|| <= sqrt(8 / 12) / 127 * 2^(1/16) = 0.67% (root
mean square) whatever the distribution; `benchmarks/records.py` measures it against the alternatives.
"""

import numpy as np

BLOCK = 8
CODES_AN_OCTAVE = 16


def blocks_of(width: int) -> int:
  """Steps of one token: ceil(E / 8)."""
  return -(-width // BLOCK)


def token_bytes(width: int) -> int:
  """Bytes of one token of E channels."""
  return 4 + blocks_of(width) + width


def width_of(size: int) -> int:
  """E of tokens of `size` bytes, the inverse of `token_bytes`.

  Raises:
    ValueError: if no width has that size.
  """
  width = size - 4 - -(-(size - 4) // (BLOCK + 1))
  if width < 1 or token_bytes(width) != size:
    raise ValueError(
      f"tokens of {size} bytes: expected 4 + ceil(E / {BLOCK}) + E for some width E of at least 1"
    )
  return width


def token_layout(width: int) -> np.dtype:
  """The struct of one token."""
  return np.dtype(
    [("scale", "<f4"), ("octaves", "u1", (blocks_of(width),)), ("values", "i1", (width,))]
  )


def steps() -> np.ndarray:
  """float32 [256]: step of each octave code, as a share of the token's scale; descending from 1."""
  return np.exp2(-np.arange(256, dtype=np.float64) / CODES_AN_OCTAVE).astype(np.float32)


def pack(embedding: np.ndarray) -> np.ndarray:
  """(n, E) floats as uint8 (n, token_bytes(E)).

  Raises:
    ValueError: on a value that is not finite.
  """
  embedding = np.asarray(embedding, np.float32)
  if not np.isfinite(embedding).all():
    raise ValueError(
      "text_embedding: got values that are not finite, expected the output of a working text encoder; "
      "check its weights and its activation dtype"
    )
  tokens, width = embedding.shape
  count = blocks_of(width)
  blocks = np.pad(embedding, ((0, 0), (0, count * BLOCK - width))).reshape(tokens, count, BLOCK)
  largest = np.abs(blocks).max(axis=-1)
  most = largest.max(axis=-1, initial=0.0)
  packed = np.zeros(tokens, token_layout(width))
  packed["scale"] = most / np.float32(127)
  share = largest / np.where(most > 0, most, np.float32(1))[:, None]
  ascending = steps()[::-1]
  packed["octaves"] = 255 - np.searchsorted(ascending, share)
  step = packed["scale"][:, None] * steps()[packed["octaves"]]
  values = np.rint(blocks / np.where(step > 0, step, np.float32(1))[..., None])
  values = np.clip(values, -127, 127).astype(np.int8).reshape(tokens, count * BLOCK)
  packed["values"] = values[:, :width]
  return packed.view(np.uint8).reshape(tokens, token_bytes(width))


def unpack(packed: np.ndarray) -> np.ndarray:
  """float32 (n, E) from uint8 (n, token_bytes(E)), the inverse of `pack` to rounding."""
  packed = np.ascontiguousarray(packed)
  width = width_of(packed.shape[1])
  tokens = packed.view(token_layout(width)).reshape(len(packed))
  step = tokens["scale"][:, None] * steps()[tokens["octaves"]]
  return tokens["values"].astype(np.float32) * np.repeat(step, BLOCK, axis=1)[:, :width]
