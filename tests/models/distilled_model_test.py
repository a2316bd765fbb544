"""The student's target is what the teacher's own sampler makes, and a student starts as its teacher."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.corpus import CorpusConstants
from tests import tiny_denoiser
from tests.random_params import random_params
from walt_t5x.denoiser.transformer import Conditioning, WaltDenoiser
from walt_t5x.diffusion.guidance import AdaptiveProjection, ConstantGuidance, PowerCosineGuidance
from walt_t5x.diffusion.samplers.grids import EvenAngle, LogSnr, Trailing
from walt_t5x.models.denoiser_inputs import drop
from walt_t5x.models.denoiser_model import DenoiserModel
from walt_t5x.models.distilled_model import DistilledModel
from walt_t5x.models.sampling import SamplerConfig

TINY = tiny_denoiser.FIELDS | {"text_dim": 6, "frame_prediction": True}
CORPUS = CorpusConstants(null_text=np.full((1, 6), 0.3, np.float32))
ROWS = 3
SHAPE = (ROWS, 3, 4, 4, 4)


def _batch(rows=ROWS, seed=0):
  rng = np.random.default_rng(seed)
  return {
    "latents": jnp.asarray(rng.normal(size=(rows, *SHAPE[1:])), jnp.float32),
    "is_image": jnp.asarray(np.arange(rows) % 2 == 1),
    "text": jnp.asarray(rng.normal(size=(rows, 3, 5, 6)), jnp.float32),
    "text_mask": jnp.ones((rows, 3, 5), bool),
  }


def _teacher(guidance, *, range_=None, **sampler):
  return DenoiserModel(
    module=WaltDenoiser(**TINY, guidance_range=range_),
    optimizer_def=None,
    sampler=SamplerConfig(guidance=guidance, **sampler),
    corpus=lambda: CORPUS,
  )


def _student(teacher, calls, *, substeps=2, range_=None, grid=Trailing(), **settings):  # noqa: B008
  return DistilledModel(
    teacher=teacher,
    substeps=substeps,
    module=teacher.module.clone(guidance_range=range_),
    optimizer_def=None,
    sampler=SamplerConfig(num_steps=calls, guidance=None, grid=grid),
    corpus=lambda: CORPUS,
    **settings,
  )


@functools.cache
def _params(range_=None):
  """Random everywhere, so that no zero initialization hides an error."""
  model, batch = _teacher(None, range_=range_), _batch()
  shapes = {name: value.shape for name, value in batch.items()}
  types = {name: value.dtype for name, value in batch.items()}
  return random_params(lambda key: model.get_initial_variables(key, shapes, types), seed=1)


def _conditions(model):
  frames = jnp.asarray(np.random.default_rng(4).normal(size=SHAPE), jnp.float32)
  conditioning = dataclasses.replace(
    model.conditioning(_batch()), frames=frames, frame_mask=jnp.zeros(SHAPE[:2]).at[0, 0].set(1.0)
  )
  rows = jnp.ones((ROWS, 3), bool)
  nothing = drop(conditioning, rows, frames=jnp.ones(ROWS, bool), null_text=CORPUS.null_text)
  return conditioning, nothing


# A grid alone decides at which times the network is called, so the second one needs only the scale of time.
@pytest.mark.parametrize(
  "guidance, sampler, grid, tolerance",
  [
    (None, {}, Trailing(), 2e-5),
    (ConstantGuidance(3.0), {"rescale": 0.7}, Trailing(), 2e-5),
    (PowerCosineGuidance(3.0, 1.0), {}, Trailing(), 2e-5),
    (PowerCosineGuidance(3.0, 1.0), {}, EvenAngle(), 2e-2),
  ],
  ids=["one prediction", "rescaled", "a scale of time", "even angles"],
)
def test_the_steps_of_a_teacher_are_those_of_its_sampler(guidance, sampler, grid, tolerance):
  teacher = _teacher(guidance, num_steps=2, grid=grid, **sampler)
  student = _student(teacher, 1, substeps=2, grid=grid)
  conditioning, nothing = _conditions(teacher)
  noise = jnp.asarray(np.random.default_rng(7).normal(size=SHAPE), jnp.float32)
  made = jax.jit(functools.partial(student.teacher_steps, scale=None))(
    _params(), noise, start=jnp.full(ROWS, 1000.0), stop=jnp.zeros(ROWS),
    conditioning=conditioning, unconditional=None if guidance is None else nothing,
  )  # fmt: skip
  sampled = jax.jit(functools.partial(teacher.sample, null_text=CORPUS.null_text))(
    _params(), noise, conditioning
  )
  # A sampler's steps are integers; half of an angle is rounded to one.
  np.testing.assert_allclose(made, sampled, atol=tolerance * float(jnp.abs(sampled).max()))


def test_each_example_is_guided_by_the_scale_that_the_student_reads():
  """Not by that of the teacher's sampler."""
  teacher = _teacher(ConstantGuidance(2.0), num_steps=2)
  student = _student(teacher, 1, range_=(1.0, 5.0))
  conditioning, nothing = _conditions(teacher)
  noise = jnp.asarray(np.random.default_rng(7).normal(size=SHAPE), jnp.float32)
  made = jax.jit(student.teacher_steps)(
    _params(), noise, start=jnp.full(ROWS, 1000.0), stop=jnp.zeros(ROWS),
    conditioning=conditioning, unconditional=nothing, scale=jnp.array([2.0, 4.0, 2.0]),
  )  # fmt: skip

  @jax.jit
  def sample(params, scale):
    teacher.sampler = SamplerConfig(num_steps=2, guidance=lambda _: scale)
    return teacher.sample(params, noise, conditioning, null_text=CORPUS.null_text)

  made = np.asarray(made)
  for scale, rows in ((2.0, [0, 2]), (4.0, [1])):
    sampled = np.asarray(sample(_params(), scale))[rows]
    np.testing.assert_allclose(made[rows], sampled, atol=2e-5 * np.abs(sampled).max())


