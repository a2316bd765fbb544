"""Guided sampling of latents with a denoiser, for both `predict_batch` and generation."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from walt_t5x.denoiser.transformer import (
  BLOCK_CHANGE,
  Conditioning,
  WaltDenoiser,
  time_embeddings,
)
from walt_t5x.diffusion.guidance import (
  Combination,
  ConstantGuidance,
  guide,
  guide_twice,
  rescale,
)
from walt_t5x.diffusion.process import Prediction, output_for, to_x0_and_noise
from walt_t5x.diffusion.samplers.caching import Cache
from walt_t5x.diffusion.samplers.grids import Grid, Trailing
from walt_t5x.diffusion.samplers.sampler import Call, Denoised, call_points, sample
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
    combine: rule other than u + w (c - u), see `guidance.COMBINATIONS`; None without one. Not with `frame_guidance`.
    frame_guidance: separate scale for the conditioning frames, in addition to `guidance` for text and class; takes
      three network evaluations per sample instead of two. None drops frames and text together. Assumption: None.
    rescale: share of rescaled guidance in [0, 1], see `guidance.rescale`; 2305.08891 has 0.7. Assumption: 0.
    eta: share of new noise in DDIM's steps in [0, 1]. Assumption: 0, the DDIM that the paper names.
    solver: see `walt_t5x.diffusion.samplers.solvers`; None is DDIM with `eta`.
    grid: see `walt_t5x.diffusion.samplers.grids`.
    cache: calls that reuse what the blocks of the network added in an earlier one, see
      `walt_t5x.diffusion.samplers.caching`; None computes all.
  """

  num_steps: int = 50
  guidance: GuidanceFn | None = ConstantGuidance(7.5)  # noqa: RUF009 - frozen
  combine: Combination | None = None
  frame_guidance: GuidanceFn | None = None
  rescale: float = 0.0
  eta: float = 0.0
  solver: Solver | None = None
  grid: Grid = Trailing()  # noqa: RUF009 - frozen
  cache: Cache | None = None

  def __post_init__(self):
    if self.guidance is None and self.frame_guidance is not None:
      raise ValueError(
        "SamplerConfig.frame_guidance is set and guidance is not: set both, or neither"
      )
    if self.combine is not None and self.frame_guidance is not None:
      raise ValueError(
        f"SamplerConfig.combine={self.combine} combines two predictions, frame_guidance has three: set one of them"
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

  def weights(self, time: Array, *, branches: int) -> tuple[Array | float, ...]:
    """Weights of the predictions at a time: with all conditions, frames alone if there are three, and none."""
    if branches == 1 or self.guidance is None:
      return (1.0,)
    text = self.guidance(time)
    if branches == 2 or self.frame_guidance is None:
      return text, 1 - text
    frames = self.frame_guidance(time)
    return text, frames - text, 1 - frames

  def active(self, time: float, *, branches: int) -> tuple[int, ...]:
    """The branches that are computed at a time: those with a weight. All, if weights are not known when compiling."""
    everything = tuple(range(branches))
    try:
      with jax.ensure_compile_time_eval():
        weights = [float(weight) for weight in self.weights(jnp.float32(time), branches=branches)]
    except jax.errors.ConcretizationTypeError:
      return everything
    if self.combine is not None:
      return (0,) if weights[0] == 1 else everything
    # Rescaling compares with the conditional prediction.
    return tuple(n for n in everything if weights[n] or (self.rescale and n == 0))

  def call_steps(self, schedule: NoiseSchedule) -> np.ndarray:
    """The diffusion step of each call of the network, int32 [num_steps]."""
    return call_points(schedule, self.num_steps, self.chosen_solver(), self.grid)[1]

  def reused(
    self, schedule: NoiseSchedule, *, branches: int, embeddings: Array | None = None
  ) -> np.ndarray | Array | None:
    """The calls that reuse, bool [num_steps]; None if none does.

    Args:
      embeddings: of the times of the calls [num_steps, D], for a cache that reads them.
    """
    if self.cache is None:
      return None
    times, active = self._active_at(schedule, branches=branches)
    first = np.array([n == 0 or active[n] != active[n - 1] for n in range(len(active))])
    found = self.cache.reused(times, first=first, embeddings=embeddings)
    return None if isinstance(found, np.ndarray) and not found.any() else found

  def branch_counts(self, schedule: NoiseSchedule, *, branches: int) -> list[int]:
    """Branches that each call of the network computes; 0 where it reuses, unless that depends on the weights."""
    counts = np.array([len(active) for active in self._active_at(schedule, branches=branches)[1]])
    if self.cache is not None and not self.cache.reads_embeddings:
      reused = self.reused(schedule, branches=branches)
      counts = counts if reused is None else counts * ~np.asarray(reused)
    return counts.tolist()

  def _active_at(
    self, schedule: NoiseSchedule, *, branches: int
  ) -> tuple[np.ndarray, list[tuple[int, ...]]]:
    """The time of each call, float32, and the branches that are active then."""
    times = self.call_steps(schedule).astype(np.float32) / np.float32(schedule.num_steps)
    return times, [self.active(float(time), branches=branches) for time in times]


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

  All branches of guidance run as one batch of 2 B examples (3 B with two scales), so every step is one network call;
  a branch is left out where its weight is zero.

  Args:
    initial_noise: standard normal [B, t, h, w, c].
    conditioning: the condition.
    unconditional: the conditioning with the condition dropped; None if `config.guidance` is None, or if the scale is
      an input of the module, which then is called once.
  """
  branches, guidance, frame_guidance = [conditioning], config.guidance, config.frame_guidance
  distilled = module.guidance_range is not None
  if guidance is not None and not distilled:
    if unconditional is None:
      raise ValueError("SamplerConfig.guidance is set but no unconditional conditioning was given")
    if frame_guidance is not None and conditioning.frame_mask is not None:
      branches.append(dataclasses.replace(unconditional, frame_mask=conditioning.frame_mask))
    branches.append(unconditional)
  count = len(branches)

  def concatenated(chosen: Sequence[Conditioning]) -> Conditioning:
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=0), *chosen)

  everything = concatenated(branches)

  embeddings = None
  if config.cache is not None and config.cache.reads_embeddings:
    embeddings = time_embeddings(module, params, jnp.asarray(config.call_steps(schedule)))
  reused = config.reused(schedule, branches=count, embeddings=embeddings)

  def network(*inputs: Any, kept: Array | None) -> tuple[Array, Array | None]:
    """The output for x_t, steps, self-condition and conditions, and what the blocks added, if calls reuse it."""
    apply = functools.partial(module.apply, {"params": params}, *inputs)
    if reused is None:
      return cast(Array, apply()), None
    if kept is not None:
      return cast(Array, apply(block_change=kept)), kept
    output, found = cast(tuple[Array, Any], apply(mutable=["intermediates"]))
    return output, found["intermediates"][BLOCK_CHANGE][0]

  def denoise(call: Call) -> Denoised:
    shape = (len(call.active), *call.x_t.shape)
    x_t, steps = (jnp.concatenate([a] * shape[0], axis=0) for a in (call.x_t, call.steps))
    self_condition = call.self_condition.reshape(x_t.shape)
    conditions = everything
    if len(call.active) < count:
      conditions = concatenated([branches[number] for number in call.active])
    if distilled:
      scale = jnp.float32(1) if guidance is None else guidance(call.time)
      conditions = dataclasses.replace(conditions, guidance=jnp.full(shape[1], scale))
    output, kept = network(x_t, steps, self_condition, conditions, kept=call.kept)
    parts = output.reshape(shape)
    first, memory = config.weights(call.time, branches=count)[call.active[0]], call.memory
    if len(parts) == 1:
      return Denoised(parts[0], parts, memory, kept)
    if config.combine is not None:
      guided, memory = _combined(call, parts, config.combine, first, schedule, prediction)
    elif len(parts) == 2:
      guided = guide(parts[0], parts[1], first)
    else:
      assert frame_guidance is not None
      guided = guide_twice(parts[0], parts[1], parts[2], first, frame_guidance(call.time))
    guided = rescale(guided, parts[0], config.rescale) if config.rescale else guided
    return Denoised(guided, parts, memory, kept)

  remembers = count > 1 and config.combine is not None and config.combine.remembers
  return sample(
    denoise,
    initial_noise,
    schedule=schedule,
    num_steps=config.num_steps,
    prediction=prediction,
    branches=count,
    active=functools.partial(config.active, branches=count),
    memory=jnp.zeros(initial_noise.shape, jnp.float32) if remembers else None,
    reused=reused,
    solver=config.chosen_solver(),
    grid=config.grid,
  )


def _combined(
  call: Call,
  outputs: Array,
  combine: Combination,
  scale: Array | float,
  schedule: NoiseSchedule,
  prediction: Prediction,
) -> tuple[Array, Array | None]:
  """The guided output of the network for those of both branches, and the memory of the rule."""
  if not combine.of_estimates:
    return combine(outputs[0], outputs[1], scale, call.memory)
  settings: Any = {"x_t": call.x_t, "gamma": schedule.gamma(call.steps)}
  estimates = [to_x0_and_noise(prediction, output, **settings)[0] for output in outputs]
  guided, memory = combine(estimates[0], estimates[1], scale, call.memory)
  return output_for(prediction, guided, **settings), memory
