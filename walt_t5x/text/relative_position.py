"""Relative position bias of T5 (arXiv:1910.10683, section 2.1), shared by all layers."""

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen import partitioning
from jaxtyping import Array, Float, Int


def relative_position_bucket(
  offset: Int[np.ndarray, "..."], *, num_buckets: int = 32, max_distance: int = 128
) -> Int[np.ndarray, "..."]:
  """Maps `key position - query position` to a bucket of the bidirectional table.

  With M = num_buckets / 2 buckets per sign, E = M / 2 of them exact, and n = |offset|:

      bucket = M [offset > 0] + (n                                          if n < E
                                 min(M - 1, E + floor((M - E) log(n/E) / log(max_distance/E))))

  Args:
    offset: key position minus query position, in tokens.
    num_buckets: number of buckets, a multiple of 4.
    max_distance: distance in tokens from which all offsets share the last bucket.

  Returns:
    int32 of the shape of `offset`, in [0, num_buckets).

  Source: arXiv:1910.10683, section 2.1; the tie at exact powers follows T5X.
  """
  per_sign = num_buckets // 2
  exact = per_sign // 2
  distance = np.abs(offset)
  # The log of an exact power may round to just below an integer, which floor would decrement.
  halvings = np.log(np.maximum(distance, 1) / exact) / np.log(max_distance / exact) + 1e-9
  spread = exact + np.floor(halvings * (per_sign - exact)).astype(np.int32)
  bucket = np.where(distance < exact, distance, np.minimum(spread, per_sign - 1))
  return (bucket + per_sign * (offset > 0)).astype(np.int32)


class RelativePositionBias(nn.Module):
  """One learned scalar for each head and bucket, added to the attention logits.

  Args:
    num_heads: attention heads.
    num_buckets, max_distance: as in `relative_position_bucket`.
  """

  num_heads: int
  num_buckets: int = 32
  max_distance: int = 128

  @nn.compact
  def __call__(self, length: int) -> Float[Array, "1 K L L"]:
    """Returns the bias for `length` queries (axis 2) and as many keys (axis 3), float32."""
    table = partitioning.param_with_axes(
      "rel_embedding",
      nn.initializers.variance_scaling(1.0, "fan_avg", "uniform"),
      (self.num_heads, self.num_buckets),
      jnp.float32,
      axes=("heads", "relpos_buckets"),
    )
    position = np.arange(length)
    bucket = relative_position_bucket(
      position[None, :] - position[:, None],
      num_buckets=self.num_buckets,
      max_distance=self.max_distance,
    )
    return jnp.take(table, bucket, axis=1)[None]
