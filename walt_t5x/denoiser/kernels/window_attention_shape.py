"""Sizes of one call of the fused window attention: blocks that fit the core's memory, and the cost."""

import dataclasses
import math
from typing import Any

import numpy as np
from jax.experimental import pallas as pl

LANES = 128
# Limit on the blocks of one step: less than half of the smallest core's memory (v5p: 64 MiB), which leaves room for
# what the compiler adds.
_BLOCK_BYTES = 24 * 2**20
VMEM_LIMIT = 56 * 2**20


@dataclasses.dataclass(frozen=True)
class Shape:
  """Static sizes of one call.

  Attributes:
    batch, groups, cells (H, W), frames T, cell_tokens m, lanes (g d): the axes of q.
    window: (frames, cells along the height, cells along the width).
    group: g, heads per group.
    texts, text_length: F and L of the text's keys; 0 without text.
    bias: whether there is a bias.
    dtype: name of the dtype of q.
    interpret: as in `pl.pallas_call`.
  """

  batch: int
  groups: int
  cells: tuple[int, int]
  frames: int
  cell_tokens: int
  lanes: int
  window: tuple[int, int, int]
  group: int
  texts: int
  text_length: int
  bias: bool
  dtype: str
  interpret: Any

  @property
  def head_size(self) -> int:
    return self.lanes // self.group

  @property
  def tokens(self) -> int:
    """Tokens per window, M."""
    return math.prod(self.window) * self.cell_tokens

  @property
  def windows(self) -> tuple[int, int, int]:
    """Number of windows along time, height and width."""
    wt, nh, nw = self.window
    return self.frames // wt, self.cells[0] // nh, self.cells[1] // nw

  def groups_a_step(self, *, backward: bool) -> int:
    """Groups of heads per grid step: as many as fit the core's memory, with an even number of steps if possible."""
    blocks = block_bytes(
      self.tokens,
      self.head_size,
      self.group,
      text_length=self.text_length,
      bias=self.bias,
      backward=backward,
      dtype=self.dtype,
    )
    fits = [
      n
      for n in range(1, min(self.groups, 8) + 1)
      if self.groups % n == 0 and n * blocks <= _BLOCK_BYTES
    ]
    # The two cores of a v4 or v5p chip share the outermost axis.
    shared = [n for n in fits if (self.groups // n) % 2 == 0]
    return max(shared or fits or [1])

  @property
  def _scores(self) -> int:
    """Number of (query, key) pairs over all heads."""
    windows = self.batch * self.groups * self.group * math.prod(self.windows)
    return windows * self.tokens * (self.tokens + self.text_length)

  def model_flops(self, *, backward: bool) -> int:
    """FLOPs of the products, without the scores that the backward pass recomputes; see `engine.flops`."""
    return (4 if backward else 2) * 2 * self._scores * self.head_size

  def cost(self, *, backward: bool) -> pl.CostEstimate:
    """FLOPs and bytes of HBM traffic with padded lanes; counts every example as a video."""
    windows = self.batch * self.groups * math.prod(self.windows)
    size = np.dtype(self.dtype).itemsize
    row = windows * self.tokens * _padded(self.lanes) * size
    text = self.batch * self.groups * self.texts * self.text_length * _padded(self.lanes) * size
    bias = self.groups * self.group * self.tokens * _padded(self.tokens) * 4 if self.bias else 0
    return pl.CostEstimate(
      flops=(5 if backward else 2) * 2 * self._scores * self.head_size,
      transcendentals=self._scores,
      bytes_accessed=(7 if backward else 4) * row
      + (4 if backward else 2) * text
      + (2 if backward else 1) * bias,
    )


def _padded(lanes: int) -> int:
  return -(-lanes // LANES) * LANES


def heads_in_lanes(num_heads: int, head_size: int) -> int:
  """g: the number of heads that share the 128 lanes, so that no lane is empty if possible."""
  group = LANES // head_size if LANES % head_size == 0 else 1
  return math.gcd(group, num_heads)


def block_bytes(
  tokens: int,
  head_size: int,
  group: int,
  *,
  text_length: int,
  bias: bool,
  backward: bool,
  dtype: Any,
) -> int:
  """Bytes of the core's memory for the blocks of one group of heads, double buffered."""
  size, lanes = np.dtype(dtype).itemsize, _padded(group * head_size)
  blocks = (7 if backward else 4) * tokens * lanes * size
  blocks += (4 if backward else 2) * text_length * lanes * size
  if bias:
    blocks += (2 if backward else 1) * group * tokens * _padded(tokens) * 4
  return 2 * blocks


def unsupported(tokens: int, cell_tokens: int, head_size: int, dtype: Any) -> str:
  """The reason why the TPU compiler would reject these windows (sizes in tokens), or an empty string."""
  name, tile = np.dtype(dtype).name, 32 // np.dtype(dtype).itemsize
  if cell_tokens % tile:
    return f"cells of {cell_tokens} tokens: expected a multiple of {tile} in {name}"
  blocks = block_bytes(
    tokens, head_size, heads_in_lanes(LANES, head_size), text_length=0, bias=True, backward=True,
    dtype=dtype,
  )  # fmt: skip
  # In addition to its blocks, the backward pass holds about five arrays of scores.
  needed = blocks + 5 * tokens * _padded(tokens) * 4
  if needed > VMEM_LIMIT:
    return (
      f"windows of {tokens} tokens: scores and bias of one head need {needed / 2**20:.0f} MiB of a core's memory, "
      f"expected at most {VMEM_LIMIT / 2**20:.0f}"
    )
  return ""
