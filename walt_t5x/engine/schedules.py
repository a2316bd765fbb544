"""Learning-rate schedules as functions of the step, for both the optimizer and the trainer's log.

`create_learning_rate_scheduler` is the one of T5X's gin files.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

Schedule = Callable[[jax.typing.ArrayLike], jax.Array]


def warmup_constant(*, peak: float, warmup_steps: int = 0) -> Schedule:
  """`peak * min(1, (step + 1) / warmup_steps)`: the first update uses step 0 and already moves the parameters."""
  warmup = _warmup(peak, warmup_steps)
  return lambda step: jnp.asarray(peak * warmup(step), jnp.float32)


def warmup_cosine(
  *, peak: float, total_steps: int, warmup_steps: int = 0, end_fraction: float = 0.0
) -> Schedule:
  """Linear warm-up to `peak`, then half a cosine down to `end_fraction * peak` at `total_steps`, then flat.

  After the warm-up, with s = (step - warmup_steps) / (total_steps - warmup_steps) in [0, 1]:
  `peak * (end_fraction + (1 - end_fraction) * (1 + cos(pi * s)) / 2)`.

  `total_steps` includes the warm-up and must exceed it; `end_fraction` is in [0, 1].
  """
  warmup = _warmup(peak, warmup_steps)
  if total_steps <= warmup_steps:
    raise ValueError(
      f"warmup_cosine: got {total_steps=} with {warmup_steps=}; the decay needs total_steps > warmup_steps. Set "
      f"--gin.schedules.warmup_cosine.warmup_steps={total_steps // 10}, or TRAIN_STEPS to more than {warmup_steps}."
    )
  if not 0.0 <= end_fraction <= 1.0:
    raise ValueError(
      f"warmup_cosine: got {end_fraction=}, expected a fraction of the peak in [0, 1]."
    )

  def schedule(step: jax.typing.ArrayLike) -> jax.Array:
    step = jnp.asarray(step, jnp.float32)
    s = jnp.clip((step - warmup_steps) / (total_steps - warmup_steps), 0.0, 1.0)
    cosine = end_fraction + (1.0 - end_fraction) * 0.5 * (1.0 + jnp.cos(jnp.pi * s))
    return jnp.asarray(peak * jnp.where(step < warmup_steps, warmup(step), cosine), jnp.float32)

  return schedule


def create_learning_rate_scheduler(
  factors: str = "constant * linear_warmup * rsqrt_decay",
  base_learning_rate: float = 0.5,
  warmup_steps: int = 1000,
  decay_factor: float = 0.5,
  steps_per_decay: int = 20000,
  steps_per_cycle: int = 100000,
  step_offset: int = 0,
  min_learning_rate: float = 1e-8,
) -> Callable[[jax.typing.ArrayLike], jax.Array]:
  """A product of named factors: `lr(step) = max(min_learning_rate, prod_i factor_i(step - step_offset))`.

  The factors are those of `known` below, with s = max(0, step - step_offset) and w = warmup_steps.
  """
  w = warmup_steps
  known: dict[str, Callable[[jax.Array], jax.Array]] = {
    "constant": lambda s: jnp.full_like(s, base_learning_rate),
    "linear_warmup": lambda s: jnp.minimum(1.0, s / w),
    "linear_decay": lambda s: base_learning_rate * jnp.minimum(s / w, 1.0 + decay_factor * (w - s)),
    "rsqrt_decay": lambda s: 1.0 / jnp.sqrt(jnp.maximum(s, w)),
    "rsqrt_normalized_decay": lambda s: jnp.sqrt(w / jnp.maximum(s, w)),
    "decay_every": lambda s: decay_factor ** jnp.floor(s / steps_per_decay),
    "cosine_decay": lambda s: jnp.maximum(
      0.0, 0.5 * (1.0 + jnp.cos(jnp.pi * (jnp.maximum(0.0, (s - w) / steps_per_cycle) % 1.0)))
    ),
  }
  names = [name.strip() for name in factors.split("*")]
  unknown = [name for name in names if name not in known]
  if unknown:
    raise ValueError(
      f"create_learning_rate_scheduler: unknown factors {unknown} in {factors!r}; known: {sorted(known)}."
    )

  def schedule(step: jax.typing.ArrayLike) -> jax.Array:
    s = jnp.maximum(0.0, jnp.asarray(step, jnp.float32) - step_offset)
    product = math.prod((known[name](s) for name in names), start=jnp.ones((), jnp.float32))
    return jnp.maximum(product, min_learning_rate).astype(jnp.float32)

  return schedule


def _warmup(peak: float, warmup_steps: int) -> Schedule:
  """The fraction of the peak during the warm-up, 1 after it."""
  if peak < 0.0 or warmup_steps < 0:
    raise ValueError(
      f"learning-rate schedule: got {peak=} and {warmup_steps=}, expected a rate and a number of steps >= 0."
    )
  return lambda step: jnp.minimum(
    1.0, (jnp.asarray(step, jnp.float32) + 1.0) / max(1, warmup_steps)
  )
