"""The learning-rate scheduler of T5X's gin files: a product of named factors."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


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
  """A schedule `lr(step) = max(min_learning_rate, prod_i factor_i(step - step_offset))`.

  With s = max(0, step - step_offset) and w = warmup_steps the factors are
    constant                base_learning_rate
    linear_warmup           min(1, s / w)
    linear_decay            base_learning_rate * min(s / w, 1 + decay_factor * (w - s))
    rsqrt_decay             1 / sqrt(max(s, w))
    rsqrt_normalized_decay  sqrt(w / max(s, w))
    decay_every             decay_factor ** floor(s / steps_per_decay)
    cosine_decay            max(0, (1 + cos(pi * frac((s - w)^+ / steps_per_cycle))) / 2)

  Raises:
    ValueError: a factor is unknown.
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
    product = jnp.ones((), jnp.float32)
    for name in names:
      product = product * known[name](s)
    return jnp.maximum(product, min_learning_rate).astype(jnp.float32)

  return schedule
