"""Calls that reuse what the blocks added: which ones, what they compute, and independence of the batch."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_denoiser
from walt_t5x.denoiser.transformer import Conditioning, WaltDenoiser, time_embeddings
from walt_t5x.denoiser.windows import common_cell, from_cells
from walt_t5x.diffusion.guidance import AdaptiveProjection, ConstantGuidance, IntervalGuidance
from walt_t5x.diffusion.process import Prediction
from walt_t5x.diffusion.samplers.caching import CACHES, Cache, EmbeddingChange, EveryNth
from walt_t5x.diffusion.samplers.solvers import UniPC
from walt_t5x.diffusion.schedules import NoiseSchedule
from walt_t5x.models.sampling import SamplerConfig, sample_latents

ROWS, SHAPE = 2, (3, 4, 4, 4)
CALLS, SCALE = 6, 3.0
SCHEDULE = NoiseSchedule()
MODULE = WaltDenoiser(**tiny_denoiser.FIELDS, num_classes=3)


def _conditioning(labels):
  return Conditioning(labels=jnp.asarray(labels)[:, None])


@functools.cache
def _inputs():
  """Weights and noise; the weights of a new network would hide what the blocks do."""
  rng = np.random.default_rng(0)
  noise = jnp.asarray(rng.normal(size=(ROWS, *SHAPE)), jnp.float32)
  shapes = jax.eval_shape(
    lambda: MODULE.init(jax.random.key(0), noise, jnp.ones(ROWS), None, _conditioning([0, 1]))
  )
  draw = lambda leaf: jnp.asarray(rng.normal(scale=0.2, size=leaf.shape), jnp.float32)  # noqa: E731
  return jax.tree.map(draw, shapes["params"]), noise


def _config(cache, **settings):
  settings = {"num_steps": CALLS, "guidance": ConstantGuidance(SCALE)} | settings
  return SamplerConfig(cache=cache, **settings)


def _sampler(cache, **settings):
  """A function of the rows to sample, compiled once for each number of them."""

  @jax.jit
  def run(params, noise, labels):
    return sample_latents(
      MODULE,
      params,
      noise,
      conditioning=_conditioning(labels),
      unconditional=_conditioning(jnp.full_like(labels, -1)),
      schedule=SCHEDULE,
      prediction=Prediction.V,
      config=_config(cache, **settings),
    )

  def sampled(rows=slice(None)):
    params, noise = _inputs()
    return np.asarray(run(params, np.asarray(noise)[rows], np.array([0, 1])[rows]))

  return sampled


def _sample(cache, **settings):
  return _sampler(cache, **settings)()


@functools.cache
def _reused(cache):
  @jax.jit
  def reused(params):
    steps = jnp.asarray(_config(None).call_steps(SCHEDULE))
    embeddings = time_embeddings(MODULE, params, steps)
    return _config(cache).reused(SCHEDULE, branches=2, embeddings=embeddings)

  return np.asarray(reused(_inputs()[0]))


# Some calls reuse, of the embedding that the random weights give.
SOME = EmbeddingChange(threshold=2.0)


def test_with_a_rule_that_reuses_nothing_the_samples_are_the_same_bytes():
  plain = _sample(None)
  for cache in (EveryNth(every=1), EveryNth(low=0.001, high=0.002), EmbeddingChange(threshold=0.0)):
    np.testing.assert_array_equal(_sample(cache), plain)
  assert np.abs(_sample(EveryNth()) - plain).max() > 1e-3


def test_reuse_after_the_first_call_is_a_loop_that_keeps_what_the_blocks_added():
  """DDIM with two branches, by hand; the change from the layers' own outputs."""
  params, noise = _inputs()
  conditions = _conditioning([0, 1, -1, -1])
  steps = np.linspace(1000, 0, CALLS + 1).round().astype(int)
  x, before, change = np.asarray(noise, np.float64), np.zeros((2 * ROWS, *SHAPE)), None
  network = functools.partial(MODULE.apply, {"params": params})
  first = jax.jit(functools.partial(network, capture_intermediates=True, mutable=["intermediates"]))
  following_calls = jax.jit(network)
  for step, following in itertools.pairwise(steps):
    inputs = (
      np.concatenate([x, x]).astype(np.float32),
      np.full(2 * ROWS, step),
      before.astype(np.float32),
      conditions,
    )
    if change is None:
      output, found = first(*inputs)
      seen = found["intermediates"]
      cell = common_cell(MODULE.spatial_window, MODULE.spatiotemporal_window)
      after = from_cells(seen["pairs_0"]["__call__"][0][0], cell)
      change = after - seen["position_embedding"]["__call__"][0]
    else:
      output = following_calls(*inputs, block_change=change)
    a, s = np.sqrt(SCHEDULE.gammas[step]), np.sqrt(1 - SCHEDULE.gammas[step])
    output = np.asarray(output, np.float64)
    before = a * np.concatenate([x, x]) - s * output
    conditional, unconditional = np.split(output, 2)
    v = unconditional + SCALE * (conditional - unconditional)
    x0, noised = a * x - s * v, s * x + a * v
    gamma = SCHEDULE.gammas[following]
    x = np.sqrt(gamma) * x0 + np.sqrt(1 - gamma) * noised
  np.testing.assert_allclose(_sample(EveryNth(every=CALLS)), x, atol=2e-5 * np.abs(x).max())


