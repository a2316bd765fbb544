"""The sampling loop: every solver and grid, with self-conditioning.

The self-condition (Section 4.3) is the x_0 estimate of the previous network call, zeros at the first one. Assumption:
each branch of guidance gets its own estimate, as in training. A guided x_0 lies outside the data, and fed back it would
be extrapolated again in every step. Solvers extrapolate the guided estimates.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from walt_t5x.diffusion.process import Prediction, to_x0_and_noise
from walt_t5x.diffusion.samplers.grids import Grid, Trailing
from walt_t5x.diffusion.samplers.solvers import Ddim, Solver
from walt_t5x.diffusion.schedules import NoiseSchedule

# denoise(x_t [B, ...], steps [B] int32, self_condition [n, B, ...], time in [0, 1]) -> the guided output of the network
# [B, ...], which makes the step, and the outputs of its n branches [n, B, ...], which make their self-conditions.
DenoiseFn = Callable[[Array, Array, Array, Array], tuple[Array, Array]]


def _new_noise(initial_noise: Float[Array, "B ..."], step: Array) -> Array:
  """Standard normal of the same shape; that of an example depends on its initial noise and the step alone."""

  def draw(example: Array) -> Array:
    bits = jnp.sum(jax.lax.bitcast_convert_type(example, jnp.uint32), dtype=jnp.uint32)
    # Not the default generator: under `vmap`, those of the hardware depend on the other examples.
    key = jax.random.fold_in(jax.random.key(bits, impl="threefry2x32"), step)
    return jax.random.normal(key, example.shape)

  return jax.vmap(draw)(initial_noise.astype(jnp.float32))


def sample(
  denoise: DenoiseFn,
  initial_noise: Float[Array, "B ..."],
  *,
  schedule: NoiseSchedule,
  num_steps: int = 50,
  prediction: Prediction = Prediction.V,
  branches: int = 1,
  solver: Solver = Ddim(),  # noqa: B008 - frozen
  grid: Grid = Trailing(),  # noqa: B008 - frozen
) -> Float[Array, "B ..."]:
  """Runs all sampling steps on the device.

  Args:
    denoise: the network and its guidance.
    initial_noise: x_K, standard normal, of the shape of the sample.
    schedule: the noise schedule; its num_steps is the start of the grid.
    num_steps: network calls; 50 in the paper for every stage.
    prediction: what `denoise` returns.
    branches: n, the number of outputs that guidance combines.
    solver: what is done with the estimates. New noise of an example depends on its initial noise alone, not on the
      others in the batch.
    grid: where the network is called.

  Returns:
    x_0, float32, of the shape of `initial_noise`.
  """
  zero_snr = schedule.gammas[-1] == 0
  steps = grid(schedule, solver.intervals(num_steps, zero_snr=bool(zero_snr)))
  weights = solver.weights(schedule.gammas[steps], num_steps)
  history = (
    int(np.flatnonzero((weights.correct != 0).any(0) | (weights.predict != 0).any(0))[-1]) - 1
  )
  corrects = (weights.correct != weights.correct[0]).any()
  remembers = weights.predict[:, 1].any() or corrects
  batch = initial_noise.shape[0]

  def weighted(row: Array, *arrays: Array) -> Array:
    terms = [row[place] * array for place, array in enumerate(arrays)]
    return functools.reduce(jnp.add, terms)

  def call(carry, level):
    x_t, before, estimates, self_condition = carry
    step, current, correct, predict, share = level
    steps, gamma = jnp.full((batch,), step, jnp.int32), jnp.full((batch,), current)
    time = step.astype(jnp.float32) / schedule.num_steps
    guided, outputs = denoise(x_t, steps, self_condition, time)
    x0 = lambda output: to_x0_and_noise(prediction, output, x_t=x_t, gamma=gamma)[0]  # noqa: E731
    estimates = (x0(guided), *estimates[:-1])
    if corrects:
      x_t = weighted(correct, x_t, before, *estimates)
    # A weight of zero, as in the step to gamma = 1, removes a state exactly.
    following = weighted(predict, x_t, before, *estimates)
    if weights.noise.any():
      following += share * _new_noise(initial_noise, step)
    return (following, x_t if remembers else before, estimates, jax.vmap(x0)(outputs)), None

  at = steps[weights.points]
  floats = (schedule.gammas[at], weights.correct, weights.predict, weights.noise)
  levels = (jnp.asarray(at), *(jnp.asarray(each, jnp.float32) for each in floats))
  start = initial_noise.astype(jnp.float32)
  nothing = jnp.zeros_like(start)
  first = (start, nothing, (nothing,) * history, jnp.zeros((branches, *start.shape), jnp.float32))
  (x0, *_), _ = jax.lax.scan(call, first, levels)
  return x0
