"""The sampling loop: every solver and grid, with self-conditioning.

The self-condition (Section 4.3) is the x_0 estimate of the previous network call, zeros at the first one. Assumption:
each branch of guidance gets its own estimate, as in training. A guided x_0 lies outside the data, and fed back it would
be extrapolated again in every step. Solvers extrapolate the guided estimates.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from walt_t5x.diffusion.process import Prediction, to_x0_and_noise
from walt_t5x.diffusion.samplers.grids import Grid, Trailing
from walt_t5x.diffusion.samplers.solvers import Ddim, Solver, Weights
from walt_t5x.diffusion.schedules import NoiseSchedule


class Call(NamedTuple):
  """A call of the network.

  Attributes:
    x_t: noised samples [B, ...].
    steps: diffusion step of each [B] int32.
    self_condition: of each active branch [n, B, ...].
    time: in [0, 1], the same for all.
    active: the branches to compute.
    memory: what the call before returned.
    kept: what the last call that computed has kept, to be reused; None computes.
  """

  x_t: Array
  steps: Array
  self_condition: Array
  time: Array
  active: tuple[int, ...]
  memory: Array | None
  kept: Array | None = None


class Denoised(NamedTuple):
  """Results of a call.

  Attributes:
    guided: the output [B, ...] that makes the step.
    outputs: those of the active branches [n, B, ...], which make their self-conditions.
    memory: given to the next call; None if `sample` got none.
    kept: given to the following calls that reuse.
  """

  guided: Array
  outputs: Array
  memory: Array | None = None
  kept: Array | None = None


DenoiseFn = Callable[[Call], Denoised]


def _new_noise(initial_noise: Float[Array, "B ..."], step: Array) -> Array:
  """Standard normal of the same shape; that of an example depends on its initial noise and the step alone."""

  def draw(example: Array) -> Array:
    bits = jnp.sum(jax.lax.bitcast_convert_type(example, jnp.uint32), dtype=jnp.uint32)
    # Not the default generator: under `vmap`, those of the hardware depend on the other examples.
    key = jax.random.fold_in(jax.random.key(bits, impl="threefry2x32"), step)
    return jax.random.normal(key, example.shape)

  return jax.vmap(draw)(initial_noise.astype(jnp.float32))


def call_points(
  schedule: NoiseSchedule, num_steps: int, solver: Solver, grid: Grid
) -> tuple[Weights, np.ndarray]:
  """The solver's weights, and the diffusion step of each of `num_steps` calls, int32."""
  zero_snr = schedule.gammas[-1] == 0
  steps = grid(schedule, solver.intervals(num_steps, zero_snr=bool(zero_snr)))
  weights = solver.weights(schedule.gammas[steps], num_steps)
  return weights, steps[weights.points]


