"""The T5 v1.1 encoder in Flax linen, with T5X's parameter names (arXiv:1910.10683, 2002.05202).

Pre-norm blocks without biases, y = norm(x): x += attention(y), then x += wo(gelu(wi_0 y) * wi_1 y).
"""

import dataclasses
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen import partitioning
from jaxtyping import Array, Bool, Float

from walt_t5x.text.config import PAD_ID, T5Config
from walt_t5x.text.relative_position import RelativePositionBias
from walt_t5x.types import TextEmbedding, TextIds


class Dense(nn.Module):
  """A linear map without bias: y = x W over the last axis.

  Args:
    features: output width.
    kernel_axes: logical names of the kernel's two axes.
    dtype: activation dtype.
  """

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
  """Root mean square norm, y = x / sqrt(mean(x^2) + 1e-6) * scale, computed in float32.

  Args:
    dtype: activation dtype of the result.
  """

  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "*lead E"]) -> Float[Array, "*lead E"]:
    scale = partitioning.param_with_axes(
      "scale", nn.initializers.ones, (x.shape[-1],), jnp.float32, axes=("embed",)
    )
    x = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    return (x * jax.lax.rsqrt(mean_square + 1e-6) * scale).astype(self.dtype)


class Attention(nn.Module):
  """Self-attention of T5: softmax(q k^T + bias) v, without the factor 1/sqrt(d_kv).

  Args:
    num_heads: attention heads.
    head_dim: width of one head.
    dtype: activation dtype; logits and softmax are float32.
  """

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
  """Gated feed-forward layer, wo(gelu_tanh(wi_0 x) * (wi_1 x)) (arXiv:2002.05202, GEGLU).

  Args:
    features: width of each branch.
    dtype: activation dtype.
  """

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

  num_heads: int
  head_dim: int
  mlp_features: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(
    self, x: Float[Array, "B L E"], bias: Float[Array, "1 K L L"], mask: Bool[Array, "B L"]
  ) -> Float[Array, "B L E"]:
    y = RMSNorm(self.dtype, name="pre_attention_layer_norm")(x)
    x = x + Attention(self.num_heads, self.head_dim, self.dtype, name="attention")(y, bias, mask)
    y = RMSNorm(self.dtype, name="pre_mlp_layer_norm")(x)
    return x + GatedMlp(self.mlp_features, self.dtype, name="mlp")(y)


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

  d_kv: int
  d_ff: int
  num_heads: int
  num_layers: int
  relative_attention_num_buckets: int
  relative_attention_max_distance: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "B L E"], mask: Bool[Array, "B L"]) -> TextEmbedding:
    bias = RelativePositionBias(
      self.num_heads,
      self.relative_attention_num_buckets,
      self.relative_attention_max_distance,
      name="relpos_bias",
    )(x.shape[1])
    for i in range(self.num_layers):
      layer = EncoderLayer(self.num_heads, self.d_kv, self.d_ff, self.dtype, name=f"layers_{i}")
      x = layer(x, bias, mask)
    return RMSNorm(self.dtype, name="encoder_norm")(x)


class T5Encoder(nn.Module):
  """Token ids [B, L] to contextual embeddings [B, L, E]; `from_config` builds it."""

  token_embedder: TokenEmbedder
  encoder: EncoderStack

  @classmethod
  def from_config(cls, config: T5Config, dtype: Any = jnp.float32) -> "T5Encoder":
    """Builds the module of a `T5Config`.

    Args:
      config: the encoder's sizes.
      dtype: activation dtype, float32 or bfloat16 (float16 overflows in T5's feed-forward layers).

    Raises:
      ValueError: if dtype is neither float32 nor bfloat16.
    """
    if jnp.dtype(dtype) not in (jnp.dtype(jnp.float32), jnp.dtype(jnp.bfloat16)):
      raise ValueError(
        f"T5 activations: got dtype {jnp.dtype(dtype).name}, expected float32 or bfloat16 "
        "(T5 v1.1 overflows float16)."
      )
    sizes = dataclasses.asdict(config)
    embedder = TokenEmbedder(sizes.pop("vocab_size"), sizes.pop("d_model"), dtype)
    return cls(embedder, EncoderStack(**sizes, dtype=dtype))

  def __call__(self, ids: TextIds) -> TextEmbedding:
    """Encodes padded ids; embeddings at padding (id 0) are undefined.

    Args:
      ids: vocabulary ids [B, L], 0 at padding.
    """
    mask = ids != PAD_ID
    return self.encoder(self.token_embedder(ids), mask)


def parameter_shapes(config: T5Config) -> dict[str, tuple[int, ...]]:
  """Returns the shape of every parameter by flat T5X name, without allocating parameters."""
  module = T5Encoder.from_config(config)
  ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), ids)["params"]
  flat = flax.traverse_util.flatten_dict(shapes, sep="/")
  return {name: tuple(leaf.shape) for name, leaf in sorted(flat.items())}
