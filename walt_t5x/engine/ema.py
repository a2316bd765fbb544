"""Exponential moving average of the parameters, kept as optax state."""

from typing import Any

import jax
import jax.numpy as jnp
import optax


def parameter_ema(decay: float, *, ramp: bool = False) -> optax.GradientTransformation:
  """Keeps `ema <- d * ema + (1 - d) * (params + updates)`. Comes last in a chain and changes no update.

  The state is `optax.EmaState`, which both engines save and partition like the parameters. It starts at the initial
  parameters, so no bias correction is needed. It is float32 regardless of the parameters' dtype.

  Assumption: the paper gives a decay of 0.9999 and no warm-up for it, so `ramp` is off by default.

  Args:
    decay: d, in [0, 1).
    ramp: use `d_n = min(decay, (1 + n) / (10 + n))` at update n = 0, 1, ..., for runs too short to forget the
      initial parameters.

  Raises:
    ValueError: `decay` is out of range.
  """
  if not 0.0 <= decay < 1.0:
    raise ValueError(
      f"parameter_ema: got decay={decay}, expected 0 <= decay < 1. Set ema_decay=None to disable it."
    )

  def init(params: Any) -> optax.EmaState:
    average = jax.tree.map(lambda p: jnp.array(p, dtype=jnp.float32, copy=True), params)
    return optax.EmaState(count=jnp.zeros([], jnp.int32), ema=average)

  def update(updates: Any, state: optax.OptState, params: Any = None) -> tuple[Any, optax.EmaState]:
    assert isinstance(state, optax.EmaState)
    if params is None:
      raise ValueError("parameter_ema: got params=None; call update(grads, state, params).")
    d = jnp.minimum(decay, (1.0 + state.count) / (10.0 + state.count)) if ramp else decay
    average = jax.tree.map(
      lambda e, p, u: d * e + (1.0 - d) * (p.astype(jnp.float32) + u.astype(jnp.float32)),
      state.ema,
      params,
      updates,
    )
    return updates, optax.EmaState(count=optax.safe_increment(state.count), ema=average)

  return optax.GradientTransformation(init, update)
