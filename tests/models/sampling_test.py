"""Guided sampling: identities for one and two scales, and the branches that the network evaluates."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt_t5x.denoiser.transformer import Conditioning
from walt_t5x.diffusion.guidance import (
  AdaptiveProjection,
  ConstantGuidance,
  IntervalGuidance,
  PowerCosineGuidance,
  ZeroStar,
)
from walt_t5x.diffusion.process import Prediction
from walt_t5x.diffusion.samplers.solvers import Ddim, UniPC
from walt_t5x.diffusion.schedules import NoiseSchedule
from walt_t5x.models.sampling import SamplerConfig, sample_latents

ROWS, SHAPE = 2, (3, 2, 2, 1)


@dataclasses.dataclass
class _Network:
  """A function that depends on all its inputs."""

  rows: list = dataclasses.field(default_factory=list)
  guidance_range: None = None
  remembers: bool = True

  def apply(self, variables, x_t, steps, self_condition, conditioning):
    self.rows.append(len(x_t))
    text = conditioning.text.sum((1, 2, 3))[:, None, None, None, None]
    mask = conditioning.frame_mask[:, :, None, None, None]
    frames = mask * conditioning.frames
    return jnp.tanh(
      0.3 * x_t + 0.2 * self.remembers * self_condition + text + 0.7 * frames - 0.1 * mask
    )


def _sample(guidance, frame_guidance=None, *, text=1.0, given=1, network=None, **settings):
  rng = np.random.default_rng(0)
  mask = jnp.broadcast_to(jnp.arange(3) < given, (ROWS, 3)).astype(jnp.float32)
  conditioning = Conditioning(
    text=text * jnp.asarray(rng.normal(size=(ROWS, 1, 2, 2)), jnp.float32),
    frames=jnp.asarray(rng.normal(size=(ROWS, *SHAPE)), jnp.float32),
    frame_mask=mask,
  )
  dropped = dataclasses.replace(
    conditioning, text=jnp.zeros_like(conditioning.text), frame_mask=jnp.zeros_like(mask)
  )
  scales = [ConstantGuidance(w) if isinstance(w, float) else w for w in (guidance, frame_guidance)]
  return np.asarray(
    sample_latents(
      network or _Network(),
      {},
      jax.random.normal(jax.random.key(0), (ROWS, *SHAPE)),
      conditioning=conditioning,
      unconditional=dropped,
      schedule=NoiseSchedule(),
      prediction=Prediction.V,
      config=SamplerConfig(num_steps=4, guidance=scales[0], frame_guidance=scales[1], **settings),
    )
  )


def test_scale_one_is_the_conditional_model_and_zero_the_unconditional_one():
  np.testing.assert_allclose(_sample(1.0), _sample(None), atol=1e-6)
  np.testing.assert_allclose(_sample(0.0), _sample(None, text=0.0, given=0), atol=1e-6)
  assert np.abs(_sample(1.0) - _sample(0.0)).max() > 0.1


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_two_equal_scales_are_one(scale):
  np.testing.assert_allclose(_sample(scale, scale), _sample(scale), atol=1e-5)


def test_a_scale_of_zero_removes_only_its_own_condition():
  np.testing.assert_allclose(_sample(0.0, 1.0), _sample(None, text=0.0), atol=1e-6)
  # Without text, the frames' scale is the scale of the entire condition.
  np.testing.assert_allclose(_sample(5.0, 2.0, text=0.0), _sample(2.0, text=0.0), atol=1e-5)
  # Without frames, it has no effect.
  np.testing.assert_allclose(_sample(2.0, 5.0, given=0), _sample(2.0, given=0), atol=1e-5)


def test_every_step_is_one_call_with_one_branch_per_scale():
  for scales, branches in (((None,), 1), ((2.0,), 2), ((2.0, 3.0), 3)):
    network = _Network()
    _sample(*scales, network=network)
    # The loop's body is traced, not run: the network is called in one place.
    assert set(network.rows) == {branches * ROWS}


def _rows(scale, **settings):
  """Branches of each loop over calls, as the network got them."""
  network = _Network()
  _sample(scale, network=network, **settings)
  # `scan` traces a loop's body more than once.
  return [rows // ROWS for rows, _ in itertools.groupby(network.rows)]


def test_a_branch_without_weight_is_not_computed():
  """Four calls, at t = 1, 3/4, 1/2, 1/4."""
  inside = IntervalGuidance(scale=3.0, low=0.5, high=0.75)
  assert _rows(inside) == [1, 2, 1]
  assert _rows(1.0) == _rows(0.0) == [1]
  assert _rows(1.0, rescale=0.7) == [1] and _rows(0.0, rescale=0.7) == [2]
  assert _rows(2.0, frame_guidance=1.0) == _rows(2.0, frame_guidance=2.0) == [2]
  assert _rows(0.0, frame_guidance=2.0) == [2] and _rows(1.0, frame_guidance=1.0) == [1]
  assert _rows(inside, frame_guidance=2.0) == [3]
  assert _rows(inside, combine=ZeroStar()) == [1, 2, 1]
  assert _rows(PowerCosineGuidance()) == [1, 2]
  # The weights of a scale that is an input are not known.
  unknown = jax.jit(lambda w: len(SamplerConfig(guidance=lambda _: w).active(0.5, branches=2)))
  assert unknown(1.0) == 2


def test_calls_outside_of_an_interval_are_those_of_the_conditional_model():
  """Outside, a scale of one; at its first call inside, the other branch has no estimate yet."""
  nowhere = IntervalGuidance(scale=3.0, low=0.3, high=0.4)
  np.testing.assert_array_equal(_sample(nowhere), _sample(None))
  early, late = (IntervalGuidance(3.0, low, low + 0.3) for low in (0.7, 0.2))
  assert np.abs(_sample(early) - _sample(late)).max() > 1e-3
  # The same as a scale that is one outside, up to the self-condition of the branch that has no weight there.
  network, plain = _Network(remembers=False), _Network(remembers=False)
  traced = lambda time: jnp.where(time < 0.7, 1.0, 3.0)  # noqa: E731
  everywhere = lambda time: jnp.where(time < 0.7, 1.0 + 1e-7, 3.0)  # noqa: E731
  np.testing.assert_allclose(
    _sample(traced, network=network), _sample(everywhere, network=plain), atol=1e-5
  )


def test_a_rule_combines_estimates_of_x0_whatever_the_network_predicts():
  """Plain guidance is linear, so that a projection that removes nothing equals it."""
  plain = AdaptiveProjection(parallel=1.0, momentum=0.0)
  np.testing.assert_allclose(_sample(3.0, combine=plain), _sample(3.0), atol=1e-4)
  changed = [
    _sample(3.0, combine=rule)
    for rule in (AdaptiveProjection(momentum=0.0), AdaptiveProjection(), ZeroStar())
  ]
  assert all(np.abs(one - other).max() > 1e-3 for one, other in itertools.pairwise(changed))
  with pytest.raises(ValueError, match="frame_guidance has three: set one of them"):
    SamplerConfig(combine=ZeroStar(), frame_guidance=ConstantGuidance(2.0))


def test_rescaling_bounds_what_a_large_scale_adds_and_leaves_a_scale_of_one():
  np.testing.assert_allclose(_sample(1.0, rescale=0.7), _sample(1.0), atol=1e-5)
  plain, rescaled = _sample(20.0), _sample(20.0, rescale=1.0)
  assert plain.std() > 2 * rescaled.std()
  with pytest.raises(ValueError, match=r"SamplerConfig.rescale=1.5: expected a share in \[0, 1\]"):
    SamplerConfig(rescale=1.5)


def test_new_noise_changes_the_sample_by_its_share():
  changes = [np.abs(_sample(2.0, solver=Ddim(eta)) - _sample(2.0)).max() for eta in (0.0, 0.1, 1.0)]
  assert changes[0] == 0 < changes[1] < changes[2]
  np.testing.assert_array_equal(_sample(2.0, eta=0.1), _sample(2.0, solver=Ddim(0.1)))
  with pytest.raises(ValueError, match=r"SamplerConfig.eta=-1: expected a share in \[0, 1\]"):
    SamplerConfig(eta=-1)
  with pytest.raises(ValueError, match=r"SamplerConfig.eta=0.5 is for DDIM, and solver is UniPC"):
    SamplerConfig(eta=0.5, solver=UniPC())


def test_a_scale_for_frames_alone_is_rejected():
  with pytest.raises(ValueError, match="frame_guidance is set and guidance is not"):
    SamplerConfig(guidance=None, frame_guidance=ConstantGuidance(2.0))
