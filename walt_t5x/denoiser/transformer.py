"""The W.A.L.T denoiser f_theta: a transformer over latent patches with alternating windows (Sections 4.2 - 4.5).

Parameter counts agree with every published count, see tests/planning/plan_test.py.
"""

import dataclasses
from typing import cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.partitioning import remat, scan_with_axes
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num

from walt_t5x.denoiser.adaln import VECTORS, SharedAdaLN, modulate
from walt_t5x.denoiser.block import BlockPair, LayerInputs, fields_for
from walt_t5x.denoiser.embeddings import (
  ClassEmbedding,
  ConditionMlp,
  LowResolutionUpsample,
  PatchEmbedding,
  PositionEmbedding,
  pool_text,
  sinusoid,
  unpatchify,
)
from walt_t5x.denoiser.layers import Linear, layer_norm, zeros_init
from walt_t5x.denoiser.windows import Window, check_window, common_cell, from_cells, to_cells
from walt_t5x.sharding.constraints import constrain
from walt_t5x.types import Params

REMAT_POLICIES = {
  "none": None,
  "full": jax.checkpoint_policies.nothing_saveable,
  "dots": jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    jax.checkpoint_policies.save_only_these_names("window_attention"),
  ),
}

# The sinusoids of a scale of guidance are those of so many diffusion steps: scales of 1 to 10 then differ as steps do.
STEPS_PER_SCALE = 100.0
BLOCK_CHANGE = "block_change"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Conditioning:
  """Everything the denoiser is conditioned on except the diffusion time. Absent parts are None.

  Attributes:
    is_image: bool [B]; True on stacks of independent images, one per latent frame. None if all examples are of one
      kind.
    labels: int [B, 1] (videos) or [B, t] (one per image); -1 is "no class".
    text: float [B, 1, L, E] or [B, t, L, E]; the caption of a video is in slot 0.
    text_mask: bool, shape of `text` without E; True on tokens.
    frames: clean latents [B, t, h, w, c], read where `frame_mask` is set (c_fp, Section 4.4).
    frame_mask: float or bool [B, t]; 1 on the latent frames that are given.
    low_resolution: latents of the previous stage [B, t, h / s, w / s, c], with the noise of their augmentation.
    low_resolution_steps: t_sr, the level of that noise in diffusion steps [B], embedded into AdaLN.
    guidance: scale of guidance of a distilled model [B].
    all_images: if `is_image` is None, whether all examples are stacks of images rather than videos. Static: the
      compiled step then omits the attention of the spatiotemporal layers.
  """

  is_image: Array | None = None
  labels: Array | None = None
  text: Array | None = None
  text_mask: Array | None = None
  frames: Array | None = None
  frame_mask: Array | None = None
  low_resolution: Array | None = None
  low_resolution_steps: Array | None = None
  guidance: Array | None = None
  all_images: bool = dataclasses.field(default=False, metadata={"static": True})


