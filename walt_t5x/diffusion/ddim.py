"""DDIM sampling (Song et al. 2020, 2010.02502) on the trailing grid, with self-conditioning.

  x_u = sqrt(a_u) x_0 + sqrt(1 - a_u) (sqrt(1 - r^2) eps + r z),    r = eta sqrt((1 - a_t / a_u) / (1 - a_t))

with a = `alpha_bar`, which is gamma of the paper's Eq. 1, and new noise z in each step: Eq. 12 and 16 there, with sigma
= sqrt(1 - a_u) r. eta = 0 is deterministic, eta = 1 the ancestral sampling of DDPM. Each step calls the network once.
The self-condition (Section 4.3) is the x_0 estimate of the previous step, zeros in the first step. Assumption: each
branch of guidance gets its own estimate, as in training. A guided x_0 lies outside the data, and fed back it would be
extrapolated again in every step.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from walt_t5x.diffusion.process import Prediction, add_noise, to_x0_and_noise
from walt_t5x.diffusion.schedules import NoiseSchedule, trailing_steps

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


def ddim_sample(
  denoise: DenoiseFn,
  initial_noise: Float[Array, "B ..."],
  *,
  schedule: NoiseSchedule,
  num_steps: int = 50,
  prediction: Prediction = Prediction.V,
  branches: int = 1,
  eta: float = 0.0,
) -> Float[Array, "B ..."]:
  """Runs all sampling steps on the device.

  Args:
    denoise: the network and its guidance; called once per step.
    initial_noise: x_K, standard normal, of the shape of the sample.
    schedule: the noise schedule; its num_steps is the start of the grid.
    num_steps: network calls; 50 in the paper for every stage.
    prediction: what `denoise` returns.
    branches: n, the number of outputs that guidance combines.
    eta: share of new noise in each step, in [0, 1]. The noise of an example depends on its initial noise alone, not on
      the others in the batch.

  Returns:
    x_0, float32, of the shape of `initial_noise`.
  """
  grid = trailing_steps(schedule.num_steps, num_steps)
  alpha_bar = schedule.gammas[grid]
  here, there = alpha_bar[:-1], alpha_bar[1:]
  shares = eta * np.sqrt((1 - here / there) / (1 - here))
  batch = initial_noise.shape[0]

  def step(carry, level):
    x_t, self_condition = carry
    now, current, following, share = level
    steps, gamma = jnp.full((batch,), now, jnp.int32), jnp.full((batch,), current)
    time = now.astype(jnp.float32) / schedule.num_steps
    guided, outputs = denoise(x_t, steps, self_condition, time)
    x0, noise = to_x0_and_noise(prediction, guided, x_t=x_t, gamma=gamma)
    estimate = lambda output: to_x0_and_noise(prediction, output, x_t=x_t, gamma=gamma)[0]  # noqa: E731
    self_condition = jax.vmap(estimate)(outputs)
    if eta:
      noise = jnp.sqrt(1 - jnp.square(share)) * noise + share * _new_noise(initial_noise, now)
    return (add_noise(x0, noise, jnp.full((batch,), following)), self_condition), None

  levels = (
    jnp.asarray(grid[:-1]),
    jnp.asarray(here, jnp.float32),
    jnp.asarray(there, jnp.float32),
    jnp.asarray(shares, jnp.float32),
  )
  start = initial_noise.astype(jnp.float32)
  # The last step leads to gamma = 1, where x_t is x_0.
  nothing = jnp.zeros((branches, *start.shape), jnp.float32)
  (x0, _), _ = jax.lax.scan(step, (start, nothing), levels)
  return x0