@pytest.mark.parametrize(
  ("cache", "settings"),
  [
    (None, {}),
    (EveryNth(every=2), {}),
    (EveryNth(every=4, low=0.2, high=0.9), {}),
    # Two branches in calls 2 to 4 of 6.
    (EveryNth(every=2), {"guidance": IntervalGuidance(SCALE, low=0.4, high=0.9)}),
    (EveryNth(every=3), {"solver": UniPC(), "combine": AdaptiveProjection()}),
    (SOME, {}),
  ],
)
def test_the_blocks_run_as_often_as_planned(cache, settings, monkeypatch):
  ran, blocks = [], WaltDenoiser._blocks

  def counted(self, x, inputs):
    jax.debug.callback(lambda: ran.append(len(x) // ROWS))
    return blocks(self, x, inputs)

  monkeypatch.setattr(WaltDenoiser, "_blocks", counted)
  _sample(cache, **settings)
  jax.effects_barrier()
  planned = _config(cache, **settings).branch_counts(SCHEDULE, branches=2)
  if cache is SOME:
    planned = 2 * ~_reused(cache)
  assert len(planned) == CALLS and sorted(ran) == sorted(count for count in planned if count)


@pytest.mark.parametrize("cache", [EveryNth(every=3), SOME])
def test_a_sample_does_not_depend_on_its_batch(cache):
  sampled = _sampler(cache)
  together = sampled()
  alone = [sampled(slice(row, row + 1))[0] for row in range(ROWS)]
  np.testing.assert_allclose(together, alone, atol=1e-5 * np.abs(together).max())


def test_every_nth_call_of_those_in_the_interval_computes():
  times, first = np.linspace(1, 0.125, 8), np.arange(8) == 0

  def drawn(first=first, **fields):
    return "".join(".r"[int(reuses)] for reuses in EveryNth(**fields).reused(times, first=first))

  assert drawn(every=1) == "........" and drawn(every=2) == ".r.r.r.r"
  assert drawn(every=3) == ".rr.rr.r" and drawn(every=9) == ".rrrrrrr"
  # t = 0.75 to 0.375 are inside.
  assert drawn(every=2, low=0.3, high=0.8) == "..r.r..."
  assert drawn(every=9, low=0.3, high=0.8) == "..rrrr.."
  assert drawn(every=3, first=(np.arange(8) == 0) | (np.arange(8) == 4)) == ".rr..rr."


def test_calls_reuse_until_the_embedding_has_changed_by_the_threshold():
  rng = np.random.default_rng(1)
  embeddings = np.cumsum(rng.uniform(0.1, 1.0, size=(9, 1)) * rng.normal(size=(9, 5)), axis=0)
  first = np.isin(np.arange(9), (0, 5))
  for threshold in (0.0, 0.5, 1.5, 100.0):
    expected, total = [], 0.0
    for call in range(9):
      change = 0.0
      if call:
        change = (
          abs(embeddings[call] - embeddings[call - 1]).sum() / abs(embeddings[call - 1]).sum()
        )
      total += change
      expected.append(bool(total < threshold and not first[call] and call < 8))
      total = total if expected[-1] else 0.0
    found = EmbeddingChange(threshold).reused(
      np.linspace(1, 0.1, 9), first=first, embeddings=jnp.asarray(embeddings, jnp.float32)
    )
    assert np.asarray(found).tolist() == expected
  # The network of these tests reuses in some calls, by its own embedding.
  assert 0 < _reused(SOME).sum() < CALLS - 2


def test_only_a_call_that_keeps_what_the_blocks_added_computes_it():
  params, noise = _inputs()

  def operations(**options):
    network = functools.partial(MODULE.apply, {"params": params}, **options)
    inputs = (noise, jnp.ones(ROWS), None, _conditioning([0, 1]))
    return len(jax.make_jaxpr(network)(*inputs).eqns)

  # One subtraction.
  assert operations(mutable=["intermediates"]) == operations() + 1


def test_settings_that_make_no_sense_are_rejected():
  with pytest.raises(ValueError, match=r"EveryNth.every=0: expected a number from 1 on"):
    EveryNth(every=0)
  with pytest.raises(ValueError, match=r"low=0.5, high=0.5, expected 0 <= low < high <= 1"):
    EveryNth(low=0.5, high=0.5)
  with pytest.raises(
    ValueError, match=r"EmbeddingChange.threshold=-1.0: expected a number from 0 on"
  ):
    EmbeddingChange(threshold=-1.0)
  assert all(isinstance(cls(), Cache) for cls in CACHES)


def test_samplers_of_gin_files_keep_their_cache():
  config = _config(EveryNth(3))
  assert config.changed(num_steps=5, guidance=None).cache == EveryNth(3)
  assert dataclasses.replace(config, cache=None).reused(SCHEDULE, branches=2) is None
