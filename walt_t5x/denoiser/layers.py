"""Linear, embedding and norm layers that name the logical axes of their parameters.

`param_with_axes` records the names in the `params_axes` collection, from which the partitioners of T5X and of this
project derive the sharding of every parameter. Parameters are float32; `dtype` is that of the activations.
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.partitioning import param_with_axes
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from walt_t5x.denoiser import adapters

Initializer = Callable[..., Array]

# Assumption: the paper does not specify the initialization. Xavier-uniform projections, zero gates and zero output
# follow DiT (2212.09748), so that every block starts as the identity.
projection_init = nn.initializers.xavier_uniform()
zeros_init = nn.initializers.zeros_init()
embedding_init = nn.initializers.normal(0.02)


class Linear(nn.Module):
  """y = x W + b over the last axis of x, or with `function` over the last len(inputs) axes.

  The initializer sees the kernel flattened to (in, out), which sets the fans of Xavier's rule.

  Attributes:
    features: output shape, e.g. (heads, head_dim); also of the bias, which starts at zero.
    axes: logical name of each kernel axis, inputs first.
    adapter_rank: > 0 adds the product of two matrices of this rank to W (`adapters`).
  """

  features: Sequence[int]
  axes: Sequence[str]
  use_bias: bool = True
  kernel_init: Initializer = projection_init
  adapter_rank: int = 0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def function(
    self, inputs: Sequence[int], results: Sequence[int] | None = None
  ) -> Callable[[Array], Array]:
    """Returns the layer as a pure function of x, for use inside `lax.cond` and loops.

    Args:
      inputs: shape of the kernel's input axes. The last len(inputs) axes of x have this shape, or another shape of the
        same size.
      results: shape of the result's feature axes, by default `features`; of the same size.
    """
    inputs, features = tuple(inputs), tuple(self.features)
    flat = (math.prod(inputs), math.prod(features))

    def flattened_init(key, shape, dtype):
      return self.kernel_init(key, flat, dtype).reshape(shape)

    kernel = param_with_axes(
      "kernel", flattened_init, (*inputs, *features), jnp.float32, axes=tuple(self.axes)
    )
    bias = None
    if self.use_bias:
      bias = param_with_axes(
        "bias", zeros_init, features, jnp.float32, axes=tuple(self.axes)[len(inputs) :]
      )

    adapter = adapters.parameters(self, inputs) if self.adapter_rank else None
    results = features if results is None else tuple(results)
    count = len(inputs)

    def product(x: Array, matrix: Array, results: tuple[int, ...], count: int) -> Array:
      given = x.shape[x.ndim - count :]
      return jax.lax.dot_general(
        x.astype(self.dtype),
        matrix.astype(self.dtype).reshape(*given, *results),
        ((tuple(range(x.ndim - count, x.ndim)), tuple(range(count))), ((), ())),
      )

    def apply(x: Float[Array, "..."]) -> Float[Array, "..."]:
      y = product(x, kernel, results, count)
      if adapter is not None:
        down, up = adapter
        y = y + product(product(x, down, (self.adapter_rank,), count), up, results, 1)
      return y if bias is None else y + bias.astype(self.dtype).reshape(results)

    return apply

  def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
    return self.function(x.shape[-1:])(x)


class Table(nn.Module):
  """A learned table of vectors, float32 [rows, features]; the call returns the complete table."""

  rows: int
  features: int
  init: Initializer = embedding_init

  @nn.compact
  def __call__(self) -> Float[Array, "rows features"]:
    return param_with_axes(
      "embedding", self.init, (self.rows, self.features), jnp.float32, axes=("unmodeled", "embed")
    )


class ScaleNorm(nn.Module):
  """The parameter of `scale_norm` as a query-key norm (ViT-22B, 2302.05442)."""

  @nn.compact
  def parameter(self, width: int) -> Float[Array, " width"]:
    """The scale, float32 [width]."""
    return param_with_axes(
      "scale", nn.initializers.ones_init(), (width,), jnp.float32, axes=("unmodeled",)
    )


def scale_norm(x: Float[Array, "... d"], scale: Float[Array, " d"]) -> Float[Array, "... d"]:
  """LayerNorm with a given scale and no bias, in float32; returned in the dtype of x."""
  return (layer_norm(x.astype(jnp.float32)) * scale).astype(x.dtype)


def layer_norm(x: Float[Array, "... d"]) -> Float[Array, "... d"]:
  """Affine-free LayerNorm, statistics in float32; returned in the dtype of x."""
  y = x.astype(jnp.float32)
  y = y - jnp.mean(y, axis=-1, keepdims=True)
  y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + 1e-6)
  return y.astype(x.dtype)
