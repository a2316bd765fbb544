"""Deterministic DDIM sampling (Song et al. 2020, 2010.02502) on the trailing grid, with self-conditioning.

  x_u = sqrt(a_u) x_0 + sqrt(1 - a_u) eps                                             (Eq. 12 there, sigma = 0)

with a = `alpha_bar`, which is gamma of the paper's Eq. 1. Each step calls the network once. The self-condition (Section
4.3) is the x_0 estimate of the previous step, zeros in the first step. Assumption: each branch of guidance gets its own
estimate, as in training. A guided x_0 lies outside the data, and fed back it would be extrapolated again in every step.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from walt_t5x.diffusion.process import Prediction, add_noise, to_x0_and_noise
from walt_t5x.diffusion.schedules import NoiseSchedule, trailing_steps

# denoise(x_t [B, ...], steps [B] int32, self_condition [n, B, ...], time in [0, 1]) -> the guided output of the network
# [B, ...], which makes the step, and the outputs of its n branches [n, B, ...], which make their self-conditions.
DenoiseFn = Callable[[Array, Array, Array, Array], tuple[Array, Array]]


def ddim_sample(
  denoise: DenoiseFn,
  initial_noise: Float[Array, "B ..."],
  *,
  schedule: NoiseSchedule,
  num_steps: int = 50,
  prediction: Prediction = Prediction.V,
  branches: int = 1,
) -> Float[Array, "B ..."]:
  """Runs all sampling steps on the device.

  Args:
    denoise: the network and its guidance; called once per step.
    initial_noise: x_K, standard normal, of the shape of the sample.
    schedule: the noise schedule; its num_steps is the start of the grid.
    num_steps: network calls; 50 in the paper for every stage.
    prediction: what `denoise` returns.
    branches: n, the number of outputs that guidance combines.

  Returns:
    x_0, float32, of the shape of `initial_noise`.
  """
  grid = trailing_steps(schedule.num_steps, num_steps)
  alpha_bar = schedule.gammas[grid]
  batch = initial_noise.shape[0]

  def step(carry, level):
    x_t, self_condition = carry
    now, current, following = level
    steps, gamma = jnp.full((batch,), now, jnp.int32), jnp.full((batch,), current)
    time = now.astype(jnp.float32) / schedule.num_steps
    guided, outputs = denoise(x_t, steps, self_condition, time)
    x0, noise = to_x0_and_noise(prediction, guided, x_t=x_t, gamma=gamma)
    estimate = lambda output: to_x0_and_noise(prediction, output, x_t=x_t, gamma=gamma)[0]  # noqa: E731
    self_condition = jax.vmap(estimate)(outputs)
    return (add_noise(x0, noise, jnp.full((batch,), following)), self_condition), None

  levels = (
    jnp.asarray(grid[:-1]),
    jnp.asarray(alpha_bar[:-1], jnp.float32),
    jnp.asarray(alpha_bar[1:], jnp.float32),
  )
  start = initial_noise.astype(jnp.float32)
  # The last step leads to gamma = 1, where x_t is x_0.
  nothing = jnp.zeros((branches, *start.shape), jnp.float32)
  (x0, _), _ = jax.lax.scan(step, (start, nothing), levels)
  return x0
