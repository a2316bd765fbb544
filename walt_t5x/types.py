"""Axis letters and array aliases, defined once for the package.

Axis legend, as used in shape annotations and comments:

  B  batch
  T  pixel frames of a clip, 1 + T in the paper (17 at the published size)
  H W  pixel height and width
  t  latent frames, 1 + t in the paper (5 at the published size)
  h w  latent height and width
  c  latent channels
  N  tokens of a latent frame after patching, (h / p) * (w / p)
  D  width of the denoiser
  K  attention heads
  L  text tokens
  E  width of the text embedding
"""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, Bool, Float, Int

# A video is float in [0, 1], RGB, channels last. An image is a video of one frame.
Video = Float[Array, "B T H W 3"]
Latents = Float[Array, "B t h w c"]
TextEmbedding = Float[Array, "B L E"]
TextMask = Bool[Array, "B L"]
TextIds = Int[Array, "B L"]

# A tree of parameters, nested by module name.
Params = Mapping[str, Any]
Batch = Mapping[str, Any]
