"""A denoiser with known outputs, to test everything but the network: extensions, joins, conditioning, decoding."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from walt_t5x.generation.stage import StageConfig
from walt_t5x.models.denoiser_model import DenoiserModel
from walt_t5x.models.sampling import SamplerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerfectDenoiser:
  """Replaces a `WaltDenoiser` that predicts x_0: returns the true latents of one of several windows of a clip.

  Its parameters are {"windows": [R, t, h, w, c]}, normalized. Given no frames it returns the first window; given
  frames, the window that starts with them. If no window does, it returns noise, so that frames of another position
  do not go unnoticed.

  Attributes:
    latent_channels: c.
    low_resolution_scale: > 0 for a super-resolution stage.
    tolerance: largest mean squared difference of matching frames, for values of variance 1.
  """

  latent_channels: int
  low_resolution_scale: int = 0
  tolerance: float = 1e-6
  text_dim: int = 0
  num_classes: int = 0
  frame_prediction: bool = True
  guidance_range: tuple[float, float] | None = None

  def apply(
    self,
    variables: Any,
    x_t: Array,
    steps: Array,
    self_condition: Array | None,
    conditioning: Any,
  ) -> Array:
    """The interface of a Flax module; returns x_0 with the shape of `x_t`."""
    del steps, self_condition
    windows = variables["params"]["windows"]
    # [B, 1, t, 1, 1, 1] and [R, t, h, w, c].
    mask = conditioning.frame_mask[:, None, :, None, None, None]
    squared = jnp.square(mask * (windows[None] - conditioning.frames[:, None]))
    distance = squared.sum((2, 3, 4, 5)) / jnp.maximum(
      mask.sum((2, 3, 4, 5)) * windows[0, 0].size, 1
    )
    known = jnp.min(distance, axis=1) <= self.tolerance
    chosen = windows[jnp.argmin(distance, axis=1)]
    return jnp.where(known[:, None, None, None, None], chosen, x_t)


def perfect_config(config: StageConfig, *, tolerance: float = 1e-6) -> StageConfig:
  """A stage whose network is replaced by a `PerfectDenoiser`."""
  perfect = PerfectDenoiser(
    latent_channels=config.module.latent_channels,
    low_resolution_scale=config.module.low_resolution_scale,
    tolerance=tolerance,
  )
  sampler = SamplerConfig(num_steps=2, guidance=None)
  model = DenoiserModel(
    # Not a WaltDenoiser; has the attributes that sampling reads.
    module=perfect,  # pyright: ignore[reportArgumentType]
    optimizer_def=None,
    prediction="x0",
    sampler=sampler,
  )
  return dataclasses.replace(config, model=model)