class WaltDenoiser(nn.Module):
  """f_theta(z_t, t; self-condition, c) -> a prediction of the shape of z_t.

  Attributes:
    num_layers: number of layers, spatial plus spatiotemporal; even.
    width, num_heads: D and K, which must divide D.
    mlp_dim: hidden width of the MLP; 4 D in all models except the 3B model.
    latent_channels, patch_size: c and p.
    spatial_window: window of the odd layers (first, third, ...), in tokens.
    spatiotemporal_window: window of the even layers, in tokens.
    adaln: "lora" (shared A^1 plus a correction of rank `adaln_rank` in each layer) or "separate".
    adaln_rank: r of AdaLN-LoRA.
    adapter_rank: > 0 adds adapters of this rank to the projections of attention and MLPs, for fine-tuning (`adapters`).
    num_classes: > 0 adds a class table of num_classes + 1 rows.
    text_dim: > 0 (E) adds the text projection and the cross-attentions.
    cross_attention: "spatial" (every layer uses the spatial window; for joint training on images and videos) or
      "window" (each layer uses its own window; for videos alone, Section 4.3).
    pooled_text: adds the pooled text to the AdaLN condition.
    frame_prediction: adds the c + 1 input channels of c_fp.
    low_resolution_scale: > 0 makes this a super-resolution stage of that ratio.
    self_conditioning: adds the c input channels of the self-condition.
    guidance_range: adds the scale of guidance as an input, of a model that is distilled from a guided one
      (2210.03142); the lowest and the highest scale that it was trained with. None without it.
    qk_norm, relative_bias: switches for ablations.
    image_rows: how a mixed batch computes its images, "select" or "skip"; see `WindowAttention`.
    attention_implementation: "auto" (the fused kernel on TPU, einsum elsewhere), "einsum" or "pallas".
    scan_layers: stack the parameters of the pairs along axis 0 and scan over them (compile time independent of depth).
    remat: what the backward pass recomputes: "none", "full" (everything in a pair of layers) or "dots" (everything
      except products with weights and the fused attention).
    dtype: of the activations.
  """

  num_layers: int = 24
  width: int = 1024
  num_heads: int = 16
  mlp_dim: int = 4096
  latent_channels: int = 8
  patch_size: int = 1
  spatial_window: Window = (1, 16, 16)
  spatiotemporal_window: Window = (5, 8, 8)
  adaln: str = "lora"
  adaln_rank: int = 2
  adapter_rank: int = 0
  num_classes: int = 0
  text_dim: int = 0
  cross_attention: str = "spatial"
  pooled_text: bool = True
  frame_prediction: bool = False
  low_resolution_scale: int = 0
  self_conditioning: bool = True
  guidance_range: tuple[float, float] | None = None
  qk_norm: bool = True
  relative_bias: bool = True
  image_rows: str = "select"
  attention_implementation: str = "auto"
  scan_layers: bool = False
  remat: str = "none"
  dtype: DTypeLike = jnp.bfloat16

  def _input_channels(
    self, noisy: Array, self_condition: Array | None, conditioning: Conditioning
  ) -> Array:
    """[z_t; self-condition; m z_0; m; up(z_lr)] along the channels."""
    parts = [noisy]
    if self.self_conditioning:
      parts.append(jnp.zeros_like(noisy) if self_condition is None else self_condition)
    if self.frame_prediction:
      if conditioning.frames is None:
        parts.append(jnp.zeros((*noisy.shape[:-1], self.latent_channels + 1), noisy.dtype))
      else:
        mask = _given(self, conditioning, "frame_mask", by="frame_prediction")
        mask = mask.astype(noisy.dtype)[:, :, None, None, None]
        parts += [mask * conditioning.frames, jnp.broadcast_to(mask, (*noisy.shape[:-1], 1))]
    if self.low_resolution_scale:
      low = _given(self, conditioning, "low_resolution", by="low_resolution_scale")
      upsample = LowResolutionUpsample(
        self.low_resolution_scale, dtype=self.dtype, name="low_resolution_upsample"
      )
      parts.append(upsample(low))
    return jnp.concatenate([p.astype(self.dtype) for p in parts], axis=-1)

  def _condition(self, steps: Array, conditioning: Conditioning) -> Array:
    """c + t: [B, 1, D], or [B, t, D] if a part differs between the images of a stack."""

    def mlp(name: str) -> ConditionMlp:
      return ConditionMlp(self.width, dtype=self.dtype, name=name)

    condition = mlp("time_mlp")(sinusoid(steps))[:, None]
    if self.num_classes:
      labels = _given(self, conditioning, "labels", by="num_classes")
      embedding = ClassEmbedding(self.num_classes, self.width, name="class_embedding")
      condition = condition + embedding(labels).astype(self.dtype)
    if self.text_dim and self.pooled_text:
      text, mask = (_given(self, conditioning, n, by="text_dim") for n in ("text", "text_mask"))
      condition = condition + mlp("pooled_text_mlp")(pool_text(text, mask))
    if self.low_resolution_scale:
      low_steps = _given(self, conditioning, "low_resolution_steps", by="low_resolution_scale")
      condition = condition + mlp("low_resolution_mlp")(sinusoid(low_steps))[:, None]
    if self.guidance_range is not None:
      scale = _given(self, conditioning, "guidance", by="guidance_range")
      # Starts at zero: a student starts as its teacher.
      embedded = ConditionMlp(
        self.width, dtype=self.dtype, out_init=zeros_init, name="guidance_mlp"
      )(sinusoid(STEPS_PER_SCALE * scale))
      condition = condition + embedded[:, None]
    return condition

  def _blocks(self, x: Array, inputs: LayerInputs) -> Array:
    cell = common_cell(self.spatial_window, self.spatiotemporal_window)
    x = to_cells(x, cell)
    fields = fields_for(BlockPair, self)
    if self.remat not in REMAT_POLICIES:
      raise ValueError(f"WaltDenoiser.remat={self.remat!r}: expected one of {list(REMAT_POLICIES)}")
    block = BlockPair
    if self.remat != "none":
      block = remat(block, policy=REMAT_POLICIES[self.remat], prevent_cse=not self.scan_layers)
    if self.scan_layers:
      stack = scan_with_axes(
        block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        # flax has no annotation here, and the default is an int.
        in_axes=(nn.broadcast,),  # pyright: ignore[reportArgumentType]
        axis_name="layers",
        axes_collections=("params",),
        length=self.num_layers // 2,
      )
      x, _ = stack(**fields, name="pairs")(x, inputs)
    else:
      for i in range(self.num_layers // 2):
        x, _ = block(**fields, name=f"pairs_{i}")(x, inputs)
    return from_cells(x, cell)

  @nn.compact
  def __call__(
    self,
    noisy_latents: Float[Array, "B t h w c"],
    steps: Num[Array, " B"],
    self_condition: Float[Array, "B t h w c"] | None = None,
    conditioning: Conditioning = Conditioning(),
    block_change: Float[Array, "B t y x D"] | None = None,
  ) -> Float[Array, "B t h w c"]:
    """Predicts from noisy latents.

    Args:
      noisy_latents: z_t, normalized latents plus noise, [B, t, h, w, c].
      steps: diffusion time in steps, 0 .. num_steps, [B].
      self_condition: the previous estimate of z_0, shape of z_t; None is equivalent to zeros.
      block_change: what the blocks are taken to add to the tokens, instead of computing them. They store it as
        `BLOCK_CHANGE` of the collection "intermediates", if that is mutable.

    Returns:
      The network output, float32, shape of `noisy_latents`.

    Raises:
      ValueError: if sizes do not fit, with the sizes that would.
    """
    if self.num_layers % 2 or self.width % self.num_heads:
      raise ValueError(
        f"WaltDenoiser got num_layers={self.num_layers}, width={self.width}, num_heads={self.num_heads}: "
        "expected an even num_layers and a width divisible by num_heads"
      )
    conditioning = repeat_over_frames(conditioning, noisy_latents.shape[1])
    x = self._input_channels(noisy_latents, self_condition, conditioning)
    x = PatchEmbedding(self.patch_size, self.width, dtype=self.dtype, name="patch_embedding")(x)
    x = constrain(x)
    for window in (self.spatial_window, self.spatiotemporal_window):
      check_window(x.shape[1:4], window)
    x = PositionEmbedding(name="position_embedding")(
      x, conditioning.is_image, all_images=conditioning.all_images
    )

    condition = self._condition(steps, conditioning)
    shared = text = text_mask = None
    if self.adaln == "lora":
      shared = SharedAdaLN(dtype=self.dtype, name="adaln")(condition)
    if self.text_dim:
      projection = Linear(
        (self.width,), axes=("unmodeled", "embed"), dtype=self.dtype, name="text_projection"
      )
      text = projection(_given(self, conditioning, "text", by="text_dim"))
      text_mask = conditioning.text_mask
    inputs = LayerInputs(
      condition=condition,
      shared_modulation=shared,
      is_image=conditioning.is_image,
      text=text,
      text_mask=text_mask,
      all_images=conditioning.all_images,
    )
    if block_change is not None:
      x = x + block_change
    else:
      tokens, x = x, self._blocks(x, inputs)
      # Training does not even trace it.
      if self.is_mutable_collection("intermediates"):
        self.sow("intermediates", BLOCK_CHANGE, x - tokens)

    shift_scale = Linear(
      (2 * self.width,),
      axes=("embed", "mlp"),
      kernel_init=zeros_init,
      dtype=self.dtype,
      name="final_adaln",
    )(jax.nn.silu(condition))
    shift_scale = constrain(shift_scale, VECTORS)
    shift, scale = jnp.split(shift_scale[:, :, None, None, :], 2, axis=-1)
    x = modulate(layer_norm(x), shift, scale)
    x = Linear(
      (self.patch_size**2 * self.latent_channels,),
      axes=("embed", "unmodeled"),
      kernel_init=zeros_init,
      dtype=self.dtype,
      name="output",
    )(x)
    return unpatchify(x.astype(jnp.float32), self.patch_size)


def _given(model: WaltDenoiser, conditioning: Conditioning, name: str, *, by: str) -> Array:
  """The condition that an attribute of the model requires."""
  value = getattr(conditioning, name)
  if value is None:
    raise ValueError(f"WaltDenoiser.{by}={getattr(model, by)} needs Conditioning.{name}; got None")
  return value


def time_embeddings(
  model: WaltDenoiser, params: Params, steps: Num[Array, " n"]
) -> Float[Array, "n D"]:
  """The part of the AdaLN condition that depends on the time alone, float32, at each of n diffusion steps."""
  embedded = ConditionMlp(model.width).apply({"params": params["time_mlp"]}, sinusoid(steps))
  return cast(Array, embedded)


def repeat_over_frames(conditioning: Conditioning, frames: int) -> Conditioning:
  """Uses slot 0 of text and labels for all latent frames of each video.

  In a mixed batch, slot 0 of a video is repeated over its frames. A batch without images keeps one slot, so that the
  text is projected once per example. Raises ValueError if an array has neither 1 nor `frames` slots.
  """

  def fill(x: Array | None) -> Array | None:
    if x is None or x.shape[1] == 1:
      return x
    if conditioning.is_image is None and not conditioning.all_images:
      return x[:, :1]
    if x.shape[1] != frames:
      raise ValueError(
        f"text or labels have {x.shape[1]} slots per example: expected 1 or {frames} (latent frames)"
      )
    if conditioning.is_image is None:
      return x
    is_image = conditioning.is_image.reshape((-1,) + (1,) * (x.ndim - 1))
    return jnp.where(is_image, x, x[:, :1])

  return dataclasses.replace(
    conditioning,
    text=fill(conditioning.text),
    text_mask=fill(conditioning.text_mask),
    labels=fill(conditioning.labels),
  )
