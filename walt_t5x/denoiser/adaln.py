"""Adaptive LayerNorm modulation, separate per layer or shared with a low-rank correction (AdaLN-LoRA, Eq. 3).

  A^1 = MLP(c + t),   A^i = A^1 + W_b^i W_a^i (c + t),   A = concat(gamma_1, gamma_2, beta_1, beta_2, alpha_1, alpha_2)

The paper's equation corrects the layers i != 1 only, but its parameter counts (Table 3d) require the correction in
every layer, which is what we implement.
Assumption: MLP is one linear layer after a SiLU, as in DiT, and the correction acts on the same SiLU(c + t): of full
rank it equals separate AdaLN. As printed, without SiLU, small models learn more slowly (benchmarks/toy_search.md).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from walt_t5x.denoiser.layers import Linear, zeros_init
from walt_t5x.sharding.constraints import constrain

NUM_CHUNKS = 6
# Gathered before they are split in six: splitting an axis that is sharded over devices moves every part of it.
VECTORS = ("batch", "frames", None)


@dataclasses.dataclass(frozen=True)
class Modulation:
  """Scale, shift and gate of attention (1) and MLP (2); each [B, 1, 1, t or 1, 1, D], to broadcast over cells."""

  scale_1: Array
  scale_2: Array
  shift_1: Array
  shift_2: Array
  gate_1: Array
  gate_2: Array

  @classmethod
  def split(cls, flat: Float[Array, "B t sixD"]) -> "Modulation":
    """Splits a flat vector, [B, t or 1, 6 D], in the order of the paper."""
    return cls(*jnp.split(flat[:, None, None, :, None, :], NUM_CHUNKS, axis=-1))


def modulate(x: Array, shift: Array, scale: Array) -> Array:
  """x (1 + scale) + shift. Assumption: scale is an offset from 1, as in DiT, so that zeros mean no change."""
  return x * (1 + scale) + shift


class SharedAdaLN(nn.Module):
  """A^1: one linear layer D -> 6 D after SiLU, shared by all layers; initialized to zero."""

  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, condition: Float[Array, "B t D"]) -> Float[Array, "B t sixD"]:
    width = condition.shape[-1]
    projection = Linear(
      (NUM_CHUNKS * width,),
      axes=("embed", "mlp"),
      kernel_init=zeros_init,
      dtype=self.dtype,
      name="projection",
    )
    return constrain(projection(jax.nn.silu(condition)), VECTORS)


class LoRAAdaLN(nn.Module):
  """W_b W_a (c + t) of one layer: D -> r -> 6 D without biases; W_b is initialized to zero."""

  rank: int
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, condition: Float[Array, "B t D"]) -> Float[Array, "B t sixD"]:
    width = condition.shape[-1]
    low = Linear(
      (self.rank,), axes=("embed", "unmodeled"), use_bias=False, dtype=self.dtype, name="down"
    )(jax.nn.silu(condition))
    up = Linear(
      (NUM_CHUNKS * width,),
      axes=("unmodeled", "mlp"),
      use_bias=False,
      kernel_init=zeros_init,
      dtype=self.dtype,
      name="up",
    )
    return constrain(up(low), VECTORS)
