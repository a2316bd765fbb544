"""Latents to video: the causal 3D CNN decoder of MAGVIT-v2."""

import flax.linen as nn
from jaxtyping import Array, Float

from walt_t5x.types import Latents, Video
from walt_t5x.vae import initializers
from walt_t5x.vae.norm import AdaptiveGroupNorm, GroupNorm
from walt_t5x.vae.resnet import CausalResNet


def depth_to_space(
  x: Float[Array, "B T H W C"], strides: tuple[int, int, int], *, continues: bool = False
) -> Float[Array, "B T2 H2 W2 C2"]:
  """Unfolds channels (s_t, s_h, s_w, C2) into s_t T - (s_t - 1) frames of s_h H x s_w W.

  The first s_t - 1 frames are dropped, so that latent frame 0 gives one frame: 5 -> 9 -> 17 frames. A group that
  continues a stream keeps all s_t T frames.

  Raises:
    ValueError: if the strides do not divide the channels.
  """
  s_t, s_h, s_w = strides
  b, t, h, w, c = x.shape
  if c % (s_t * s_h * s_w):
    raise ValueError(
      f"depth_to_space: got {c} channels, expected a multiple of {s_t * s_h * s_w} for {strides=}."
    )
  x = x.reshape(b, t, h, w, s_t, s_h, s_w, c // (s_t * s_h * s_w))
  x = x.transpose(0, 1, 4, 2, 5, 3, 6, 7)
  return x.reshape(b, t * s_t, h * s_h, w * s_w, -1)[:, 0 if continues else s_t - 1 :]


class Decoder(CausalResNet):
  """3^3 conv; ResBlocks; per level, deepest first, adaptive GN, ResBlocks, upsampling; head.

  Upsampling is a 3^3 convolution to 4C or 8C channels, then depth-to-space. The head is GN, swish,
  3^3 conv to RGB.
  Assumption: the output is linear, without a final nonlinearity. Values are near [0, 1]; callers
  clip them. Size at base 128, multipliers (1, 2, 2, 4), 4 ResBlocks, 8 channels: 225,513,091
  parameters (225.5M published).
  Source: MAGVIT-v2 (2310.05737), figure 2 and appendix.
  """

  @nn.compact
  def __call__(self, latents: Latents, *, continues: bool = False) -> Video:
    """Decodes to 1 + (t - 1) s frames of a clip, or to t s frames of a group that continues a stream."""
    x = self.conv(self.widths[-1], name="stem")(latents)
    x = self.blocks(x, self.widths[-1], name="bottom")
    for level, width in reversed(list(enumerate(self.widths))):
      x = AdaptiveGroupNorm(dtype=self.dtype, name=f"level_{level}_adaptive_norm")(
        x, latents, continues=continues
      )
      x = self.blocks(x, width, name=f"level_{level}")
      if level > 0:
        s_t, s_h, s_w = self.strides[level - 1]
        x = self.conv(
          width * s_t * s_h * s_w,
          kernel_init=initializers.nearest_upsampling,
          name=f"level_{level}_up",
        )(x)
        x = depth_to_space(x, (s_t, s_h, s_w), continues=continues)
    x = nn.swish(GroupNorm(dtype=self.dtype, name="head_norm")(x))
    x = self.conv(3, name="head")(x)
    return 0.5 * (x + 1.0)
