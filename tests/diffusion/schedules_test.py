"""Properties of the noise schedules."""

import jax.numpy as jnp
import numpy as np
import pytest

from walt_t5x.diffusion.schedules import BetaSchedule, NoiseSchedule, trailing_steps


def test_linear_schedule_has_the_published_values():
  rescaled = NoiseSchedule().gammas
  plain = NoiseSchedule(zero_terminal_snr=False).gammas
  np.testing.assert_allclose(plain[1], 0.9999, rtol=1e-12)
  np.testing.assert_allclose(plain[1000], 4.0358e-5, rtol=1e-4)
  np.testing.assert_allclose(rescaled[500], 0.07603, rtol=1e-4)
  np.testing.assert_allclose(rescaled[900], 1.061e-4, rtol=1e-3)
  np.testing.assert_allclose(rescaled[990], 4.574e-7, rtol=1e-3)
  assert rescaled[1000] == 0.0
  np.testing.assert_allclose(rescaled[1], plain[1], rtol=1e-12)


@pytest.mark.parametrize("kind", list(BetaSchedule))
@pytest.mark.parametrize("zero_snr", [True, False])
def test_gamma_decreases_from_one_and_zero_snr_ends_at_exactly_zero(kind, zero_snr):
  gammas = NoiseSchedule(beta_schedule=kind, zero_terminal_snr=zero_snr).gammas
  assert gammas.dtype == np.float64
  assert gammas[0] == 1.0
  assert (np.diff(gammas) < 0).all()
  assert (gammas[-1] == 0.0) == zero_snr
  assert gammas[-1] >= 0


@pytest.mark.parametrize("kind", list(BetaSchedule))
def test_table_equals_a_plain_product(kind):
  schedule = NoiseSchedule(beta_schedule=kind, zero_terminal_snr=False)
  product, expected = 1.0, [1.0]
  for k in range(1, 1001):
    match str(kind):
      case "linear":
        beta = 1e-4 + (0.02 - 1e-4) * (k - 1) / 999
      case "scaled_linear":
        beta = (0.01 + (0.02**0.5 - 0.01) * (k - 1) / 999) ** 2
      case _:

        def bar(u):
          return np.cos((u / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2

        beta = min(1 - bar(k) / bar(k - 1), 0.999)
    product *= 1 - beta
    expected.append(product)
  np.testing.assert_allclose(schedule.gammas, expected, rtol=1e-9)


def test_continuous_time_agrees_with_the_table_and_is_monotone():
  schedule = NoiseSchedule()
  complete = jnp.arange(1001)
  np.testing.assert_allclose(schedule.gamma(complete), schedule.gammas, atol=1e-6)
  np.testing.assert_allclose(
    schedule.gamma(complete.astype(jnp.float32)), schedule.gammas, atol=1e-6
  )
  fine = np.asarray(schedule.gamma(jnp.linspace(0, 1000, 20_001)))
  assert (np.diff(fine) <= 1e-7).all()


def test_between_two_steps_the_root_of_gamma_is_linear():
  schedule = NoiseSchedule(num_steps=8)
  steps = np.array([0.0, 0.25, 3.5, 6.75, 7.9, 8.0])
  roots = np.interp(steps, np.arange(9), np.sqrt(schedule.gammas))
  np.testing.assert_allclose(schedule.gamma(jnp.asarray(steps)), roots**2, rtol=1e-5, atol=1e-7)


def test_sampling_grid_starts_at_pure_noise_and_ends_clean():
  grid = trailing_steps(1000, 50)
  np.testing.assert_array_equal(grid, np.arange(1000, -1, -20))
  for count in (1, 7, 1000):
    grid = trailing_steps(1000, count)
    assert (grid[0], grid[-1], len(grid)) == (1000, 0, count + 1)
    assert (np.diff(grid) < 0).all()
  # 10, 7.5, 5, 2.5, 0 rounded half to even.
  np.testing.assert_array_equal(trailing_steps(10, 4), [10, 8, 5, 2, 0])
  for count in (0, 1001):
    with pytest.raises(ValueError, match=f"num_sampling_steps={count}"):
      trailing_steps(1000, count)


def test_settings_at_the_bounds():
  (one, first, second) = NoiseSchedule(num_steps=2, beta_first=0.5, beta_last=0.5).gammas
  assert (one, second) == (1.0, 0.0) and first == pytest.approx(0.5)
  for settings in ({"beta_first": 0.0}, {"beta_last": 1.0}, {"num_steps": 1}):
    with pytest.raises(ValueError, match=next(iter(settings))):
      NoiseSchedule(**settings)


def test_errors_name_the_invalid_setting():
  with pytest.raises(ValueError, match="beta_first"):
    NoiseSchedule(beta_first=0.5, beta_last=0.1)
  with pytest.raises(ValueError, match="quadratic"):
    NoiseSchedule(beta_schedule="quadratic")
