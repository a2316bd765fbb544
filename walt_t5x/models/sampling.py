"""Guided sampling of latents with a denoiser, for both `predict_batch` and generation."""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array

from walt_t5x.denoiser.transformer import Conditioning, WaltDenoiser
from walt_t5x.diffusion.guidance import ConstantGuidance, guide, guide_twice, rescale
from walt_t5x.diffusion.process import Prediction
from walt_t5x.diffusion.samplers.grids import Grid, Trailing
from walt_t5x.diffusion.samplers.sampler import sample
from walt_t5x.diffusion.samplers.solvers import (
  Ddim,
  DpmSolverMultistep,
  DpmSolverSinglestep,
  Heun,
  Solver,
  UniPC,
)
from walt_t5x.diffusion.schedules import NoiseSchedule
from walt_t5x.types import Params

GuidanceFn = Callable[[Array], Array]
# Names in flags.
SOLVERS: dict[str, Solver] = {
  "ddim": Ddim(),
  "dpmpp_2m": DpmSolverMultistep(),
  "dpmpp_2s": DpmSolverSinglestep(),
  "heun": Heun(),
  "unipc": UniPC(),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerConfig:
  """Settings of a stage's sampler.

  Attributes:
    num_steps: network calls; 50 in the paper.
    guidance: scale as a function of time, see `walt_t5x.diffusion.guidance`; None samples the conditional model only.
    frame_guidance: separate scale for the conditioning frames, in addition to `guidance` for text and class; takes
      three network evaluations per sample instead of two. None drops frames and text together. Assumption: None.
    rescale: share of rescaled guidance in [0, 1], see `guidance.rescale`; 2305.08891 has 0.7. Assumption: 0.
    eta: share of new noise in DDIM's steps in [0, 1]. Assumption: 0, the DDIM that the paper names.
    solver: see `walt_t5x.diffusion.samplers.solvers`; None is DDIM with `eta`.
    grid: see `walt_t5x.diffusion.samplers.grids`.
  """

  num_steps: int = 50
  guidance: GuidanceFn | None = ConstantGuidance(7.5)  # noqa: RUF009 - frozen
  frame_guidance: GuidanceFn | None = None
  rescale: float = 0.0
  eta: float = 0.0
  solver: Solver | None = None
  grid: Grid = Trailing()  # noqa: RUF009 - frozen

  def __post_init__(self):
    if self.guidance is None and self.frame_guidance is not None:
      raise ValueError(
        "SamplerConfig.frame_guidance is set and guidance is not: set both, or neither"
      )
    if not 0 <= self.rescale <= 1:
      raise ValueError(f"SamplerConfig.rescale={self.rescale}: expected a share in [0, 1]")
    if not 0 <= self.eta <= 1:
      raise ValueError(f"SamplerConfig.eta={self.eta}: expected a share in [0, 1]")
    if self.eta and self.solver is not None:
      raise ValueError(
        f"SamplerConfig.eta={self.eta} is for DDIM, and solver is {self.solver}: set one of them"
      )

  def chosen_solver(self) -> Solver:
    """`solver`, or DDIM."""
    return self.solver if self.solver is not None else Ddim(self.eta)

  def changed(
    self, *, num_steps: int | None, guidance: float | None, solver: Solver | None = None
  ) -> "SamplerConfig":
    """With other steps, another constant scale and another solver; None keeps each. Scale 1 is without guidance."""
    changes: dict[str, Any] = {} if num_steps is None else {"num_steps": num_steps}
    if solver is not None:
      changes |= {"solver": solver, "eta": 0.0}
    if guidance is not None:
      changes["guidance"] = None if guidance == 1 else ConstantGuidance(guidance)
    return dataclasses.replace(self, **changes)


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
  """Samples normalized latents [B, t, h, w, c], float32.

  All branches of guidance run as one batch of 2 B examples (3 B with two scales), so every step is one network call.

  Args:
    initial_noise: standard normal [B, t, h, w, c].
    conditioning: the condition.
    unconditional: the conditioning with the condition dropped; None if `config.guidance` is None.
  """
  branches, guidance, frame_guidance = [conditioning], config.guidance, config.frame_guidance
  if guidance is not None:
    if unconditional is None:
      raise ValueError("SamplerConfig.guidance is set but no unconditional conditioning was given")
    if frame_guidance is not None and conditioning.frame_mask is not None:
      branches.append(dataclasses.replace(unconditional, frame_mask=conditioning.frame_mask))
    branches.append(unconditional)
  count = len(branches)
  stacked = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=0), *branches)

  def denoise(x_t: Array, steps: Array, self_condition: Array, time: Array):
    shape = x_t.shape
    x_t, steps = (jnp.concatenate([a] * count, axis=0) for a in (x_t, steps))
    output = module.apply(
      {"params": params}, x_t, steps, self_condition.reshape(x_t.shape), stacked
    )
    parts = cast(Array, output).reshape(count, *shape)
    if guidance is None:
      return parts[0], parts
    if frame_guidance is None or count == 2:
      guided = guide(parts[0], parts[1], guidance(time))
    else:
      scales = guidance(time), frame_guidance(time)
      guided = guide_twice(parts[0], parts[1], parts[2], *scales)
    return rescale(guided, parts[0], config.rescale) if config.rescale else guided, parts

  return sample(
    denoise,
    initial_noise,
    schedule=schedule,
    num_steps=config.num_steps,
    prediction=prediction,
    branches=count,
    solver=config.chosen_solver(),
    grid=config.grid,
  )
