"""Properties of the tokenizer's loss: gradients of each part, state between steps, and the computation of a step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from walt_t5x.engine import optimizers
from walt_t5x.models.adversarial import AdversarialSettings, adversarial_loss, assign
from walt_t5x.models.vae_model import VaeModel
from walt_t5x.vae import losses
from walt_t5x.vae.autoencoder import CausalVae
from walt_t5x.vae.discriminator import Discriminator

TINY = {
  "latent_channels": 2,
  "base_channels": 4,
  "channel_multipliers": (1,),
  "num_res_blocks": 1,
  "temporal_downsample": (),
}
SHAPE = (2, 3, 8, 8, 3)


def _optimizer():
  return optimizers.by_part(
    parts={
      "vae": optax.sgd(0.01),
      "discriminator": optax.sgd(0.01),
      "running": optimizers.assignment(),
    }
  )


def _model(**changes):
  settings = AdversarialSettings(**({"r1_every": 2} | changes))
  return VaeModel(
    module=CausalVae(**TINY),
    optimizer_def=_optimizer(),
    discriminator=Discriminator(base_channels=2, channel_multipliers=()),
    adversarial=settings,
  )


@functools.cache
def _params():
  shapes = jax.eval_shape(
    lambda: _model().get_initial_variables(jax.random.key(0), {"video": SHAPE})["params"]
  )
  rng = np.random.default_rng(0)
  noisy = jax.tree.map(
    lambda p: jnp.asarray(
      rng.normal(size=p.shape) / max(1, np.prod(p.shape[:-1])) ** 0.5, "float32"
    ),
    shapes,
  )
  # Averages from an earlier step.
  return noisy | {
    "running": {
      "step": jnp.float32(3),
      "lecam_real": jnp.float32(0.4),
      "lecam_fake": jnp.float32(-0.3),
    }
  }


def _batch(seed=0):
  rng = np.random.default_rng(seed)
  return {"video": jnp.asarray(rng.integers(0, 256, SHAPE), jnp.uint8)}


@functools.cache
def _compiled(**changes):
  model = _model(**changes)
  return jax.jit(jax.value_and_grad(lambda p: model.loss_fn(p, _batch(), None), has_aux=True))


def _at_step(step, **changes):
  """Loss, metrics and gradients of one step."""
  params = _params() | {"running": _params()["running"] | {"step": jnp.float32(step)}}
  (loss, metrics), grads = _compiled(**changes)(params)
  return loss, metrics, grads


@functools.cache
def _parts():
  """Reconstruction and discriminator, directly from the modules."""
  model, params = _model(), _params()
  video = _batch()["video"] / 255
  reconstruction, _ = jax.jit(model.module.apply)({"params": params["vae"]}, video)
  judge = jax.jit(lambda p, x: model.discriminator.apply({"params": p}, x))
  return model, params, jnp.asarray(video, jnp.float32), reconstruction, judge


def _assert_equal_trees(a, b, **tolerance):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), dict(a), dict(b))


def test_each_part_has_the_gradient_of_its_own_loss_alone():
  _, metrics, grads = _at_step(3)
  model, params, video, reconstruction, judge = _parts()

  def generator(p):
    y, _ = model.module.apply({"params": p}, video)
    fooled = losses.generator_loss(judge(params["discriminator"], y))
    return 5 * jnp.mean((y - video) ** 2) + 0.1 * fooled

  _assert_equal_trees(jax.jit(jax.grad(generator))(params["vae"]), grads["vae"], atol=1e-5)

  def discriminator(p):
    real, fake = judge(p, video), judge(p, reconstruction)
    lecam = jax.nn.relu(real.mean() + 0.3) ** 2 + jax.nn.relu(0.4 - fake.mean()) ** 2
    return losses.discriminator_loss(real, fake) + 0.001 * lecam

  # Step 3 with R1 every second step: no R1.
  expected = jax.jit(jax.grad(discriminator))(params["discriminator"])
  _assert_equal_trees(expected, grads["discriminator"], atol=1e-5)
  assert float(metrics["adversarial/r1"].compute()) == 0


def test_r1_every_second_step_has_twice_the_weight():
  _, metrics, due = _at_step(4)
  _, _, between = _at_step(3)
  _, params, video, _, judge = _parts()

  def penalty(p):
    gradients = jax.grad(lambda x: jnp.sum(judge(p, x)))(video)
    return 2 * jnp.mean(jnp.sum(gradients**2, axis=(1, 2, 3, 4)))

  value, slope = jax.jit(jax.value_and_grad(penalty))(params["discriminator"])
  np.testing.assert_allclose(metrics["adversarial/r1"].compute(), value, rtol=1e-4)
  difference = jax.tree.map(lambda a, b: a - b, due["discriminator"], between["discriminator"])
  _assert_equal_trees(difference, jax.tree.map(lambda s: 10 * s, slope), rtol=2e-3, atol=1e-3)
  _assert_equal_trees(due["vae"], between["vae"], atol=1e-6)


def test_a_step_is_counted_and_updates_lecams_averages():
  model, params, video, reconstruction, judge = _parts()
  optimizer = model.optimizer_def
  loss, _, grads = _at_step(3)
  after, _ = optimizer.apply_gradient(params, optimizer.init_state(params), grads)
  real = judge(params["discriminator"], video).mean()
  fake = judge(params["discriminator"], reconstruction).mean()
  running = after["running"]
  assert float(running["step"]) == 4
  np.testing.assert_allclose(running["lecam_real"], 0.999 * 0.4 + 0.001 * real, rtol=1e-5)
  np.testing.assert_allclose(running["lecam_fake"], 0.999 * -0.3 + 0.001 * fake, rtol=1e-5)
  # The stored state adds nothing to the loss, and almost nothing to the norm of the gradient.
  np.testing.assert_allclose(_at_step(5)[0], loss, rtol=1e-6)
  assert optax.global_norm(grads["running"]) < 1e-5


def test_assign_has_no_value_and_reaches_its_target():
  for target in (-7.25, 0.1, 12345.0):
    p = jnp.float32(3.5)
    value, slope = jax.value_and_grad(lambda p, t=target: assign(p, jnp.float32(t)))(p)
    chain = optimizers.assignment()
    updates, _ = chain.update(slope, chain.init(p), p)
    np.testing.assert_allclose(optax.apply_updates(p, updates), target, rtol=1e-6)
    assert float(value) == 0


def _product_judge(step, **changes):
  """The adversarial terms alone, with the discriminator D(x) = p . x, which compiles quickly.

  Returns:
    logged values, gradients by (p, running, fake), and the arrays real, fake, p.
  """
  rng = np.random.default_rng(0)
  real, fake = rng.uniform(size=(2, *SHAPE)).astype(np.float32)
  p = rng.normal(size=SHAPE[1:]).astype(np.float32)
  running = {
    "step": jnp.float32(step),
    "lecam_real": jnp.float32(0.4),
    "lecam_fake": jnp.float32(-0.3),
  }

  def total(p, running, fake):
    return adversarial_loss(
      lambda p, clips: jnp.einsum("bthwc,thwc->b", clips, p),
      p,
      running,
      real=jnp.asarray(real),
      fake=fake,
      pixel_loss=lambda clips: 5 * jnp.mean((clips - real) ** 2),
      settings=AdversarialSettings(**changes),
    )

  run = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))
  (_, logged), grads = run(jnp.asarray(p), running, jnp.asarray(fake))
  return logged, grads, (real, fake, p)


def test_before_the_start_step_no_term_is_adversarial():
  logged, (to_p, to_running, to_fake), _ = _product_judge(3, start_step=4)
  assert not np.any(to_fake) and not np.any(to_p)
  assert not any(np.any(value) for value in logged.values())
  assert float(to_running["step"]) != 0  # the step is still counted
  assert float(to_running["lecam_real"]) == float(to_running["lecam_fake"]) == 0
  started, always = _product_judge(4, start_step=4)[:2], _product_judge(4)[:2]
  assert np.any(started[1][0]) and np.any(started[1][2])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), started, always)


def test_the_adaptive_weight_equalizes_the_gradients():
  settings = {"adaptive": True, "weight": 0.5, "r1_weight": 0.0}
  logged, (_, _, to_fake), (real, fake, p) = _product_judge(3, **settings)
  pull = 10 * (fake - real) / fake.size
  logits = np.einsum("bthwc,thwc->b", fake, p)
  push = -np.einsum("b,thwc->bthwc", 1 / (1 + np.exp(logits)) / len(logits), p)
  weight = 0.5 * np.linalg.norm(pull) / np.linalg.norm(push)
  np.testing.assert_allclose(logged["weight"], weight, rtol=1e-4)
  # The weight itself has no gradient: the norm is the generator's, half that of the pixels.
  np.testing.assert_allclose(to_fake, weight * push, rtol=1e-3, atol=1e-8)
  capped, _, _ = _product_judge(3, max_adaptive=1e-3, **settings)
  np.testing.assert_allclose(capped["weight"], 0.5e-3, rtol=1e-5)


def test_the_pixel_loss_of_the_adaptive_weight():
  _, metrics, _ = _at_step(3)
  video = jnp.asarray(_batch()["video"], jnp.float32) / 255
  loss, _ = _model()._pixel_loss(video[::-1], video)
  np.testing.assert_allclose(loss, 5 * np.mean(np.square(video[::-1] - video)), rtol=1e-5)
  assert float(metrics["adversarial/weight"].compute()) == pytest.approx(0.1)  # Not adaptive.


def test_the_discriminator_evaluates_each_clip_once():
  # Three evaluations are written (real, fake for the generator, fake for the discriminator); two are computed.
  model, params, video, reconstruction, judge = _parts()

  def flops(function, *args):
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]

  no_r1 = _model(r1_weight=0.0)
  complete = flops(lambda p: no_r1.loss_fn(p, _batch(), None)[0], params)
  vae = flops(lambda p: model.module.apply({"params": p}, video)[0], params["vae"])
  once = flops(judge, params["discriminator"], reconstruction)
  assert 1.8 * once < complete - vae < 2.2 * once


def test_parts_without_a_chain_are_rejected():
  only = optimizers.by_part(parts={"vae": optax.sgd(0.1)})
  with pytest.raises(ValueError, match=r"got chains for \['vae'\], expected one for each of"):
    only.init_state(_params())


def test_moments_of_each_part_have_the_axes_of_their_parameters():
  chains = {"vae": optax.adam(0.1), "discriminator": optax.sgd(0.1)}
  optimizer = optimizers.by_part(parts=chains | {"running": optimizers.assignment()})
  params = _params()
  axes = jax.tree.map(lambda p: jax.sharding.PartitionSpec(*["a"] * p.ndim), params)
  axes["running"] = dict.fromkeys(params["running"], jax.sharding.PartitionSpec())
  state = jax.eval_shape(optimizer.init_state, params)
  derived = optimizer.derive_logical_axes(state, axes)
  moments = derived.param_states.inner_states["vae"].inner_state[0]
  assert moments.mu["vae"] == moments.nu["vae"] == axes["vae"]
  assert moments.count == jax.sharding.PartitionSpec()


def test_two_hundred_adversarial_steps_do_not_diverge():
  chain = optimizers.adamw_chain(1e-3, b1=0.0, b2=0.99)
  optimizer = optimizers.by_part(
    parts={"vae": chain, "discriminator": chain, "running": optimizers.assignment()}
  )
  params, step = _params(), _compiled()
  state = optimizer.init_state(params)
  update = jax.jit(optimizer.apply_gradient)
  errors, logits = [], []
  for _ in range(200):
    (loss, metrics), grads = step(params)
    params, state = update(params, state, grads)
    errors.append(float(metrics["mse"].compute()))
    logits.append(float(abs(metrics["adversarial/logit_real"].compute())))
    assert np.isfinite(loss)
  assert np.mean(errors[-20:]) < 0.5 * errors[0]
  assert np.max(logits[100:]) < 10
  assert float(params["running"]["step"]) == 203
