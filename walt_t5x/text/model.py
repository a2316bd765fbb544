"""The T5 v1.1 encoder in Flax linen, with T5X's parameter names (arXiv:1910.10683, 2002.05202).

Pre-norm blocks without biases, y = norm(x): x += attention(y), then x += wo(gelu(wi_0 y) * wi_1 y).
"""

from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen import partitioning
from jaxtyping import Array, Bool, Float, Int

from walt_t5x.text.config import PAD_ID, T5Config
from walt_t5x.types import TextEmbedding, TextIds


class Dense(nn.Module):
  """A linear map without bias: y = x W over the last axis; kernel_axes are logical names."""

  features: int
  kernel_axes: tuple[str, str]
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "*lead F"]) -> Float[Array, "*lead G"]:
    kernel = partitioning.param_with_axes(
      "kernel",
      nn.initializers.variance_scaling(1.0, "fan_in", "normal"),
      (x.shape[-1], self.features),
      jnp.float32,
      axes=self.kernel_axes,
    )
    return jnp.dot(x.astype(self.dtype), kernel.astype(self.dtype))


class RMSNorm(nn.Module):
  """Root mean square norm, y = x / sqrt(mean(x^2) + 1e-6) * scale, computed in float32."""

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "*lead E"]) -> Float[Array, "*lead E"]:
    scale = partitioning.param_with_axes(
      "scale", nn.initializers.ones, (x.shape[-1],), jnp.float32, axes=("embed",)
    )
    x = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    return (x * jax.lax.rsqrt(mean_square + 1e-6) * scale).astype(self.dtype)


def relative_position_bucket(
  offset: Int[np.ndarray, "..."], *, num_buckets: int = 32, max_distance: int = 128
) -> Int[np.ndarray, "..."]:
  """Maps `key position - query position` to a bucket of the bidirectional table.

  With M = num_buckets / 2 buckets per sign, E = M / 2 of them exact, and n = |offset|:

      bucket = M [offset > 0] + (n                                          if n < E
                                 min(M - 1, E + floor((M - E) log(n/E) / log(max_distance/E))))

  The result is int32, in [0, num_buckets); num_buckets is a multiple of 4. All offsets from max_distance tokens on
  share the last bucket.

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
  """One learned scalar for each head and bucket, added to the attention logits."""

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


class Attention(nn.Module):
  """Self-attention of T5: softmax(q k^T + bias) v, without the factor 1/sqrt(d_kv); logits and softmax in float32."""

  num_heads: int
  head_dim: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "B L E"], bias: Float[Array, "1 K L L"], mask: Bool[Array, "B L"]
  ) -> Float[Array, "B L E"]:
    width = self.num_heads * self.head_dim

    def project(name):
      y = Dense(width, ("embed", "joined_kv"), self.dtype, name=name)(x)
      return y.reshape(*y.shape[:-1], self.num_heads, self.head_dim)

    query, key, value = project("query"), project("key"), project("value")
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    logits = jnp.where(mask[:, None, None, :], logits + bias, -1e10)
    weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
    y = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
    y = y.reshape(*y.shape[:-2], width)
    return Dense(x.shape[-1], ("joined_kv", "embed"), self.dtype, name="out")(y)


class GatedMlp(nn.Module):
  """Gated feed-forward layer, wo(gelu_tanh(wi_0 x) * (wi_1 x)) (arXiv:2002.05202, GEGLU)."""

  features: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B L E"]) -> Float[Array, "B L E"]:
    gate = Dense(self.features, ("embed", "mlp"), self.dtype, name="wi_0")(x)
    linear = Dense(self.features, ("embed", "mlp"), self.dtype, name="wi_1")(x)
    hidden = jax.nn.gelu(gate, approximate=True) * linear
    return Dense(x.shape[-1], ("mlp", "embed"), self.dtype, name="wo")(hidden)


class EncoderLayer(nn.Module):
  """One pre-norm block: attention, then the gated feed-forward layer."""

  config: T5Config
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "B L E"], bias: Float[Array, "1 K L L"], mask: Bool[Array, "B L"]
  ) -> Float[Array, "B L E"]:
    sizes = self.config
    y = RMSNorm(self.dtype, name="pre_attention_layer_norm")(x)
    x = x + Attention(sizes.num_heads, sizes.d_kv, self.dtype, name="attention")(y, bias, mask)
    y = RMSNorm(self.dtype, name="pre_mlp_layer_norm")(x)
    return x + GatedMlp(sizes.d_ff, self.dtype, name="mlp")(y)


class TokenEmbedder(nn.Module):
  """The embedding table, one row per vocabulary id, without scaling."""

  vocab_size: int
  features: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, ids: TextIds) -> TextEmbedding:
    table = partitioning.param_with_axes(
      "embedding",
      nn.initializers.normal(1.0),
      (self.vocab_size, self.features),
      jnp.float32,
      axes=("vocab", "embed"),
    )
    return jnp.take(table, ids, axis=0).astype(self.dtype)


class EncoderStack(nn.Module):
  """All blocks and the final norm; the blocks share one relative position table."""

  config: T5Config
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B L E"], mask: Bool[Array, "B L"]) -> TextEmbedding:
    sizes = self.config
    bias = RelativePositionBias(
      sizes.num_heads,
      sizes.relative_attention_num_buckets,
      sizes.relative_attention_max_distance,
      name="relpos_bias",
    )(x.shape[1])
    for i in range(sizes.num_layers):
      x = EncoderLayer(sizes, self.dtype, name=f"layers_{i}")(x, bias, mask)
    return RMSNorm(self.dtype, name="encoder_norm")(x)


class T5Encoder(nn.Module):
  """Token ids [B, L], 0 at padding, to contextual embeddings [B, L, E]; those at padding are undefined.

  Args:
    config: the encoder's sizes.
    dtype: activation dtype, float32 or bfloat16 (float16 overflows in T5's feed-forward layers).

  Raises:
    ValueError: if dtype is neither float32 nor bfloat16.
  """

  config: T5Config
  dtype: Any = jnp.float32

  def __post_init__(self):
    if jnp.dtype(self.dtype) not in (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)):
      raise ValueError(
        f"T5 activations: got dtype {jnp.dtype(self.dtype).name}, expected float32 or bfloat16 "
        "(T5 v1.1 overflows float16)."
      )
    super().__post_init__()

  @nn.compact
  def __call__(self, ids: TextIds) -> TextEmbedding:
    sizes, mask = self.config, ids != PAD_ID
    embed = TokenEmbedder(sizes.vocab_size, sizes.d_model, self.dtype, name="token_embedder")
    return EncoderStack(sizes, self.dtype, name="encoder")(embed(ids), mask)


def parameter_shapes(config: T5Config) -> dict[str, tuple[int, ...]]:
  """Returns the shape of every parameter by flat T5X name, without allocating parameters."""
  module = T5Encoder(config)
  ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), ids)["params"]
  flat = flax.traverse_util.flatten_dict(shapes, sep="/")
  return {name: tuple(leaf.shape) for name, leaf in sorted(flat.items())}
