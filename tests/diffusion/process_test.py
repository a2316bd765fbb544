"""Properties of the process: the three predictions agree, and v is well defined at both ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt_t5x.diffusion.process import Prediction, add_noise, target, to_x0_and_noise
from walt_t5x.diffusion.schedules import BetaSchedule, NoiseSchedule

SCHEDULES = [
  NoiseSchedule(beta_schedule=k, zero_terminal_snr=z) for k in BetaSchedule for z in (True, False)
]


def _draw(seed=0, rows=6):
  rng = np.random.default_rng(seed)
  shape = (rows, 3, 4, 4, 2)
  return jnp.asarray(rng.normal(size=shape), jnp.float32), jnp.asarray(
    rng.normal(size=shape), jnp.float32
  )


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("prediction", list(Prediction))
def test_a_perfect_prediction_gives_back_x0_and_noise(schedule, prediction):
  x0, noise = _draw()
  steps = jnp.array([50, 200, 400, 500, 600, 700])
  gamma = schedule.gamma(steps)
  x_t = add_noise(x0, noise, gamma)
  output = target(prediction, x0=x0, noise=noise, gamma=gamma)
  got_x0, got_noise = to_x0_and_noise(prediction, output, x_t=x_t, gamma=gamma)
  # For x0 and epsilon, division by a small root amplifies the float32 error of x_t; v needs no division.
  tolerance = 1e-5 if prediction == Prediction.V else 1e-3
  np.testing.assert_allclose(got_x0, x0, atol=tolerance)
  np.testing.assert_allclose(got_noise, noise, atol=tolerance)


def test_v_is_well_defined_at_pure_noise_and_at_the_clean_end():
  x0, noise = _draw(rows=2)
  gamma = jnp.array([0.0, 1.0])
  x_t = add_noise(x0, noise, gamma)
  v = target(Prediction.V, x0=x0, noise=noise, gamma=gamma)
  np.testing.assert_array_equal(x_t[0], noise[0])
  np.testing.assert_array_equal(v[0], -x0[0])
  np.testing.assert_array_equal(v[1], noise[1])
  got_x0, got_noise = to_x0_and_noise(Prediction.V, v, x_t=x_t, gamma=gamma)
  np.testing.assert_array_equal(got_x0, x0)
  np.testing.assert_array_equal(got_noise, noise)


@pytest.mark.parametrize("prediction", list(Prediction))
def test_nothing_is_nan_at_either_end(prediction):
  x0, noise = _draw(rows=2)
  gamma = jnp.array([0.0, 1.0])

  def total(output):
    parts = to_x0_and_noise(prediction, output, x_t=add_noise(x0, noise, gamma), gamma=gamma)
    return sum(jnp.sum(p) for p in parts)

  value, gradient = jax.value_and_grad(total)(x0)
  assert np.isfinite(value) and np.isfinite(gradient).all()


def test_the_undefined_output_of_a_prediction_is_zero():
  x_t, output = _draw(rows=2)
  gamma = jnp.array([0.0, 1.0])
  got_x0, got_noise = to_x0_and_noise(Prediction.EPSILON, output, x_t=x_t, gamma=gamma)
  assert not got_x0[0].any()
  np.testing.assert_array_equal(got_x0[1], x_t[1])
  np.testing.assert_array_equal(got_noise, output)
  got_x0, got_noise = to_x0_and_noise(Prediction.X0, output, x_t=x_t, gamma=gamma)
  np.testing.assert_array_equal(got_x0, output)
  assert not got_noise[1].any()
  np.testing.assert_array_equal(got_noise[0], x_t[0])


def test_noising_keeps_unit_variance():
  x0, noise = _draw(seed=1, rows=512)
  gamma = jnp.linspace(0, 1, 512)
  np.testing.assert_allclose(np.var(add_noise(x0, noise, gamma)), 1.0, atol=0.03)


def test_each_example_is_noised_with_its_own_level():
  x0, noise = _draw(rows=4)
  gamma = jnp.array([0.1, 0.9, 0.5, 0.0])
  together = add_noise(x0, noise, gamma)
  for i in range(4):
    expected = np.sqrt(gamma[i]) * np.asarray(x0[i]) + np.sqrt(1 - gamma[i]) * np.asarray(noise[i])
    np.testing.assert_allclose(together[i], expected, rtol=1e-5, atol=1e-6)
