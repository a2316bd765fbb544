"""Rules of guidance, compared with diffusers and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt_t5x.diffusion.guidance import (
  AdaptiveProjection,
  Combination,
  ConstantGuidance,
  IntervalGuidance,
  PowerCosineGuidance,
  ZeroStar,
  guide,
  guide_twice,
  rescale,
)

SHAPE = (2, 3, 4, 4, 8)


def test_two_guidance_scales_weight_each_condition():
  c, f, u = jnp.array([1.0, -2.0]), jnp.array([2.0, 5.0]), jnp.array([0.5, 3.0])
  # u + 3 (f - u) + 2 (c - f).
  np.testing.assert_allclose(guide_twice(c, f, u, 2.0, 3.0), [0.5 + 4.5 - 2, 3 + 6 - 14])
  np.testing.assert_allclose(guide_twice(c, f, u, 1.7, 1.7), guide(c, u, 1.7), rtol=1e-6)


def test_rescaled_guidance_equals_diffusers():
  import torch
  from diffusers.guiders.guider_utils import rescale_noise_cfg

  rng = np.random.default_rng(0)
  guided, conditional = (rng.normal(size=SHAPE) * spread for spread in (4.0, 1.5))
  expected = rescale_noise_cfg(
    torch.tensor(guided), torch.tensor(conditional), guidance_rescale=0.7
  )
  got = rescale(jnp.asarray(guided), jnp.asarray(conditional), 0.7)
  np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_rescaling_leaves_constant_outputs_finite():
  # Exact denoisers of a constant: at zero SNR all elements of an output are equal.
  ones = jnp.ones((2, 3))
  np.testing.assert_array_equal(rescale(3 * ones, ones, 0.7), 3 * ones)


def test_default_guidance_scales():
  assert ConstantGuidance()(jnp.array(0.3)) == 7.5
  # 1 + 3 (1 - cos(pi / 16)) / 2 at t = 1/2.
  np.testing.assert_allclose(PowerCosineGuidance()(jnp.array(0.5)), 1.0288221, rtol=1e-6)
  np.testing.assert_allclose(PowerCosineGuidance()(jnp.array(0.0)), 4.0)


def test_guidance_scale_one_is_conditional_and_zero_unconditional():
  c, u = jnp.array([1.0, -2.0]), jnp.array([0.5, 3.0])
  np.testing.assert_array_equal(guide(c, u, 1.0), c)
  np.testing.assert_array_equal(guide(c, u, 0.0), u)
  np.testing.assert_allclose(guide(c, u, 3.0), [2.0, -12.0])


def test_power_cosine_guidance_goes_from_one_to_its_scale():
  schedule = PowerCosineGuidance(scale=4.0, power=4.0)
  np.testing.assert_allclose(schedule(jnp.array(1.0)), 1.0)
  np.testing.assert_allclose(schedule(jnp.array(0.0)), 4.0)
  half = 1 + 3 * (1 - np.cos(np.pi * 0.5**4)) / 2
  np.testing.assert_allclose(schedule(jnp.array(0.5)), half, rtol=1e-6)
  np.testing.assert_allclose(ConstantGuidance(2.0)(jnp.array(0.3)), 2.0)


def _pairs(count):
  """Conditional and unconditional predictions of successive calls."""
  rng = np.random.default_rng(3)
  return [jnp.asarray(rng.normal(size=(2, *SHAPE)), jnp.float32) for _ in range(count)]


@pytest.mark.parametrize(
  "rule",
  [
    AdaptiveProjection(parallel=1.0, momentum=0.0),
    AdaptiveProjection(parallel=0.0, momentum=0.0),
    AdaptiveProjection(parallel=0.3, radius=2.5, momentum=0.0),
    AdaptiveProjection(radius=30.0, momentum=-0.5),
  ],
  ids=str,
)
def test_adaptive_projected_guidance_equals_diffusers(rule):
  """Over four calls, so that its momentum counts."""
  import torch
  from diffusers.guiders import AdaptiveProjectedGuidance

  theirs = AdaptiveProjectedGuidance(
    guidance_scale=5.0,  # The paper's form is c + (w - 1) d; otherwise theirs is u + w d.
    use_original_formulation=True,
    adaptive_projected_guidance_momentum=rule.momentum or None,
    adaptive_projected_guidance_rescale=rule.radius or 0.0,
    eta=rule.parallel,
  )
  memory = jnp.zeros(SHAPE) if rule.remembers else None
  for number, (conditional, unconditional) in enumerate(_pairs(4)):
    theirs.set_state(step=number, num_inference_steps=4, timestep=torch.tensor(0))
    if not number:
      theirs.prepare_inputs({"x": (torch.zeros(1), torch.zeros(1))})
    expected = theirs.forward(
      torch.tensor(np.asarray(conditional)), torch.tensor(np.asarray(unconditional))
    ).pred
    got, memory = rule(conditional, unconditional, 6.0, memory)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_projection_without_limits_is_plain_guidance_and_removes_only_what_is_along_the_condition():
  ((conditional, unconditional),) = _pairs(1)
  plain = guide(conditional, unconditional, 4.0)
  both, _ = AdaptiveProjection(parallel=1.0, momentum=0.0)(conditional, unconditional, 4.0, None)
  np.testing.assert_allclose(both, plain, rtol=1e-4, atol=1e-5)
  across, _ = AdaptiveProjection(momentum=0.0)(conditional, unconditional, 4.0, None)
  change, removed = np.asarray(across) - conditional, plain - np.asarray(across)
  flat = lambda x: np.asarray(x).reshape(2, -1)  # noqa: E731
  assert np.abs((flat(change) * flat(conditional)).sum(1)).max() < 1e-2
  for one, other in zip(flat(removed), flat(conditional)):
    assert abs(np.corrcoef(one, other)[0, 1]) > 0.999
  # A change of |d| > radius is as long as radius.
  near, _ = AdaptiveProjection(parallel=1.0, radius=0.5, momentum=0.0)(
    conditional, unconditional, 4.0, None
  )
  lengths = np.linalg.norm(flat(np.asarray(near) - conditional), axis=1)
  np.testing.assert_allclose(lengths, 3 * 0.5, rtol=1e-4)


def test_zero_star_equals_diffusers_and_scales_the_unconditional_prediction_to_the_closest():
  import torch
  from diffusers.guiders import ClassifierFreeZeroStarGuidance

  ((conditional, unconditional),) = _pairs(1)
  conditional = conditional + unconditional
  theirs = ClassifierFreeZeroStarGuidance(guidance_scale=6.0, zero_init_steps=0)
  theirs.set_state(step=0, num_inference_steps=1, timestep=torch.tensor(0))
  expected = theirs.forward(
    torch.tensor(np.asarray(conditional)), torch.tensor(np.asarray(unconditional))
  ).pred
  got, memory = ZeroStar()(conditional, unconditional, 6.0, None)
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
  assert memory is None
  # At w = 0 it is q u: no other multiple of u is closer to c.
  closest, _ = ZeroStar()(conditional, unconditional, 0.0, None)
  error = ((conditional - closest) ** 2).sum()
  for factor in (0.99, 1.01):
    assert ((conditional - factor * closest) ** 2).sum() > error


@pytest.mark.parametrize("rule", [AdaptiveProjection(), ZeroStar()], ids=str)
def test_with_a_scale_of_one_every_rule_gives_the_conditional_prediction(rule):
  assert isinstance(rule, Combination)
  ((conditional, unconditional),) = _pairs(1)
  memory = jnp.ones(SHAPE) if rule.remembers else None
  got, _ = rule(conditional, unconditional, 1.0, memory)
  np.testing.assert_allclose(got, conditional, rtol=1e-4, atol=1e-5)
  zeros = jnp.zeros(SHAPE)
  assert np.isfinite(rule(zeros, zeros, 3.0, memory)[0]).all()


def test_an_interval_has_its_scale_inside_and_one_outside():
  scale = IntervalGuidance(scale=5.0, low=0.2, high=0.6)
  times = jnp.array([0.0, 0.19, 0.2, 0.4, 0.6, 0.61, 1.0])
  np.testing.assert_array_equal(jax.vmap(scale)(times), [1, 1, 5, 5, 5, 1, 1])
  with pytest.raises(ValueError, match=r"low=0.6, high=0.2, expected 0 <= low < high <= 1"):
    IntervalGuidance(low=0.6, high=0.2)
