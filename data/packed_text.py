"""Text embeddings quantized to int8 with one step size per 8 channels. numpy only; models unpack them in JAX.

A token of E channels is one struct (`token_layout`); a caption of n tokens is n consecutive structs:

  scale    float32            largest magnitude of the token / 127
  halvings  uint8[ceil(E/8)]   the step size of a block of 8 channels is scale * 2^(-halvings / 16)
  values   int8[E]            embedding = values * step size of the block

The step size of a block is the smallest of the 256 with which its largest value fits in int8, so that an outlier
affects only its own 8 channels. It is at most 2^(1/16) = 4.4% above the smallest possible step, down to 2^-16 of the
token's scale. A step code has half the size of a bfloat16 scale, which would cost the same bytes with blocks of 16.

With rounding errors uniform over a step, ||error|| / ||token|| <= sqrt(8 / 12) / 127 * 2^(1/16) = 0.67% (root mean
square) for any distribution of values; `benchmarks/records.py` compares it with alternatives.
"""

import numpy as np

BLOCK = 8
CODES_PER_HALVING = 16


def blocks_of(width: int) -> int:
  """Number of blocks of one token: ceil(E / 8)."""
  return -(-width // BLOCK)


def token_bytes(width: int) -> int:
  """Size in bytes of one token of E channels."""
  return 4 + blocks_of(width) + width


def width_of(size: int) -> int:
  """Channels E of tokens of `size` bytes, the inverse of `token_bytes`.

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
    [("scale", "<f4"), ("halvings", "u1", (blocks_of(width),)), ("values", "i1", (width,))]
  )


def steps() -> np.ndarray:
  """float32 [256]: step size of each code, relative to the token's scale; descending from 1."""
  return np.exp2(-np.arange(256, dtype=np.float64) / CODES_PER_HALVING).astype(np.float32)


def pack(embedding: np.ndarray) -> np.ndarray:
  """Quantizes (n, E) floats to uint8 (n, token_bytes(E)).

  Raises:
    ValueError: if a value is not finite.
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
  packed["halvings"] = 255 - np.searchsorted(ascending, share)
  step = packed["scale"][:, None] * steps()[packed["halvings"]]
  values = np.rint(blocks / np.where(step > 0, step, np.float32(1))[..., None])
  values = np.clip(values, -127, 127).astype(np.int8).reshape(tokens, count * BLOCK)
  packed["values"] = values[:, :width]
  return packed.view(np.uint8).reshape(tokens, token_bytes(width))


def unpack(packed: np.ndarray) -> np.ndarray:
  """float32 (n, E) from uint8 (n, token_bytes(E)), the inverse of `pack` up to rounding."""
  packed = np.ascontiguousarray(packed)
  width = width_of(packed.shape[1])
  tokens = packed.view(token_layout(width)).reshape(len(packed))
  step = tokens["scale"][:, None] * steps()[tokens["halvings"]]
  return tokens["values"].astype(np.float32) * np.repeat(step, BLOCK, axis=1)[:, :width]
