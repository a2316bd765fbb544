"""Parameter average, AdamW and schedules compared with numpy loops, torch and closed forms."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax.sharding import PartitionSpec

from walt_t5x import engine
from walt_t5x.engine import optimizers, schedules
from walt_t5x.engine.optimizers import parameter_ema

pytestmark = pytest.mark.numerics

PARAMS = {
  "a": {"kernel": np.array([[1.0, -2.0], [0.5, 3.0]], np.float32)},
  "bias": np.array([0.3], np.float32),
}


def gradients(n: int):
  rng = np.random.default_rng(n)
  return jax.tree.map(lambda p: rng.normal(size=p.shape).astype(np.float32), PARAMS)


def run(chain, steps: int):
  """Parameters and states after each update."""
  params, state = PARAMS, chain.init(PARAMS)
  update = jax.jit(chain.update)
  for n in range(steps):
    updates, state = update(gradients(n), state, params)
    params = optax.apply_updates(params, updates)
    yield params, state


@pytest.mark.parametrize("ramp", [False, True])
def test_the_average_equals_a_numpy_loop(ramp):
  average = jax.tree.map(np.array, PARAMS)
  for n, (params, state) in enumerate(
    run(optax.chain(optax.sgd(0.1), parameter_ema(0.9, ramp=ramp)), 12)
  ):
    d = min(0.9, (1 + n) / (10 + n)) if ramp else 0.9
    average = jax.tree.map(lambda e, p: d * e + (1 - d) * np.asarray(p), average, params)  # noqa: B023
    assert isinstance(state[-1], optax.EmaState)
    jax.tree.map(lambda e, x: np.testing.assert_allclose(e, x, rtol=1e-5), state[-1].ema, average)
  assert int(state[-1].count) == 12


def test_the_average_changes_no_update_and_stays_float32():
  with_average = list(run(optax.chain(optax.sgd(0.1), parameter_ema(0.9)), 3))
  without = list(run(optax.sgd(0.1), 3))
  for (a, _), (b, _) in zip(with_average, without):
    jax.tree.map(np.testing.assert_array_equal, a, b)
  state = parameter_ema(0.9).init({"w": jnp.ones(2, jnp.bfloat16)})
  assert state.ema["w"].dtype == jnp.float32
  with pytest.raises(ValueError, match=r"got decay=1\.0, expected 0 <= decay < 1"):
    parameter_ema(1.0)


def test_adamw_equals_torch():
  """Clipping, Adam and decoupled decay as in torch, with a learning rate that changes at each step."""
  schedule = schedules.warmup_cosine(peak=0.1, warmup_steps=3, total_steps=10)
  settings = {"b1": 0.8, "b2": 0.95, "eps": 0.01}  # An eps that matters next to the gradients.
  chain = optimizers.adamw_chain(schedule, weight_decay=0.2, clip_norm=0.5, **settings)
  tensors = [torch.nn.Parameter(torch.tensor(p)) for p in jax.tree.leaves(PARAMS)]
  reference = torch.optim.AdamW(tensors, lr=1.0, betas=(0.8, 0.95), eps=0.01, weight_decay=0.2)
  for n, (params, _) in enumerate(run(chain, 8)):
    for tensor, gradient in zip(tensors, jax.tree.leaves(gradients(n))):
      tensor.grad = torch.tensor(gradient)
    torch.nn.utils.clip_grad_norm_(tensors, 0.5)
    reference.param_groups[0]["lr"] = float(schedule(n))
    reference.step()
    for ours, theirs in zip(jax.tree.leaves(params), tensors):
      np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=2e-4, atol=1e-6)


def test_weight_decay_by_name():
  still = jax.tree.map(np.zeros_like, PARAMS)
  chain = optimizers.adamw_chain(0.1, weight_decay=0.5, weight_decay_names=("kernel",))
  updates, _ = chain.update(still, chain.init(PARAMS), PARAMS)
  np.testing.assert_allclose(updates["a"]["kernel"], -0.1 * 0.5 * PARAMS["a"]["kernel"], rtol=1e-6)
  np.testing.assert_array_equal(updates["bias"], [0.0])


def test_warmup_cosine_equals_the_closed_form():
  peak, warmup, total, end = 0.3, 5, 25, 0.1
  schedule = schedules.warmup_cosine(
    peak=peak, warmup_steps=warmup, total_steps=total, end_fraction=end
  )
  for step in range(40):
    if step < warmup:
      expected = peak * (step + 1) / warmup
    else:
      s = min(1.0, (step - warmup) / (total - warmup))
      expected = peak * (end + (1 - end) * (1 + np.cos(np.pi * s)) / 2)
    assert float(schedule(step)) == pytest.approx(expected, rel=1e-5), step
  assert float(schedule(warmup)) == pytest.approx(peak)
  assert float(schedule(total)) == pytest.approx(peak * end)
  constant = schedules.warmup_constant(peak=0.2, warmup_steps=4)
  np.testing.assert_allclose(
    [constant(n) for n in range(6)], [0.05, 0.1, 0.15, 0.2, 0.2, 0.2], rtol=1e-6
  )
  for steps in (1, 60):
    with pytest.raises(ValueError, match=rf"{steps} with warmup_steps=60.* TRAIN_STEPS") as error:
      schedules.warmup_cosine(peak=1.0, warmup_steps=60, total_steps=steps)
    (cure,) = re.findall(r"--gin\.schedules\.warmup_cosine\.warmup_steps=(\d+)", str(error.value))
    schedules.warmup_cosine(peak=1.0, warmup_steps=int(cure), total_steps=steps)


def test_the_factor_scheduler_equals_its_closed_form():
  """The factors that T5X documents, at hand-computed steps."""
  make = engine.create_learning_rate_scheduler
  default = make(
    factors="constant * linear_warmup * rsqrt_decay", base_learning_rate=0.5, warmup_steps=100
  )
  assert float(default(25)) == pytest.approx(0.5 * 0.25 / 10.0)
  assert float(default(400)) == pytest.approx(0.5 / 20.0)
  decay = make(
    factors="constant*decay_every", base_learning_rate=1.0, decay_factor=0.5, steps_per_decay=10
  )
  np.testing.assert_allclose([decay(n) for n in (0, 9, 10, 35)], [1.0, 1.0, 0.5, 0.125], rtol=1e-6)
  cosine = make(
    factors="constant * cosine_decay", base_learning_rate=2.0, warmup_steps=0, steps_per_cycle=8
  )
  np.testing.assert_allclose(
    [cosine(n) for n in (0, 2, 4)], [2.0, 1 + np.sqrt(0.5), 1.0], rtol=1e-6
  )
  linear = make(factors="linear_decay", base_learning_rate=1.0, warmup_steps=10, decay_factor=0.01)
  np.testing.assert_allclose([linear(n) for n in (5, 10, 60)], [0.5, 1.0, 0.5], rtol=1e-6)
  assert float(make(factors="linear_warmup", min_learning_rate=1e-3)(0)) == pytest.approx(1e-3)
  offset = make(factors="linear_warmup", warmup_steps=10, step_offset=100)
  assert float(offset(105)) == pytest.approx(0.5)
  with pytest.raises(ValueError, match=r"unknown factors \['cosine'\]"):
    make(factors="constant * cosine")


def test_each_part_keeps_the_axes_of_its_own_parameters():
  params = {"vae": {"kernel": jnp.zeros((2, 3))}, "discriminator": {"bias": jnp.zeros((4,))}}
  axes = {
    "vae": {"kernel": PartitionSpec("in", "out")},
    "discriminator": {"bias": PartitionSpec("out")},
  }
  parts = {name: optimizers.adamw_chain(0.1) for name in params}
  wrapped = optimizers.by_part(parts=parts)
  derived = wrapped.derive_logical_axes(wrapped.init_state(params), axes).param_states.inner_states
  for part, other in (("vae", "discriminator"), ("discriminator", "vae")):
    moment = derived[part].inner_state[1].mu
    assert moment[part] == axes[part]
    assert all(isinstance(node, optax.MaskedNode) for node in moment[other].values())
  with pytest.raises(ValueError, match=r"by_part: got chains for \['discriminator', 'vae'\]"):
    wrapped.init_state({"vae": params["vae"]})
