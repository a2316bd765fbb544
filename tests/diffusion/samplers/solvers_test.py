"""Solvers compared with diffusers, with their orders on known distributions, and grids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from walt_t5x.diffusion.process import Prediction
from walt_t5x.diffusion.samplers.grids import Given, LogSnr, Trailing
from walt_t5x.diffusion.samplers.sampler import Denoised, sample
from walt_t5x.diffusion.samplers.solvers import (
  Ddim,
  DpmSolverMultistep,
  DpmSolverSinglestep,
  Heun,
  UniPC,
)
from walt_t5x.diffusion.schedules import NoiseSchedule

SOLVERS = (Ddim(), DpmSolverMultistep(), DpmSolverSinglestep(), Heun(), UniPC(1), UniPC(), UniPC(3))
# Without zero SNR: diffusers has another value in place of the infinite one.
SCHEDULE = NoiseSchedule(zero_terminal_snr=False)


def _network(xp, x, time):
  """An arbitrary smooth output v of x_t and the time."""
  return xp.tanh(0.7 * x + 0.3) * (0.2 + time) - 0.1 * x


def _diffusers(solver):
  import diffusers

  settings = {
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "v_prediction",
  }
  if isinstance(solver, DpmSolverSinglestep):
    return diffusers.DPMSolverSinglestepScheduler(
      **settings, final_sigmas_type="zero", lower_order_final=True
    )
  settings["timestep_spacing"] = "trailing"
  match solver:
    case DpmSolverMultistep():
      return diffusers.DPMSolverMultistepScheduler(**settings, final_sigmas_type="zero")
    case Heun():
      return diffusers.HeunDiscreteScheduler(**settings)
  return diffusers.UniPCMultistepScheduler(
    **settings, solver_order=solver.order, solver_type="bh2", final_sigmas_type="zero"
  )


@pytest.mark.parametrize("solver", SOLVERS[1:], ids=repr)
@pytest.mark.parametrize("intervals", [5, 10, 20])
def test_trajectories_equal_diffusers(solver, intervals):
  import torch

  start = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
  reference = _diffusers(solver)
  reference.set_timesteps(intervals)
  state = torch.from_numpy(start.astype(np.float64)) * float(reference.init_noise_sigma)
  if isinstance(solver, Heun):
    # Its first state is x / a; `init_noise_sigma` is the noise of that alone.
    state = torch.from_numpy(start.astype(np.float64)) / SCHEDULE.gammas[-1] ** 0.5
  for timestep in reference.timesteps:
    scaled = reference.scale_model_input(state, timestep).numpy()
    # diffusers counts 0 .. 999 where the paper counts 1 .. 1000.
    output = _network(np, scaled, (float(timestep) + 1) / 1000)
    state = reference.step(torch.from_numpy(output), timestep, state).prev_sample

  def denoise(call):
    output = _network(jnp, call.x_t, call.time)
    return Denoised(output, output[None])

  grid = Trailing()
  if isinstance(solver, DpmSolverSinglestep):
    grid = Given(tuple(int(timestep) + 1 for timestep in reference.timesteps))
  settings = {"schedule": SCHEDULE, "num_steps": len(reference.timesteps), "grid": grid}
  ours = sample(denoise, jnp.asarray(start), solver=solver, **settings)
  np.testing.assert_allclose(ours, state.numpy(), atol=1e-5)


def _of_mixture(x, a, s):
  """E[x_0 | x] for x_0 from N(-1, 0.3^2) and N(1.5, 0.5^2) with weights 0.4 and 0.6."""
  means, spreads, shares = np.array([-1, 1.5]), np.array([0.3, 0.5]), np.array([0.4, 0.6])
  variances = (a * spreads) ** 2 + s**2
  x = x[..., None]
  logits = np.log(shares) - (x - a * means) ** 2 / variances / 2 - np.log(variances) / 2
  shares = np.exp(logits - logits.max(-1, keepdims=True))
  shares /= shares.sum(-1, keepdims=True)
  return (shares * (means + a * spreads**2 / variances * (x - a * means))).sum(-1)


def _of_gaussian(x, a, s):
  """E[x_0 | x] for x_0 from N(0.7, 0.5^2)."""
  return 0.7 + a * 0.25 / ((a * 0.5) ** 2 + s**2) * (x - a * 0.7)


def _states(solver, estimate, log_snr, start, calls):
  """The corrected states at the calls of a solver in float64, by index of the grid's point."""
  gammas = 1 / (1 + np.exp(-2 * log_snr))
  weights = solver.weights(gammas, calls)
  state, before, estimates, found = start, 0 * start, [0 * start] * 4, {}
  for i, point in enumerate(weights.points):
    a, s = np.sqrt(gammas[point]), np.sqrt(1 - gammas[point])
    estimates = [estimate(state, a, s), *estimates[:3]]
    state = np.tensordot(weights.correct[i], np.stack([state, before, *estimates]), 1)
    found[point] = state
    following = np.tensordot(weights.predict[i], np.stack([state, before, *estimates]), 1)
    state, before = following, state
  return found


