"""One transformer layer, and the pair of layers that the stack repeats."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from walt_t5x.denoiser.adaln import LoRAAdaLN, Modulation, SharedAdaLN, modulate
from walt_t5x.denoiser.attention import CrossAttention, WindowAttention
from walt_t5x.denoiser.layers import Linear, layer_norm
from walt_t5x.denoiser.windows import Cell, Window, common_cell
from walt_t5x.sharding.constraints import constrain


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerInputs:
  """Inputs of every layer in addition to the tokens.

  Attributes:
    condition: c + t, [B, t or 1, D].
    shared_modulation: A^1, [B, t or 1, 6 D]; None when each layer has its own AdaLN.
    is_image: [B] bool; None when all examples are of one kind.
    text: projected text, [B, t or 1, L, D]; None without text.
    text_mask: [B, t or 1, L] bool; True on tokens.
    all_images: whether every example is a stack of images; static.
  """

  condition: Array
  shared_modulation: Array | None = None
  is_image: Array | None = None
  text: Array | None = None
  text_mask: Array | None = None
  all_images: bool = dataclasses.field(default=False, metadata={"static": True})


class Mlp(nn.Module):
  """D -> mlp_dim -> D with a tanh GELU."""

  mlp_dim: int
  adapter_rank: int = 0
  dtype: DTypeLike = jnp.float32

  @nn.compact
  def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    linear = functools.partial(Linear, adapter_rank=self.adapter_rank, dtype=self.dtype)
    hidden = linear((self.mlp_dim,), axes=("embed", "mlp"), name="wi")(x)
    hidden = nn.gelu(hidden, approximate=True)
    return linear((x.shape[-1],), axes=("mlp", "embed"), name="wo")(hidden)


class BlockFields(nn.Module):
  """Fields that a pair of layers passes on to its layers; see `WaltDenoiser`."""

  num_heads: int
  mlp_dim: int
  adaln: str
  adaln_rank: int
  adapter_rank: int
  qk_norm: bool
  relative_bias: bool
  image_rows: str
  attention_implementation: str
  dtype: DTypeLike


def fields_for(kind: type[nn.Module], module: nn.Module) -> dict[str, Any]:
  """The fields of a module of class `kind`, with the values that `module` has under the same names."""
  names = {field.name for field in dataclasses.fields(kind)} - {"parent", "name"}
  return {name: getattr(module, name) for name in sorted(names)}


class WindowBlock(BlockFields):
  """x + a1 * SelfAttention(mod1(LN x)); + CrossAttention(LN x); + a2 * MLP(mod2(LN x)).

  Cross-attention is not modulated: AdaLN regresses six vectors, which self-attention and MLP use.
  """

  window: Window
  cross_attention_window: Window
  cell: Cell

  @nn.compact
  def __call__(
    self, x: Float[Array, "B H W t m D"], inputs: LayerInputs
  ) -> Float[Array, "B H W t m D"]:
    if self.adaln == "lora":
      correction = LoRAAdaLN(self.adaln_rank, dtype=self.dtype, name="adaln_lora")(inputs.condition)
      assert inputs.shared_modulation is not None, "required by adaln='lora'"
      flat = inputs.shared_modulation + correction
    elif self.adaln == "separate":
      flat = SharedAdaLN(dtype=self.dtype, name="adaln")(inputs.condition)
    else:
      raise ValueError(f"WaltDenoiser.adaln={self.adaln!r}: expected 'lora' or 'separate'")
    m = Modulation.split(flat)

    shared = {
      "num_heads": self.num_heads,
      "qk_norm": self.qk_norm,
      "implementation": self.attention_implementation,
      "cell": self.cell,
      "adapter_rank": self.adapter_rank,
      "dtype": self.dtype,
    }
    attention = WindowAttention(
      window=self.window,
      relative_bias=self.relative_bias,
      image_rows=self.image_rows,
      name="attention",
      **shared,
    )
    modulated = modulate(layer_norm(x), m.shift_1, m.scale_1)
    x = x + m.gate_1 * attention(modulated, inputs.is_image, all_images=inputs.all_images)
    if inputs.text is not None:
      assert inputs.text_mask is not None, "text requires text_mask"
      cross = CrossAttention(window=self.cross_attention_window, name="cross_attention", **shared)
      x = x + cross(layer_norm(x), inputs.text, inputs.text_mask)
    mlp = Mlp(self.mlp_dim, adapter_rank=self.adapter_rank, dtype=self.dtype, name="mlp")
    return x + m.gate_2 * mlp(modulate(layer_norm(x), m.shift_2, m.scale_2))


class BlockPair(BlockFields):
  """A spatial layer, then a spatiotemporal layer: the unit that the stack repeats (Fig. 2).

  Tokens are ordered by cells that neither window splits, see windows.py.
  """

  spatial_window: Window
  spatiotemporal_window: Window
  cross_attention: str

  @nn.compact
  def __call__(
    self, x: Float[Array, "B H W t m D"], inputs: LayerInputs
  ) -> tuple[Float[Array, "B H W t m D"], None]:
    windows = {"spatial": self.spatial_window, "spatiotemporal": self.spatiotemporal_window}
    for name, window in windows.items():
      if self.cross_attention == "spatial":
        cross_attention_window = self.spatial_window
      elif self.cross_attention == "window":
        cross_attention_window = window
      else:
        raise ValueError(
          f"WaltDenoiser.cross_attention={self.cross_attention!r}: expected 'spatial' or 'window'"
        )
      x = WindowBlock(
        window=window,
        cross_attention_window=cross_attention_window,
        cell=common_cell(self.spatial_window, self.spatiotemporal_window),
        name=name,
        **fields_for(BlockFields, self),
      )(constrain(x), inputs)
    return constrain(x), None
