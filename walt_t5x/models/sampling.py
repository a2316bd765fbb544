"""Guided sampling of latents with a denoiser: what `predict_batch` and generation run."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from walt_t5x.denoiser.transformer import Conditioning, WaltDenoiser
from walt_t5x.diffusion.ddim import ddim_sample
from walt_t5x.diffusion.guidance import ConstantGuidance, guide
from walt_t5x.diffusion.process import Prediction
from walt_t5x.diffusion.schedules import NoiseSchedule
from walt_t5x.types import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerConfig:
  """How a stage samples.

  Attributes:
    num_steps: DDIM steps; 50 in the paper.
    guidance: scale by time, see `walt_t5x.diffusion.guidance`; None samples the conditional model alone.
  """

  num_steps: int = 50
  guidance: Callable[[Array], Array] | None = ConstantGuidance(7.5)  # noqa: RUF009 - frozen


def _concatenate(a: Conditioning, b: Conditioning) -> Conditioning:
  return jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=0), a, b)


def sample_latents(
  module: WaltDenoiser,
  params: Params,
  initial_noise: Array,
  *,
  conditioning: Conditioning,
  unconditional: Conditioning | None,
  schedule: NoiseSchedule,
  prediction: Prediction,
  config: SamplerConfig,
) -> Array:
  """Samples normalised latents [B, t, h, w, c], float32.

  Both branches of guidance run as one batch of 2 B rows, so every step is one network call.

  Args:
    initial_noise: standard normal [B, t, h, w, c].
    conditioning: the condition.
    unconditional: the same with the condition dropped; None where `config.guidance` is None.
  """
  guided = config.guidance is not None
  if guided:
    if unconditional is None:
      raise ValueError("SamplerConfig.guidance is set but no unconditional conditioning was given")
    conditioning = _concatenate(conditioning, unconditional)

  def denoise(x_t: Array, steps: Array, self_condition: Array, time: Array) -> Array:
    if guided:
      x_t, steps, self_condition = (
        jnp.concatenate([a, a], axis=0) for a in (x_t, steps, self_condition)
      )
    output = module.apply({"params": params}, x_t, steps, self_condition, conditioning)
    if not guided:
      return output
    conditional, without = jnp.split(output, 2, axis=0)
    return guide(conditional, without, config.guidance(time))

  return ddim_sample(
    denoise,
    initial_noise,
    schedule=schedule,
    num_steps=config.num_steps,
    prediction=prediction,
  )
