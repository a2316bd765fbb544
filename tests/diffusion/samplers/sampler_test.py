"""The sampling loop with DDIM, alone and guided, compared with diffusers and closed forms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt_t5x.diffusion.guidance import guide, rescale
from walt_t5x.diffusion.process import Prediction
from walt_t5x.diffusion.samplers import sampler
from walt_t5x.diffusion.samplers.sampler import Denoised, sample
from walt_t5x.diffusion.samplers.solvers import Ddim
from walt_t5x.diffusion.schedules import NoiseSchedule

SHAPE = (2, 3, 4, 4, 8)


def _unguided(network):
  """A denoiser with one branch."""

  def denoise(call):
    output = network(call.x_t, call.steps, call.self_condition[0], call.time)
    return Denoised(output, output[None])

  return denoise


def _toy_network(x, time):
  """An arbitrary smooth function of x_t and the time, for both implementations."""
  return np.tanh(0.7 * x + 0.3) * (0.2 + time) - 0.1 * x


@pytest.mark.parametrize(
  ("beta_schedule", "eta"),
  [("linear", 0.0), ("scaled_linear", 0.0), ("linear", 0.3), ("linear", 1.0)],
)
def test_trajectory_equals_diffusers(beta_schedule, eta, monkeypatch):
  import torch
  from diffusers import DDIMScheduler

  rng = np.random.default_rng(0)
  noise = rng.normal(size=SHAPE).astype(np.float32)
  new = rng.normal(size=(1001, *SHAPE)).astype(np.float32)
  monkeypatch.setattr(sampler, "_new_noise", lambda _, step: jnp.asarray(new)[step])
  reference = DDIMScheduler(
    num_train_timesteps=1000,
    beta_start=1e-4,
    beta_end=0.02,
    beta_schedule=beta_schedule,
    prediction_type="v_prediction",
    rescale_betas_zero_snr=True,
    timestep_spacing="trailing",
    clip_sample=False,
    set_alpha_to_one=True,
  )
  reference.set_timesteps(50)
  state = torch.from_numpy(noise.copy())
  for timestep in reference.timesteps:
    # diffusers counts 0 .. 999 where the paper counts 1 .. 1000.
    output = _toy_network(state.numpy(), (int(timestep) + 1) / 1000).astype(np.float32)
    given = torch.from_numpy(new[int(timestep) + 1])
    stepped = reference.step(
      torch.from_numpy(output), timestep, state, eta=eta, variance_noise=given if eta else None
    )
    state = stepped.prev_sample

  ours = sample(
    _unguided(lambda x, steps, _, time: jnp.tanh(0.7 * x + 0.3) * (0.2 + time) - 0.1 * x),
    jnp.asarray(noise),
    schedule=NoiseSchedule(beta_schedule=beta_schedule),
    num_steps=50,
    solver=Ddim(eta),
  )
  np.testing.assert_allclose(ours, state.numpy(), atol=1e-5)


def test_new_noise_is_that_of_the_example_and_the_step():
  start = jax.random.normal(jax.random.key(0), (3, 40, 40))
  noise = sampler._new_noise(start, jnp.array(20))
  np.testing.assert_array_equal(sampler._new_noise(start[1:2], jnp.array(20))[0], noise[1])
  for other in (noise[0], sampler._new_noise(start, jnp.array(40))[1], start[1]):
    assert abs(np.corrcoef(other.ravel(), noise[1].ravel())[0, 1]) < 0.1
  assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05


@pytest.mark.parametrize("num_steps", [1, 5, 50])
@pytest.mark.parametrize("prediction", ["v", "x0"])
def test_an_exact_predictor_of_a_point_gives_that_point(num_steps, prediction):
  schedule = NoiseSchedule()
  data = jnp.asarray(np.random.default_rng(1).normal(size=SHAPE), jnp.float32)

  @_unguided
  def denoise(x_t, steps, self_condition, time):
    gamma = schedule.gamma(steps).reshape(-1, 1, 1, 1, 1)
    if prediction == "x0":
      return data
    noise = (x_t - jnp.sqrt(gamma) * data) / jnp.sqrt(1 - gamma)
    return jnp.sqrt(gamma) * noise - jnp.sqrt(1 - gamma) * data

  start = jax.random.normal(jax.random.key(0), SHAPE)
  got = sample(
    denoise, start, schedule=schedule, num_steps=num_steps, prediction=Prediction(prediction)
  )
  np.testing.assert_allclose(got, data, atol=2e-3)


def test_gaussian_data_has_a_closed_form():
  """For x_0 ~ N(0, s^2) the optimal estimate and each DDIM step are linear: the closed form is a product of factors."""
  schedule, spread, num_steps = NoiseSchedule(), 0.5, 40

  @_unguided
  def denoise(x_t, steps, self_condition, time):
    gamma = schedule.gamma(steps).reshape(-1, 1, 1, 1, 1)
    return jnp.sqrt(gamma) * spread**2 / (gamma * spread**2 + 1 - gamma) * x_t

  start = jax.random.normal(jax.random.key(1), SHAPE)
  got = sample(denoise, start, schedule=schedule, num_steps=num_steps, prediction=Prediction.X0)
  factor, levels = 1.0, schedule.gammas[np.arange(1000, -1, -25)]
  for now, after in itertools.pairwise(levels):
    estimate = np.sqrt(now) * spread**2 / (now * spread**2 + 1 - now)
    noise = (1 - np.sqrt(now) * estimate) / np.sqrt(1 - now)
    factor *= np.sqrt(after) * estimate + np.sqrt(1 - after) * noise
  np.testing.assert_allclose(got, factor * np.asarray(start), rtol=2e-4, atol=2e-5)


def test_self_condition_is_zero_at_first_and_then_the_previous_estimate():
  schedule = NoiseSchedule()
  seen = []

  @_unguided
  def denoise(x_t, steps, self_condition, time):
    jax.debug.callback(
      lambda s, k: seen.append((int(k[0]), np.asarray(s))), self_condition, steps, ordered=True
    )
    return jnp.full_like(x_t, time)

  sample(
    denoise, jnp.ones((1, 1, 1, 1, 1)), schedule=schedule, num_steps=4, prediction=Prediction.X0
  )
  jax.effects_barrier()
  assert [k for k, _ in seen] == [1000, 750, 500, 250]
  np.testing.assert_allclose([s.item() for _, s in seen], [0, 1, 0.75, 0.5])


def test_each_branch_gets_its_own_estimate_and_the_sample_is_the_guided_one():
  seen = []

  def denoise(call):
    jax.debug.callback(lambda s: seen.append(s.ravel().tolist()), call.self_condition, ordered=True)
    output = jnp.full_like(call.x_t, call.time)
    return Denoised(10 * output, jnp.stack([output, -output]))

  got = sample(
    denoise,
    jnp.ones((1, 1)),
    schedule=NoiseSchedule(),
    num_steps=4,
    prediction=Prediction.X0,
    branches=2,
  )
  jax.effects_barrier()
  np.testing.assert_allclose(seen, [[0, 0], [1, -1], [0.75, -0.75], [0.5, -0.5]])
  np.testing.assert_allclose(got, 2.5)


def test_a_branch_that_was_left_out_starts_again_without_an_estimate():
  """At t = 1, 3/4, 1/2, 1/4; the second branch is not computed at 3/4."""
  seen = []

  def denoise(call):
    jax.debug.callback(lambda s: seen.append(s.ravel().tolist()), call.self_condition, ordered=True)
    output = jnp.full_like(call.x_t, call.time)
    return Denoised(output, jnp.stack([output, -output][: len(call.active)]))

  sample(
    denoise,
    jnp.ones((1, 1)),
    schedule=NoiseSchedule(),
    num_steps=4,
    prediction=Prediction.X0,
    branches=2,
    active=lambda time: (0,) if time == 0.75 else (0, 1),
  )
  jax.effects_barrier()
  assert [len(values) for values in seen] == [2, 1, 2, 2]
  np.testing.assert_allclose([*itertools.chain(*seen)], [0, 0, 1, 0.75, 0, 0.5, -0.5], atol=1e-6)


def test_defaults_are_fifty_calls_from_the_last_step_and_v_prediction():
  calls = []

  @_unguided
  def denoise(x_t, steps, self_condition, time):
    def note(*now):
      calls.append(tuple(float(value) for value in now))

    jax.debug.callback(note, steps[0], time, ordered=True)
    # At zero SNR x_t is the noise and x_0 = -v = 1.
    return jnp.where(time == 1, -1.0, 0.0) * jnp.ones_like(x_t)

  schedule = NoiseSchedule(num_steps=100)
  got = sample(denoise, jnp.zeros((2, 1)), schedule=schedule)
  jax.effects_barrier()
  assert [step for step, _ in calls] == list(range(100, 0, -2))
  np.testing.assert_allclose([time for _, time in calls], np.arange(100, 0, -2) / 100)
  # After the first call v = 0: x_0 = a x_t and eps = s x_t, so a step from g to h multiplies by a a' + s s'.
  x_t, levels = 0.0, schedule.gammas[::-2]
  for call, (g, h) in enumerate(itertools.pairwise(levels)):
    x0, noise = (1.0, x_t) if not call else (np.sqrt(g) * x_t, np.sqrt(1 - g) * x_t)
    x_t = np.sqrt(h) * x0 + np.sqrt(1 - h) * noise
  np.testing.assert_allclose(got, np.full((2, 1), x0), rtol=1e-5)


def _spread(scale, share, **settings):
  """Standard deviation over samples of N(m, 1/4), guided away from N(0, 1) by exact denoisers."""
  schedule = NoiseSchedule()
  gammas = jnp.asarray(schedule.gammas, jnp.float32)
  mean = jax.random.normal(jax.random.key(1), (1, 64))

  def denoise(call):
    x_t, gamma = call.x_t, gammas[call.steps][:, None]
    signal, noise = jnp.sqrt(gamma), jnp.sqrt(1 - gamma)

    def v_of(center, variance):
      gain = variance * signal / (gamma * variance + 1 - gamma)
      x0 = center + gain * (x_t - signal * center)
      return signal * (x_t - signal * x0) / noise - noise * x0

    outputs = jnp.stack([v_of(mean, 0.25), v_of(0 * mean, 1.0)])
    return Denoised(rescale(guide(*outputs, scale), outputs[0], share), outputs)

  start = jax.random.normal(jax.random.key(0), (512, 64))
  samples = sample(denoise, start, schedule=schedule, branches=2, **settings)
  return float(samples.std(axis=0).mean())


def test_rescaled_guidance_keeps_a_spread_that_a_large_scale_removes():
  # 50 steps of the conditional model lose 6% of the spread of 1/2.
  conditional = _spread(1.0, 0.0)
  assert 0.46 < conditional < 0.5
  assert _spread(7.5, 0.0) < 0.01 < 0.1 < _spread(7.5, 0.7)
  assert conditional > _spread(2.5, 0.7) > 2 * _spread(2.5, 0.0)
  np.testing.assert_allclose(_spread(7.5, 1.0), conditional, rtol=1e-4)


def test_new_noise_gives_the_spread_of_the_data_with_enough_steps():
  assert abs(_spread(1.0, 0.0, num_steps=500, solver=Ddim(1.0)) - 0.5) < 0.01
  assert _spread(2.5, 0.0, solver=Ddim(1.0)) > 1.3 * _spread(2.5, 0.0)