@pytest.mark.parametrize("estimate", [_of_gaussian, _of_mixture])
@pytest.mark.parametrize(
  ("solver", "order"),
  [
    (Ddim(), 1),
    (DpmSolverMultistep(), 2),
    (DpmSolverSinglestep(), 2),
    (Heun(), 2),
    (UniPC(1), 2),
    (UniPC(2), 3),
    (UniPC(3), 4),
  ],
  ids=repr,
)
def test_errors_fall_with_the_order_of_the_solver(solver, order, estimate):
  """Errors at a point before the last intervals, whose steps have lower orders."""
  first, last, start = -2.0, 1.0, np.linspace(-2, 2, 9)

  def slope(log_ratio, x):
    # x / a over s / a; both as functions of log(s / a).
    noise = np.exp(log_ratio)
    a = 1 / np.sqrt(1 + noise**2)
    return x - estimate(a * x, a, a * noise)

  a = np.sqrt(1 / (1 + np.exp(-2 * np.array([first, last]))))
  exact = solve_ivp(slope, (-first, -last), start / a[0], rtol=1e-12, atol=1e-12).y[:, -1] * a[1]
  errors = []
  for size in (128, 256):
    step = (last - first) / size
    log_snr = np.append(first + step * np.arange(size + 4), np.inf)
    calls = size + 4
    if isinstance(solver, Heun):
      calls += size + 3
    errors.append(np.abs(_states(solver, estimate, log_snr, start, calls)[size] - exact).max())
  assert abs(np.log2(errors[0] / errors[1]) - order) < 0.2, errors
  assert errors[1] < 0.005


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("schedule", [SCHEDULE, NoiseSchedule()], ids=["snr", "zero snr"])
def test_a_sample_takes_exactly_so_many_calls_and_a_constant_estimate_is_the_sample(
  solver, schedule
):
  for calls in range(1, 10):
    intervals = solver.intervals(calls, zero_snr=schedule.zero_terminal_snr)
    steps = Trailing()(schedule, intervals)
    weights = solver.weights(schedule.gammas[steps], calls)
    assert len(weights.points) == len(weights.predict) == len(weights.correct) == calls
    assert {*weights.points} == {*range(intervals)}
    assert np.isfinite(weights.predict).all() and np.isfinite(weights.correct).all()
  data = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5)), jnp.float32)
  denoise = lambda _: Denoised(data, data[None])  # noqa: E731
  start = jax.random.normal(jax.random.key(0), (2, 5))
  got = sample(
    denoise, start, schedule=schedule, num_steps=7, prediction=Prediction.X0, solver=solver
  )
  np.testing.assert_allclose(got, data, atol=1e-5)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_from_pure_noise_to_the_next_point_every_solver_makes_the_step_of_ddim(solver):
  schedule = NoiseSchedule()
  for calls in (4, 5, 10):
    steps = Trailing()(schedule, solver.intervals(calls, zero_snr=True))
    weights = solver.weights(schedule.gammas[steps], calls)
    a, s = np.sqrt(schedule.gammas[steps[1]]), np.sqrt(1 - schedule.gammas[steps[1]])
    np.testing.assert_allclose(weights.predict[0], [s, 0, a, 0, 0, 0], atol=1e-15)
    # No difference quotient reaches over the infinite interval.
    np.testing.assert_array_equal(weights.correct[1], [1, 0, 0, 0, 0, 0])
    assert weights.predict[1][3:].tolist() == [0, 0, 0] and weights.predict[1][1] == 0


def test_few_calls_of_a_second_order_solver_are_closer_to_many_than_ddim_is():
  """On the published schedule, for a mixture: the sample of 1,000 DDIM calls."""
  schedule = NoiseSchedule()
  start = jnp.linspace(-2, 2, 64)[:, None]

  def denoise(call):
    gamma = schedule.gamma(call.steps)[:, None]
    means, spreads = jnp.array([-1, 1.5]), jnp.array([0.3, 0.5])
    variances = gamma * spreads**2 + 1 - gamma
    offsets = call.x_t - jnp.sqrt(gamma) * means
    logits = jnp.log(jnp.array([0.4, 0.6])) - offsets**2 / variances / 2 - jnp.log(variances) / 2
    found = means + jnp.sqrt(gamma) * spreads**2 / variances * offsets
    output = (jax.nn.softmax(logits) * found).sum(-1, keepdims=True)
    return Denoised(output, output[None])

  def run(solver, calls, grid):
    settings = {"schedule": schedule, "prediction": Prediction.X0, "grid": grid}
    return np.asarray(sample(denoise, start, num_steps=calls, solver=solver, **settings))

  exact = run(Ddim(), 1000, Trailing())
  error = {solver: np.abs(run(solver, 10, Trailing()) - exact).mean() for solver in SOLVERS}
  assert all(error[s] < 0.7 * error[Ddim()] for s in (DpmSolverMultistep(), UniPC(), UniPC(3)))
  grid = np.abs(run(UniPC(), 10, LogSnr()) - exact).mean()
  assert grid < error[Ddim()]


def test_grids():
  schedule = NoiseSchedule()
  np.testing.assert_array_equal(Trailing()(schedule, 4), [1000, 750, 500, 250, 0])
  for count in (1, 2, 8, 36, 50, 600, 1000):
    steps = LogSnr()(schedule, count)
    assert len(steps) == count + 1 and steps[0] == 1000 and steps[-1] == 0
    assert (np.diff(steps) < 0).all()
  gammas = schedule.gammas[LogSnr(first=-3.0)(schedule, 9)[1:-1]]
  log_snr = np.log(gammas / (1 - gammas)) / 2
  assert abs(log_snr[0] + 3) < 0.01
  # Steps are rounded, which shows where they are close.
  np.testing.assert_allclose(np.diff(log_snr)[:5], np.diff(log_snr)[0], rtol=0.1)
  np.testing.assert_array_equal(Given((1000, 400, 100))(schedule, 3), [1000, 400, 100, 0])
  for steps, count in (((1000, 400), 3), ((900, 400), 2), ((1000, 1000), 2), ((1000, 0), 2)):
    with pytest.raises(ValueError, match=r"grids.Given (has|got)"):
      Given(steps)(schedule, count)
  with pytest.raises(ValueError, match=r"Ddim\.eta=2"):
    Ddim(2.0)
  with pytest.raises(ValueError, match=r"UniPC\.order=4"):
    UniPC(4)
