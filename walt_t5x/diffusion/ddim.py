"""Deterministic DDIM sampling (Song et al. 2020, 2010.02502) on the trailing grid, with self-conditioning.

  x_u = sqrt(a_u) x_0 + sqrt(1 - a_u) eps                                             (Eq. 12 there, sigma = 0)

with a = `alpha_bar`, which is gamma of the paper's Eq. 1. Each step calls the network once. The x_0 estimate of the
previous step is the self-condition (Section 4.3), zeros in the first step. Assumption: both guidance branches receive
the guided x_0.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from walt_t5x.diffusion.process import Prediction, add_noise, to_x0_and_noise
from walt_t5x.diffusion.schedules import NoiseSchedule, trailing_steps

# denoise(x_t, steps [B] int32, self_condition, time in [0, 1]) -> network output, already guided, same shape as x_t.
DenoiseFn = Callable[[Array, Array, Array, Array], Array]


def ddim_sample(
  denoise: DenoiseFn,
  initial_noise: Float[Array, "B ..."],
  *,
  schedule: NoiseSchedule,
  num_steps: int = 50,
  prediction: Prediction = Prediction.V,
) -> Float[Array, "B ..."]:
  """Runs all sampling steps on the device.

  Args:
    denoise: the guided network; called once per step.
    initial_noise: x_K, standard normal, of the shape of the sample.
    schedule: the noise schedule; its num_steps is the start of the grid.
    num_steps: network calls; 50 in the paper for every stage.
    prediction: what `denoise` returns.

  Returns:
    x_0, float32, of the shape of `initial_noise`.
  """
  grid = trailing_steps(schedule.num_steps, num_steps)
  alpha_bar = schedule.gammas[grid]
  batch = initial_noise.shape[0]

  def step(carry, level):
    x_t, x0 = carry
    now, current, following = level
    steps = jnp.full((batch,), now, jnp.int32)
    output = denoise(x_t, steps, x0, now.astype(jnp.float32) / schedule.num_steps)
    x0, noise = to_x0_and_noise(prediction, output, x_t=x_t, gamma=jnp.full((batch,), current))
    return (add_noise(x0, noise, jnp.full((batch,), following)), x0), None

  levels = (
    jnp.asarray(grid[:-1]),
    jnp.asarray(alpha_bar[:-1], jnp.float32),
    jnp.asarray(alpha_bar[1:], jnp.float32),
  )
  start = initial_noise.astype(jnp.float32)
  (x0, _), _ = jax.lax.scan(step, (start, jnp.zeros_like(start)), levels)
  return x0
