"""The loss compared with its definition in float64, and the weight of an error in x0 for each target."""

import jax.numpy as jnp
import numpy as np
import pytest

from walt_t5x.diffusion.process import Prediction, add_noise, squared_errors, target

RNG = np.random.default_rng(0)
X0, NOISE, WRONG = (jnp.asarray(RNG.normal(size=(4, 3, 2, 2, 2)), jnp.float32) for _ in range(3))
GAMMA = jnp.array([0.9, 0.5, 0.2, 0.05])


def test_the_loss_of_an_example_is_its_mean_squared_error():
  got = squared_errors(Prediction.V, WRONG, x0=X0, noise=NOISE, gamma=GAMMA)
  g = np.asarray(GAMMA, np.float64).reshape(-1, 1, 1, 1, 1)
  v = np.sqrt(g) * np.asarray(NOISE, np.float64) - np.sqrt(1 - g) * np.asarray(X0, np.float64)
  wanted = [np.mean((np.asarray(WRONG, np.float64)[i] - v[i]) ** 2) for i in range(4)]
  np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_the_weight_of_an_error_in_x0_depends_on_the_signal_to_noise_ratio():
  x_t = add_noise(X0, NOISE, GAMMA)
  a, s = (np.sqrt(x).reshape(-1, 1, 1, 1, 1) for x in (GAMMA, 1 - GAMMA))
  wrong_noise = (x_t - a * WRONG) / s
  ratio = np.asarray(GAMMA / (1 - GAMMA))
  in_x0 = np.mean(np.square(np.asarray(WRONG - X0)), axis=(1, 2, 3, 4))
  for prediction, weight in (("x0", 1.0), ("epsilon", ratio), ("v", ratio + 1)):
    output = target(Prediction(prediction), x0=WRONG, noise=wrong_noise, gamma=GAMMA)
    got = squared_errors(Prediction(prediction), output, x0=X0, noise=NOISE, gamma=GAMMA)
    np.testing.assert_allclose(got, weight * in_x0, rtol=1e-4)


def test_another_shape_raises():
  with pytest.raises(ValueError, match="expected"):
    squared_errors(Prediction.V, WRONG[:, :1], x0=X0, noise=NOISE, gamma=GAMMA)