def sample(
  denoise: DenoiseFn,
  initial_noise: Float[Array, "B ..."],
  *,
  schedule: NoiseSchedule,
  num_steps: int = 50,
  prediction: Prediction = Prediction.V,
  branches: int = 1,
  active: Callable[[float], tuple[int, ...]] | None = None,
  memory: Float[Array, "B ..."] | None = None,
  reused: np.ndarray | Bool[Array, " n"] | None = None,
  solver: Solver = Ddim(),  # noqa: B008 - frozen
  grid: Grid = Trailing(),  # noqa: B008 - frozen
) -> Float[Array, "B ..."]:
  """Runs all sampling steps on the device.

  Args:
    denoise: the network and its guidance.
    initial_noise: x_K, standard normal, of the shape of the sample.
    schedule: the noise schedule; its num_steps is the start of the grid.
    num_steps: network calls; 50 in the paper for every stage.
    prediction: what `denoise` returns.
    branches: the number of outputs that guidance combines.
    active: the branches that matter at a time; all by default. A branch that was not computed in the call before has
      zeros as its self-condition.
    memory: of the guidance, for the first call.
    reused: calls that reuse what the last one that computed has kept, see `caching`; None for none. The first call of
      all, and after a change of the active branches, computes.
    solver: what is done with the estimates. New noise of an example depends on its initial noise alone, not on the
      others in the batch.
    grid: where the network is called.

  Returns:
    x_0, float32, of the shape of `initial_noise`.
  """
  weights, at = call_points(schedule, num_steps, solver, grid)
  history = (
    int(np.flatnonzero((weights.correct != 0).any(0) | (weights.predict != 0).any(0))[-1]) - 1
  )
  corrects = (weights.correct != weights.correct[0]).any()
  remembers = weights.predict[:, 1].any() or corrects
  batch = initial_noise.shape[0]

  def weighted(row: Array, *arrays: Array) -> Array:
    terms = [row[place] * array for place, array in enumerate(arrays)]
    return functools.reduce(jnp.add, terms)

  def call(carry, level, *, computed: tuple[int, ...], kept: Array | None = None):
    x_t, before, estimates, self_conditions, memory = carry
    step, current, correct, predict, share = level
    gamma, everything = jnp.full((batch,), current), computed == tuple(range(branches))
    chosen = np.array(computed)
    denoised = denoise(
      Call(
        x_t=x_t,
        steps=jnp.full((batch,), step, jnp.int32),
        self_condition=self_conditions if everything else self_conditions[chosen],
        time=step.astype(jnp.float32) / schedule.num_steps,
        active=computed,
        memory=memory,
        kept=kept,
      )
    )
    x0 = lambda output: to_x0_and_noise(prediction, output, x_t=x_t, gamma=gamma)[0]  # noqa: E731
    estimates = (x0(denoised.guided), *estimates[:-1])
    found = jax.vmap(x0)(denoised.outputs)
    if not everything:
      found = jnp.zeros_like(self_conditions).at[chosen].set(found)
    if corrects:
      x_t = weighted(correct, x_t, before, *estimates)
    # A weight of zero, as in the step to gamma = 1, removes a state exactly.
    following = weighted(predict, x_t, before, *estimates)
    if weights.noise.any():
      following += share * _new_noise(initial_noise, step)
    before = x_t if remembers else before
    return (following, before, estimates, found, denoised.memory), denoised.kept

  floats = (schedule.gammas[at], weights.correct, weights.predict, weights.noise)
  levels = (jnp.asarray(at), *(jnp.asarray(each, jnp.float32) for each in floats))
  start = initial_noise.astype(jnp.float32)
  nothing = jnp.zeros_like(start)
  self_conditions = jnp.zeros((branches, *start.shape), jnp.float32)
  carry = (start, nothing, (nothing,) * history, self_conditions, memory)
  # Successive calls of the same branches are one loop.
  branches_at = (lambda _: tuple(range(branches))) if active is None else active
  computed = [branches_at(float(np.float32(step) / np.float32(schedule.num_steps))) for step in at]
  first = 0
  for branches_now, same in itertools.groupby(computed):
    last = first + len(list(same))
    part = tuple(values[first:last] for values in levels)
    each = functools.partial(call, computed=branches_now)
    if reused is None:
      carry, _ = jax.lax.scan(each, carry, part)
    else:
      carry = _scan_with_reuse(each, carry, part, jnp.asarray(reused[first:last]))
    first = last
  return carry[0]


def _scan_with_reuse(
  call: Callable[..., tuple[Any, Any]], carry: Any, levels: Any, reused: Array
) -> Any:
  """The last carry of a scan over n calls, of which those of `reused` [n] get what the one before them has kept.

  A loop over the calls that compute, with a loop over those that reuse inside of it: no call is compiled with a choice,
  which would keep the compiler from computing once what is the same in all calls.
  """
  count = len(reused)
  again = jnp.append(reused, False)

  def level(i: Array) -> Any:
    return jax.tree.map(lambda values: values[i], levels)

  def compute_and_reuse(state: tuple[Array, Any]) -> tuple[Array, Any]:
    i, carry = state
    carry, kept = call(carry, level(i))

    def reuse(state: tuple[Array, Any]) -> tuple[Array, Any]:
      i, carry = state
      return i + 1, call(carry, level(i), kept=kept)[0]

    return jax.lax.while_loop(lambda state: again[state[0]], reuse, (i + 1, carry))

  start = (jnp.int32(0), carry)
  return jax.lax.while_loop(lambda state: state[0] < count, compute_and_reuse, start)[1]