def test_one_step_with_the_target_leads_where_the_teacher_went():
  """Held against the formula of DDIM in float64, at times where sampling starts, continues and ends."""
  student = _student(_teacher(None), 4)
  rng = np.random.default_rng(3)
  start, stop = np.array([1000.0, 612.5, 20.0]), np.array([750.0, 362.5, 0.0])
  x_t, x_u = (rng.normal(size=SHAPE).astype(np.float32) for _ in range(2))
  x0 = student.single_step_estimate(
    jnp.asarray(x_t), jnp.asarray(x_u),
    start=jnp.asarray(start, jnp.float32), stop=jnp.asarray(stop, jnp.float32),
  )  # fmt: skip
  roots = np.sqrt(student.schedule.gammas)

  def weights(steps):
    low = np.minimum(np.floor(steps).astype(int), 999)
    a = (low + 1 - steps) * roots[low] + (steps - low) * roots[low + 1]
    return (each.reshape(-1, 1, 1, 1, 1) for each in (a, np.sqrt(1 - a**2)))

  (a, s), (next_a, next_s) = weights(start), weights(stop)
  noise = (x_t - a * np.asarray(x0)) / s
  np.testing.assert_allclose(next_a * np.asarray(x0) + next_s * noise, x_u, atol=2e-4)


def _loss(student, teacher_params, params, key=3):
  return _run(jax.jit(student.loss_fn), teacher_params, params, key)


def _run(loss_fn, teacher_params, params, key=3):
  found, (metrics, kept) = loss_fn(
    params, _batch(8), jax.random.key(key), {"teacher": teacher_params}
  )
  return float(found), metrics, kept


def test_a_student_of_one_short_step_starts_as_its_teacher():
  """A step that is as long as the teacher's makes the teacher's output, so the loss is that of rounding."""
  params = _params()

  @jax.jit
  def loss_fn(scale, *inputs):
    student = _student(
      _teacher(lambda _: scale), 1000, substeps=1, self_conditioning_probability=1.0
    )
    return student.loss_fn(*inputs)

  loss, _, kept = _run(functools.partial(loss_fn, 1.0), params, params)
  assert loss < 1e-5
  jax.tree.map(np.testing.assert_array_equal, kept["teacher"], params)
  # Guided, the target is another one; so is that of two long steps.
  assert _run(functools.partial(loss_fn, 3.0), params, params)[0] > 1e-3
  long = _student(_teacher(None), 2, substeps=2, self_conditioning_probability=1.0)
  assert _loss(long, params, params)[0] > 1e-3


def test_no_gradient_reaches_the_teacher():
  # The student's first pass has no part in its target.
  student = _student(_teacher(ConstantGuidance(2.0)), 4, self_conditioning_probability=0.0)

  def loss(params, teacher):
    return student.loss_fn(params, _batch(), jax.random.key(0), {"teacher": teacher})[0]

  own, others = jax.jit(jax.grad(loss, argnums=(0, 1)))(_params(), _params())
  assert all(not np.any(g) for g in jax.tree.leaves(others))
  assert all(np.any(g) for g in jax.tree.leaves(own["output"]))


