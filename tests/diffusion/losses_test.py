"""The loss compared with its definition in float64, and the weight of an error in x0 for each target."""

import jax.numpy as jnp
import numpy as np
import pytest

from walt_t5x.diffusion.process import Prediction, add_noise, squared_errors, target

RNG = np.random.default_rng(0)
X0, NOISE, WRONG = (RNG.normal(size=(4, 3, 2, 2, 2)).astype(np.float32) for _ in range(3))
GAMMA = np.array([0.9, 0.5, 0.2, 0.05], np.float32)


@pytest.fixture
def arrays():
  return tuple(map(jnp.asarray, (X0, NOISE, WRONG, GAMMA)))


def test_the_loss_of_an_example_is_its_mean_squared_error(arrays):
  x0, noise, wrong, gamma = arrays
  got = squared_errors(Prediction.V, wrong, x0=x0, noise=noise, gamma=gamma)
  g = GAMMA.astype(np.float64).reshape(-1, 1, 1, 1, 1)
  v = np.sqrt(g) * NOISE.astype(np.float64) - np.sqrt(1 - g) * X0.astype(np.float64)
  wanted = [np.mean((WRONG.astype(np.float64)[i] - v[i]) ** 2) for i in range(4)]
  np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_the_weight_of_an_error_in_x0_depends_on_the_signal_to_noise_ratio(arrays):
  x0, noise, wrong, gamma = arrays
  x_t = add_noise(x0, noise, gamma)
  a, s = (np.sqrt(x).reshape(-1, 1, 1, 1, 1) for x in (GAMMA, 1 - GAMMA))
  wrong_noise = (x_t - a * WRONG) / s
  ratio = GAMMA / (1 - GAMMA)
  in_x0 = np.mean(np.square(WRONG - X0), axis=(1, 2, 3, 4))
  for prediction, weight in (("x0", 1.0), ("epsilon", ratio), ("v", ratio + 1)):
    output = target(Prediction(prediction), x0=wrong, noise=wrong_noise, gamma=gamma)
    got = squared_errors(Prediction(prediction), output, x0=x0, noise=noise, gamma=gamma)
    np.testing.assert_allclose(got, weight * in_x0, rtol=1e-4)


def test_another_shape_raises(arrays):
  x0, noise, wrong, gamma = arrays
  with pytest.raises(ValueError, match="expected"):
    squared_errors(Prediction.V, wrong[:, :1], x0=x0, noise=noise, gamma=gamma)
