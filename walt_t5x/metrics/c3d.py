"""C3D fine-tuned on UCF-101: the classifier for the inception score of videos.

Eight 3 x 3 x 3 convolutions, five max poolings, three dense layers (arXiv:1412.0767). The input is
that of TGAN (arXiv:1611.06624, arXiv:1811.09245), with which later papers compare: RGB is converted
to BGR, frames are resized to 112 x 112 with aligned corners, and a stored mean [16, 112, 112, 3] is
subtracted from the bytes.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from walt_t5x.metrics.network_input import ResizeRule, require_bytes, resize_bilinear

SIZE = 112
NUM_FRAMES = 16
NUM_CLASSES = 101

# Convolutions before each pooling.
_LEVELS = (
  (("conv1a", 64),),
  (("conv2a", 128),),
  (("conv3a", 256), ("conv3b", 256)),
  (("conv4a", 512), ("conv4b", 512)),
  (("conv5a", 512), ("conv5b", 512)),
)


class C3D(nn.Module):
  """Logits of clips of BGR bytes minus their mean, [B, 16, 112, 112, 3] -> [B, K].

  The last pooling has a 7 x 7 input and pads it to a multiple of its window (Caffe's ceil rule).
  """

  num_classes: int = NUM_CLASSES
  dense_width: int = 4096

  @nn.compact
  def __call__(self, x: Float[Array, "B T H W 3"]) -> Float[Array, "B K"]:
    for number, level in enumerate(_LEVELS):
      for name, width in level:
        x = nn.relu(nn.Conv(width, (3, 3, 3), name=name)(x))
      window = (1, 2, 2) if number == 0 else (2, 2, 2)
      padding = ((0, 0), (0, x.shape[2] % 2), (0, x.shape[3] % 2))
      # The same as `nn.max_pool`, whose type annotations reject this padding.
      x = nn.pool(x, -jnp.inf, jax.lax.max, window, window, padding)
    # The dense layer was trained with channels before time and space.
    x = jnp.moveaxis(x, -1, 1).reshape(len(x), -1)
    for name in ("fc6", "fc7"):
      x = nn.relu(nn.Dense(self.dense_width, name=name)(x))
    return nn.Dense(self.num_classes, name="fc8")(x)


def preprocess(
  videos: UInt8[Array, "B T H W 3"], mean: Float[Array, "16 112 112 3"]
) -> Float[Array, "B 16 112 112 3"]:
  """Converts RGB bytes to BGR, resizes to 112 x 112 with aligned corners, and subtracts the mean.

  Raises ValueError for another dtype, rank or number of channels, or clips not 16 frames long.
  """
  require_bytes(videos, network="C3D", axes="BTHW")
  if videos.shape[1] != NUM_FRAMES:
    raise ValueError(
      f"C3D takes clips of {NUM_FRAMES} frames, got {videos.shape[1]}. Drop the last frame of a "
      "17-frame sample."
    )
  x = videos[..., ::-1].astype(jnp.float32)
  return resize_bilinear(x, (SIZE, SIZE), rule=ResizeRule.ALIGN_CORNERS) - mean


def features(variables: Any, videos: Array) -> dict[str, Any]:
  """{"logits": [B, 101]} of clips [B, 16, H, W, 3], uint8, of any size; raises ValueError as `preprocess`.

  `variables` has the "params" of `C3D` and {"input": {"mean"}}, the stored mean in BGR.
  """
  x = preprocess(videos, variables["input"]["mean"])
  return {"logits": C3D().apply({"params": variables["params"]}, x)}
