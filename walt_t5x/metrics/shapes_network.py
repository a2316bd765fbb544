"""A small 3D classifier of moving shapes: a surrogate for I3D if its weights are not available.

Four 3 x 3 x 3 convolutions over [T, 64, 64]; the features are mean and maximum of the last map over
time and space. It is trained on rendered shapes (`train_surrogate`), so its distances rank clips of
that corpus but are not comparable with published numbers: tables say "surrogate network".
"""

import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from walt_t5x.metrics import i3d

SIZE = 64
WIDTHS = (16, 32, 48, 48)
STRIDES = (2, 2, 2, 1)
# Colors, shapes, directions with "still" as the fifth.
# "colour" is the name in weight files.
HEADS = {"colour": 6, "shape": 3, "direction": 5}
# After three halvings 5 to 8 frames are one time step, nine frames two.
MIN_FRAMES = 5


class ShapesNetwork(nn.Module):
  """Features and logits of each head for clips in [-1, 1]: [B, T, H, W, 3] -> {"features": [B, 96], head: [B, K]}."""

  @nn.compact
  def __call__(self, x: Float[Array, "B T H W 3"]) -> dict[str, Array]:
    """Raises ValueError for fewer than 5 frames."""
    if x.shape[1] < MIN_FRAMES:
      raise ValueError(
        f"The surrogate network takes clips of at least {MIN_FRAMES} frames, got {x.shape[1]}. "
        "Score longer clips."
      )
    for number, (width, stride) in enumerate(zip(WIDTHS, STRIDES)):
      x = i3d.Conv3D(width, 3, stride, name=f"conv{number}")(x)
      bias = self.param(f"bias{number}", nn.initializers.zeros, (width,))
      x = nn.relu(x + bias)
    features = jnp.concatenate([x.mean((1, 2, 3)), x.max((1, 2, 3))], -1)
    heads = {name: nn.Dense(count, name=name)(features) for name, count in HEADS.items()}
    return {"features": features, **heads}


# The input pipeline of I3D, at 64 x 64.
preprocess = functools.partial(i3d.preprocess, size=SIZE, network="The surrogate network")


def features(variables: Any, videos: Array) -> dict[str, Any]:
  """{"features": [B, 96]} of clips [B, T, H, W, 3], uint8, of any size and at least 5 frames."""
  outputs: Any = ShapesNetwork().apply(variables, preprocess(videos))
  return {"features": outputs["features"]}