def test_the_scale_of_guidance_is_an_input():
  range_ = (1.0, 5.0)
  teacher = _teacher(ConstantGuidance(2.0))
  student = _student(teacher, 4, range_=range_)
  batch = _batch()
  shapes = {name: value.shape for name, value in batch.items()}
  types = {name: value.dtype for name, value in batch.items()}
  new = set()

  @jax.jit
  def last_kernel():
    params = student.get_initial_variables(jax.random.key(0), shapes, types)["params"]
    new.update(params.keys() - _params().keys())
    return params["guidance_mlp"]["out"]["kernel"]

  # It starts without an effect. The other variables need not be compiled.
  assert not np.any(last_kernel())
  assert new == {"guidance_mlp"}

  model = student.plain()
  conditioning, _ = _conditions(model)
  noise = jnp.asarray(np.random.default_rng(7).normal(size=SHAPE), jnp.float32)

  @jax.jit
  def sampled(params, scale):
    guidance = None if scale is None else lambda _: scale
    model.sampler = SamplerConfig(num_steps=2, guidance=guidance)
    assert model.branches == 1
    return model.sample(params, noise, conditioning)

  one, none, four = (sampled(_params(range_), scale) for scale in (1.0, None, 4.0))
  np.testing.assert_array_equal(one, none)
  assert float(jnp.abs(four - one).max()) > 1e-2
  with pytest.raises(ValueError, match=r"guidance_range=\(1.0, 5.0\) needs Conditioning.guidance"):
    jax.eval_shape(
      lambda: model.module.apply(
        {"params": _params(range_)}, noise, jnp.ones(ROWS), None, conditioning
      )
    )


def test_a_teacher_that_reads_the_scale_gets_that_of_its_student():
  range_ = (1.0, 5.0)
  teacher = _teacher(ConstantGuidance(2.0), range_=range_)
  student = _student(teacher, 1000, substeps=1, range_=range_, self_conditioning_probability=1.0)
  params = _params(range_)
  assert _loss(student, params, params)[0] < 1e-5
  with pytest.raises(ValueError, match="expected guidance_range of the student"):
    _loss(_student(teacher, 4), params, _params())


def test_what_cannot_be_distilled_is_rejected():
  with pytest.raises(ValueError, match=r"grid is LogSnr.*expected one that can be divided"):
    _student(_teacher(None), 4, grid=LogSnr())
  with pytest.raises(ValueError, match=r"combine=AdaptiveProjection.*expected one scale"):
    _student(_teacher(ConstantGuidance(2.0), combine=AdaptiveProjection()), 4)
  with pytest.raises(ValueError, match=r"guidance_range=\(1.0, 2.0\) and the teacher"):
    _student(_teacher(None), 4, range_=(1.0, 2.0))


def test_intervals_are_those_of_the_grid_or_of_its_length():
  student = _student(_teacher(None), 4, grid_share=1.0)
  start, stop = student._draw_interval(jax.random.key(0), 200)
  pairs = set(zip(np.asarray(start).tolist(), np.asarray(stop).tolist()))
  assert pairs == {(1000.0, 750.0), (750.0, 500.0), (500.0, 250.0), (250.0, 0.0)}
  free = _student(_teacher(None), 4, grid_share=0.0)
  start, stop = map(np.asarray, free._draw_interval(jax.random.key(0), 200))
  np.testing.assert_allclose(stop, np.maximum(start - 250, 0), atol=1e-3)
  assert start.max() <= 1000 and len(set(start.tolist())) > 150


@pytest.mark.parametrize("grid", [Trailing(), EvenAngle()])
def test_no_interval_starts_where_the_noise_is_that_of_rounding(grid):
  """The estimate divides by the weight of the noise."""
  free = _student(_teacher(None), 4, grid_share=0.0, grid=grid)
  start, stop = free._draw_interval(jax.random.key(0), 20_000)
  assert float(start.min()) == 1
  x = jnp.ones((20_000, 1, 1, 1, 1))
  assert bool(jnp.isfinite(free.single_step_estimate(x, x, start=start, stop=stop)).all())


def test_conditions_of_a_student_are_never_dropped():
  """Guidance is in its target; without its text it would learn the guided mean of all texts."""
  student = _student(_teacher(ConstantGuidance(2.0)), 4, drop_probability=0.0)
  batch = _batch()
  conditioning = student._training_conditioning(
    batch, batch["latents"], jax.random.key(0), null_text=CORPUS.null_text
  )
  assert isinstance(conditioning, Conditioning)
  np.testing.assert_array_equal(conditioning.text, batch["text"])
