"""Properties of the tokenizer's loss: gradients of each part, state between steps, and the computation of a step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from walt_t5x.engine import optimizers
from walt_t5x.models.adversarial import AdversarialSettings, adversarial_loss
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
  return optimizers.by_part(parts={"vae": optax.sgd(0.01), "discriminator": optax.sgd(0.01)})


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
  return jax.tree.map(
    lambda p: jnp.asarray(
      rng.normal(size=p.shape) / max(1, np.prod(p.shape[:-1])) ** 0.5, "float32"
    ),
    shapes,
  )


def _running(count):
  """Averages of an earlier step."""
  return {
    "count": jnp.int32(count),
    "lecam_real": jnp.float32(0.4),
    "lecam_fake": jnp.float32(-0.3),
  }


def _batch(seed=0):
  rng = np.random.default_rng(seed)
  return {"video": jnp.asarray(rng.integers(0, 256, SHAPE), jnp.uint8)}


@functools.cache
def _compiled(**changes):
  model = _model(**changes)

  def loss(params, flax_mutables):
    return model.loss_fn(params, _batch(), None, flax_mutables)

  return jax.jit(jax.value_and_grad(loss, has_aux=True))


def _at_step(step, **changes):
  """Loss, metrics and gradients of one step."""
  (loss, (metrics, _)), grads = _compiled(**changes)(_params(), {"running": _running(step)})
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
  _, params, video, reconstruction, judge = _parts()
  (loss, (_, mutables)), _ = _compiled()(params, {"running": _running(3)})
  real = judge(params["discriminator"], video).mean()
  fake = judge(params["discriminator"], reconstruction).mean()
  running = mutables["running"]
  assert running["count"] == 4 and running["count"].dtype == jnp.int32
  np.testing.assert_allclose(running["lecam_real"], 0.999 * 0.4 + 0.001 * real, rtol=1e-5)
  np.testing.assert_allclose(running["lecam_fake"], 0.999 * -0.3 + 0.001 * fake, rtol=1e-5)
  np.testing.assert_allclose(_at_step(5)[0], loss, rtol=1e-6)


def test_microbatches_are_parts_of_one_step():
  # Two microbatches per step: R1 is due in both of steps 0, 2, ... and the terms start at step 2, evaluation 4.
  due = [bool(_product_judge(n, r1_every=2, num_microbatches=2)[0]["r1"]) for n in range(8)]
  assert due == [True, True, False, False] * 2
  on = [np.any(_product_judge(n, start_step=2, num_microbatches=2)[1][0]) for n in range(6)]
  assert on == [False] * 4 + [True] * 2


@functools.cache
def _product_terms(**changes):
  """(compiled function, the arrays real, fake, p) of `_product_judge`."""
  rng = np.random.default_rng(0)
  real, fake = rng.uniform(size=(2, *SHAPE)).astype(np.float32)
  p = rng.normal(size=SHAPE[1:]).astype(np.float32)

  def total(p, fake, running):
    loss, logged, running = adversarial_loss(
      lambda p, clips: jnp.einsum("bthwc,thwc->b", clips, p),
      p,
      running,
      real=jnp.asarray(real),
      fake=fake,
      pixel_loss=lambda clips: 5 * jnp.mean((clips - real) ** 2),
      settings=AdversarialSettings(**changes),
    )
    return loss, (logged, running)

  return jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True)), (real, fake, p)


def _product_judge(step, **changes):
  """The adversarial terms alone, with the discriminator D(x) = p . x, which compiles quickly.

  Returns:
    logged values, gradients by (p, fake) and the next running state, and the arrays real, fake, p.
  """
  run, (real, fake, p) = _product_terms(**changes)
  (_, (logged, running)), grads = run(jnp.asarray(p), jnp.asarray(fake), _running(step))
  return logged, (*grads, running), (real, fake, p)


def test_before_the_start_step_no_term_is_adversarial():
  logged, (to_p, to_fake, running), _ = _product_judge(3, start_step=4)
  assert not np.any(to_fake) and not np.any(to_p)
  assert not any(np.any(value) for value in logged.values())
  assert running == _running(4)  # The step is still counted.
  started, always = _product_judge(4, start_step=4)[:2], _product_judge(4)[:2]
  assert np.any(started[1][0]) and np.any(started[1][1])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), started, always)


def test_the_adaptive_weight_equalizes_the_gradients():
  settings = {"adaptive": True, "weight": 0.5, "r1_weight": 0.0}
  logged, (_, to_fake, _), (real, fake, p) = _product_judge(3, **settings)
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
  mutables = {"running": _running(3)}
  complete = flops(lambda p: no_r1.loss_fn(p, _batch(), None, mutables)[0], params)
  vae = flops(lambda p: model.module.apply({"params": p}, video)[0], params["vae"])
  once = flops(judge, params["discriminator"], reconstruction)
  assert 1.8 * once < complete - vae < 2.2 * once


def test_parts_without_a_chain_are_rejected():
  only = optimizers.by_part(parts={"vae": optax.sgd(0.1)})
  with pytest.raises(ValueError, match=r"got chains for \['vae'\], expected one for each of"):
    only.init_state(_params())


def test_moments_of_each_part_have_the_axes_of_their_parameters():
  chains = {"vae": optax.adam(0.1), "discriminator": optax.sgd(0.1)}
  optimizer = optimizers.by_part(parts=chains)
  params = _params()
  axes = jax.tree.map(lambda p: jax.sharding.PartitionSpec(*["a"] * p.ndim), params)
  state = jax.eval_shape(optimizer.init_state, params)
  derived = optimizer.derive_logical_axes(state, axes)
  moments = derived.param_states.inner_states["vae"].inner_state[0]
  assert moments.mu["vae"] == moments.nu["vae"] == axes["vae"]
  assert moments.count == jax.sharding.PartitionSpec()


def test_two_hundred_adversarial_steps_do_not_diverge():
  chain = optimizers.adamw_chain(1e-3, b1=0.0, b2=0.99)
  optimizer = optimizers.by_part(parts={"vae": chain, "discriminator": chain})
  params, step, mutables = _params(), _compiled(), {"running": _running(3)}
  state = jax.jit(optimizer.init_state)(params)
  update = jax.jit(optimizer.apply_gradient)
  history = []
  for _ in range(200):
    (loss, (metrics, mutables)), grads = step(params, mutables)
    params, state = update(params, state, grads)
    history.append((loss, metrics["mse"], metrics["adversarial/logit_real"]))
  losses, errors, logits = zip(*jax.device_get(history))
  errors, logits = ([m.total / m.count for m in averages] for averages in (errors, logits))
  assert np.isfinite(losses).all()
  assert np.mean(errors[-20:]) < 0.5 * errors[0]
  assert np.max(np.abs(logits[100:])) < 10
  assert mutables["running"]["count"] == 203
