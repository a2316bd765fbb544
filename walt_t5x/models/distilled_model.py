"""Progressive distillation: a student makes in one call what its teacher makes in several (2202.00512, 2210.03142).

From x_t the guided teacher makes `substeps` steps of DDIM to x_u. The estimate with which a single step of DDIM leads
from x_t to the same x_u,

  x_0 = (x_u - (s_u / s_t) x_t) / (a_u - a_t s_u / s_t),

is the student's target; a and s are the weights of signal and noise (Eq. 1). The teacher's weights are a collection of
the state next to the parameters: sharded and saved as these are, and not trained.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, cast

import clu.metrics
import jax
import jax.numpy as jnp
from jaxtyping import Array

from walt_t5x.denoiser.transformer import Conditioning
from walt_t5x.diffusion.guidance import guide, rescale
from walt_t5x.diffusion.process import add_noise, output_for, to_x0_and_noise
from walt_t5x.diffusion.samplers.grids import Path
from walt_t5x.models.denoiser_inputs import drop, unpack_and_normalize
from walt_t5x.models.denoiser_model import DenoiserModel, key_of
from walt_t5x.types import Batch, Params

# The name of the collection, and so of the teacher's arrays in a checkpoint.
TEACHER = "teacher"


class DistilledModel(DenoiserModel):
  """A denoiser that is trained by another one, its teacher, rather than by data alone."""

  def __init__(
    self,
    *,
    teacher: DenoiserModel,
    substeps: int,
    grid_share: float = 0.5,
    teacher_identity: Callable[[], Mapping[str, str]] | None = None,
    **settings: Any,
  ):
    """Keeps the teacher and the settings.

    Args:
      teacher: the trained model, whose weights are those of the collection `teacher`.
      substeps: its steps in one of the student's.
      grid_share: fraction of the examples that start at a point of the student's own grid; the others start anywhere.
        The next student needs steps that begin between these points, and the last one none.
      teacher_identity: returns what names the teacher's weights in the record of the run.
      **settings: of `DenoiserModel`, for the student. `sampler.num_steps` are its calls, and the teacher's steps
        divide the intervals of `sampler.grid` evenly.

    Raises:
      ValueError: the teacher's guidance cannot be distilled.
    """
    super().__init__(**settings)
    path = self.sampler.grid
    if not isinstance(path, Path):
      raise ValueError(
        f"the student's grid is {path}: expected one that can be divided, grids.EvenAngle() or grids.Trailing()"
      )
    self.path = path
    self.teacher, self.substeps, self.grid_share = teacher, substeps, grid_share
    self.teacher_identity, self._settings = teacher_identity, settings
    if teacher.sampler.combine is not None or teacher.sampler.frame_guidance is not None:
      raise ValueError(
        f"the teacher is sampled with combine={teacher.sampler.combine}, frame_guidance="
        f"{teacher.sampler.frame_guidance}: expected one scale; set them to None in the teacher's run"
      )
    if self.module.guidance_range is not None and teacher.sampler.guidance is None:
      raise ValueError(
        f"guidance_range={self.module.guidance_range} and the teacher is sampled without guidance: set it to None"
      )

  def get_initial_variables(
    self,
    rng: Array,
    input_shapes: Mapping[str, tuple[int, ...]],
    input_types: Mapping[str, Any] | None = None,
  ):
    """The student's parameters, and the collection `teacher`, with their logical axes."""
    student = super().get_initial_variables(rng, input_shapes, input_types)
    teacher = self.teacher.get_initial_variables(rng, input_shapes, input_types)
    return {
      **student,
      TEACHER: teacher["params"],
      f"{TEACHER}_axes": teacher["params_axes"],
    }

  def loss_fn(
    self,
    params: Params,
    batch: Batch,
    dropout_rng: Array | None,
    flax_mutables: Mapping[str, Any] | None = None,
  ) -> tuple[Array, Any]:
    """Mean squared error between the student's output and the one that makes the teacher's steps at once.

    Args:
      params, batch, dropout_rng: as in `DenoiserModel.loss_fn`.
      flax_mutables: {"teacher": its parameters}, returned as they are.

    Returns:
      The loss, and (metrics, flax_mutables).
    """
    if flax_mutables is None:
      raise ValueError(
        "DistilledModel.loss_fn: expected the collection 'teacher', got no flax_mutables"
      )
    loss, metrics = self._distillation_loss(params, flax_mutables[TEACHER], batch, dropout_rng)
    return loss, (metrics, flax_mutables)

  def eval_fn(
    self, params: Params, batch: Batch, flax_mutables: Mapping[str, Any] | None = None
  ) -> tuple[Array, dict[str, clu.metrics.Metric]]:
    """The loss with draws that depend on the batch alone, and metrics."""
    loss, (metrics, _) = self.loss_fn(params, batch, None, flax_mutables)
    return loss, metrics

  def _distillation_loss(
    self, params: Params, teacher: Params, batch: Batch, key: Array | None
  ) -> tuple[Array, dict[str, clu.metrics.Metric]]:
    constants = self._constants()
    rng = key_of(batch["latents"]) if key is None else key
    batch = unpack_and_normalize(batch, constants.moments)
    rng_steps, rng_noise, rng_condition, rng_self, rng_scale = jax.random.split(rng, 5)
    latents = batch["latents"].astype(jnp.float32)
    rows = latents.shape[0]
    start, stop = self._draw_interval(rng_steps, rows)
    gamma = self.schedule.gamma(start)
    x_t = add_noise(latents, jax.random.normal(rng_noise, latents.shape), gamma)
    conditioning = self._training_conditioning(
      batch, latents, rng_condition, null_text=constants.null_text
    )
    slots = next((batch[k].shape[1] for k in ("text", "label") if k in batch), 1)
    unconditional = None
    if self.teacher.branches > 1:
      unconditional = drop(
        conditioning,
        jnp.ones((rows, slots), bool),
        frames=jnp.ones((rows,), bool),
        null_text=constants.null_text,
      )
    scale = None
    if (limits := self.module.guidance_range) is not None:
      scale = jax.random.uniform(rng_scale, (rows,), minval=limits[0], maxval=limits[1])
      conditioning = dataclasses.replace(conditioning, guidance=scale)

    x_u = self.teacher_steps(
      teacher, x_t, start=start, stop=stop, conditioning=conditioning,
      unconditional=unconditional, scale=scale,
    )  # fmt: skip
    x0 = jax.lax.stop_gradient(self.single_step_estimate(x_t, x_u, start=start, stop=stop))
    wanted = output_for(self.prediction, x0, x_t=x_t, gamma=gamma)

    def predict(self_condition: Array | None) -> Array:
      output = self.module.apply({"params": params}, x_t, start, self_condition, conditioning)
      return cast(Array, output)

    self_condition = None
    if self.module.self_conditioning and self.self_conditioning_probability > 0:
      first, _ = to_x0_and_noise(self.prediction, predict(None), x_t=x_t, gamma=gamma)
      chosen = jax.random.bernoulli(rng_self, self.self_conditioning_probability, (rows,))
      self_condition = jnp.where(
        self._rows(chosen & ~self._is_first(start)), jax.lax.stop_gradient(first), 0.0
      )
    errors = jnp.mean(jnp.square(predict(self_condition) - wanted), axis=(1, 2, 3, 4))
    return jnp.mean(errors), self._metrics(errors, start, conditioning.is_image)

  def _draw_interval(self, rng: Array, rows: int) -> tuple[Array, Array]:
    """First and last diffusion time of the student's step of each example, float32 [B]."""
    calls = self.sampler.num_steps
    rng_grid, rng_place, rng_free = jax.random.split(rng, 3)
    grid = jnp.asarray(self.path(self.schedule, calls), jnp.float32)
    place = jax.random.randint(rng_place, (rows,), 0, calls)
    on_grid = jax.random.bernoulli(rng_grid, self.grid_share, (rows,))
    free = 1 - jax.random.uniform(rng_free, (rows,))
    end = jnp.maximum(free - 1 / calls, 0.0)
    start, stop = (self.path.steps(self.schedule, places) for places in (free, end))
    # Below a step, the weight of the noise is that of rounding.
    start = jnp.maximum(start, 1.0)
    return jnp.where(on_grid, grid[place], start), jnp.where(on_grid, grid[place + 1], stop)

  def teacher_steps(
    self,
    params: Params,
    x_t: Array,
    *,
    start: Array,
    stop: Array,
    conditioning: Conditioning,
    unconditional: Conditioning | None,
    scale: Array | None,
  ) -> Array:
    """The state at `stop` after the teacher's steps from `x_t` at `start`, both [B] in diffusion steps.

    As in training, the self-condition of the first step is an estimate from the same state, and as in sampling it is
    zero at pure noise.

    Args:
      params: the teacher's parameters.
      x_t: noised latents [B, t, h, w, c].
      conditioning: with `guidance` if that is an input of the teacher.
      unconditional: the conditioning that guidance extrapolates from; None for a teacher with one prediction.
      scale: of guidance, of each example [B]; None for the scale of the teacher's sampler.
    """
    teacher = self.teacher
    if teacher.module.guidance_range is not None and scale is None:
      raise ValueError(
        "the teacher reads the scale of guidance: expected guidance_range of the student"
      )
    if teacher.module.guidance_range is None:
      conditioning = dataclasses.replace(conditioning, guidance=None)
    branches = [conditioning] if unconditional is None else [conditioning, unconditional]
    together = jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=0), *branches)
    count = len(branches)
    estimate = functools.partial(to_x0_and_noise, teacher.prediction)

    def step(carry: tuple[Array, Array], times: tuple[Array, Array]) -> tuple[Any, None]:
      (x, self_conditions), (here, there) = carry, times
      gamma = teacher.schedule.gamma(here)
      outputs = teacher.module.apply(
        {"params": params},
        jnp.concatenate([x] * count),
        jnp.concatenate([here] * count),
        self_conditions.reshape(-1, *x.shape[1:]) if teacher.module.self_conditioning else None,
        together,
      )
      outputs = cast(Array, outputs).reshape(count, *x.shape)
      guided = outputs[0]
      found = jax.vmap(lambda output: estimate(output, x_t=x, gamma=gamma)[0])(outputs)
      if count > 1:
        scales = self._rows(self._scales(here) if scale is None else scale)
        guided = guide(outputs[0], outputs[1], scales)
        if share := teacher.sampler.rescale:
          guided = rescale(guided, outputs[0], share)
        # Where it has no weight, a sampler does not compute the second one.
        found = found.at[1].set(jnp.where(scales == 1, 0.0, found[1]))
      found = jnp.where(self._rows(self._is_first(here) & (here == there)), 0.0, found)
      x0, _ = estimate(guided, x_t=x, gamma=gamma)
      return (self._ddim(x, x0, here=here, there=there), found), None

    parts = jnp.arange(1, self.substeps)[:, None] / self.substeps
    first, last = (self.path.places(self.schedule, steps) for steps in (start, stop))
    between = self.path.steps(self.schedule, first + (last - first) * parts)
    points = jnp.concatenate([start[None], between, stop[None]])
    # A step of length zero leaves x as it is: it makes the first self-condition.
    if teacher.module.self_conditioning:
      points = jnp.concatenate([start[None], points])
    nothing = jnp.zeros((count, *x_t.shape), jnp.float32)
    (x_u, _), _ = jax.lax.scan(step, (x_t, nothing), (points[:-1], points[1:]))
    return x_u

  def single_step_estimate(self, x_t: Array, x_u: Array, *, start: Array, stop: Array) -> Array:
    """The estimate of x_0 with which one DDIM step leads from `x_t` at `start` to `x_u` at `stop`."""
    a, next_a, decay = self._step_weights(start, stop)
    return (x_u - decay * x_t) / (next_a - a * decay)

  def _ddim(self, x: Array, x0: Array, *, here: Array, there: Array) -> Array:
    a, next_a, decay = self._step_weights(here, there)
    return decay * x + (next_a - a * decay) * x0

  def _step_weights(self, here: Array, there: Array) -> tuple[Array, Array, Array]:
    """a at `here`, a at `there`, and s there / s here; each [B, 1, 1, 1, 1]."""
    gamma, following = (self._rows(self.schedule.gamma(steps)) for steps in (here, there))
    return jnp.sqrt(gamma), jnp.sqrt(following), jnp.sqrt((1 - following) / (1 - gamma))

  def _scales(self, steps: Array) -> Array:
    """The scale of the teacher's sampler at each example's time."""
    guidance = self.teacher.sampler.guidance
    assert guidance is not None
    return jax.vmap(guidance)(steps / self.schedule.num_steps)

  def _is_first(self, steps: Array) -> Array:
    """Where sampling starts, without an estimate."""
    return steps >= self.schedule.num_steps

  @staticmethod
  def _rows(values: Array) -> Array:
    """[B] -> [B, 1, 1, 1, 1]."""
    return values.reshape(-1, 1, 1, 1, 1)

  def plain(self) -> DenoiserModel:
    """The student as any other model: what samples are made with."""
    return DenoiserModel(**self._settings)
