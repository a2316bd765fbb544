"""Optimizer factories for gin. Each returns an `OptaxWrapper`, which both engines train with."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from walt_t5x import engine
from walt_t5x.engine.adafactor import scale_by_factored_rms

ScalarOrSchedule = float | Callable[[Any], Any]


def adamw_chain(
  learning_rate: ScalarOrSchedule,
  *,
  b1: float = 0.9,
  b2: float = 0.99,
  eps: float = 1e-8,
  weight_decay: float = 0.0,
  weight_decay_names: Sequence[str] | None = None,
  clip_norm: float | None = 1.0,
  ema_decay: float | None = None,
  ema_ramp: bool = False,
  num_microbatches: int | None = None,
) -> optax.GradientTransformation:
  """Clip by global norm, Adam, decoupled weight decay, learning rate, parameter average: a plain optax chain.

  Use it inside `optax.multi_transform` when parts of a model need different optimizers.

  Source: Loshchilov & Hutter, Decoupled Weight Decay Regularization (AdamW).

  Args:
    learning_rate: a number, or a schedule (`walt_t5x.engine.schedules`).
    b1, b2: decay of the first and of the second moment.
    eps: added to the root of the second moment.
    weight_decay: decoupled decay, multiplied by the learning rate; 0 disables it.
    weight_decay_names: decay only parameters whose last name is listed (for example `("kernel",)`); None decays all.
    clip_norm: gradients above this global norm are scaled down to it; None disables clipping.
    ema_decay: decay of the parameter average (`parameter_ema`); None disables it.
    ema_ramp: shorten the average's memory in the first steps, see `parameter_ema`.
    num_microbatches: the trainer's `num_microbatches`. The built-in engine averages the gradients of microbatches
      and ignores this; T5X adds them, so under T5X the chain divides by it. Losses here are means over examples.
  """
  mask = None
  if weight_decay_names is not None:
    mask = functools.partial(
      jax.tree_util.tree_map_with_path, lambda path, _: path[-1].key in weight_decay_names
    )
  return _chain(
    _microbatch_mean(num_microbatches),
    None if clip_norm is None else optax.clip_by_global_norm(clip_norm),
    optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
    optax.add_decayed_weights(weight_decay, mask=mask) if weight_decay else None,
    optax.scale_by_learning_rate(learning_rate),
    None if ema_decay is None else parameter_ema(ema_decay, ramp=ema_ramp),
  )


def adafactor_chain(
  learning_rate: ScalarOrSchedule,
  *,
  decay_rate: float = 0.8,
  momentum: float | None = None,
  clip_norm: float | None = 1.0,
  clip_update_rms: float | None = 1.0,
  min_dim_size_to_factor: int = 64,
  weight_decay: float = 0.0,
  ema_decay: float | None = None,
  ema_ramp: bool = False,
) -> optax.GradientTransformation:
  """Clip by global norm, factored RMS, clip each update's RMS, momentum, decay, learning rate, parameter average.

  Assumption: the paper specifies only Adafactor with absolute peak learning rates. Updates are therefore not scaled by
  the size of the parameters, momentum is off, and the other settings are those of the Adafactor paper.

  Args:
    decay_rate: the second moment at update n = 1, 2, ... decays by 1 - n^-decay_rate.
    momentum: decay of an average of the updates; None disables momentum.
    clip_update_rms: an update whose root mean square is above this is scaled down to it; None disables it.
    min_dim_size_to_factor: only parameters whose two largest axes are at least this long are factored; 64 includes the
      head dimension of every published model.
    learning_rate, clip_norm, weight_decay, ema_decay, ema_ramp: as in `adamw_chain`; the paper's text models have no
      parameter average.
  """
  return _chain(
    None if clip_norm is None else optax.clip_by_global_norm(clip_norm),
    scale_by_factored_rms(decay_rate=decay_rate, min_dim_size_to_factor=min_dim_size_to_factor),
    None if clip_update_rms is None else optax.clip_by_block_rms(clip_update_rms),
    # Not optax.ema, whose state is that of a parameter average.
    None if momentum is None else optax.trace(momentum),
    None if momentum is None else optax.scale(1 - momentum),
    optax.add_decayed_weights(weight_decay) if weight_decay else None,
    optax.scale_by_learning_rate(learning_rate),
    None if ema_decay is None else parameter_ema(ema_decay, ramp=ema_ramp),
  )


def adamw(learning_rate: ScalarOrSchedule, **settings: Any) -> Any:
  """The chain of `adamw_chain`, wrapped for the engine; takes the same settings."""
  return wrap(adamw_chain(learning_rate, **settings))


def adafactor(
  learning_rate: ScalarOrSchedule, *, num_microbatches: int | None = None, **settings: Any
) -> Any:
  """The chain of `adafactor_chain`, wrapped for the engine; its settings, and microbatches as in `adamw_chain`."""
  chain = adafactor_chain(learning_rate, **settings)
  mean = _microbatch_mean(num_microbatches)
  return wrap(chain if mean is None else optax.chain(mean, chain))


def _averages(states: Any) -> list[Any]:
  leaves = jax.tree.leaves(states, is_leaf=lambda s: isinstance(s, optax.EmaState))
  return [leaf.ema for leaf in leaves if isinstance(leaf, optax.EmaState)]


def parameter_average(params: Any, param_states: Any) -> Any:
  """The average of the parameters in an optimizer's states (`parameter_ema`).

  Parameters without an average, trained by another chain of `by_part`, keep their values.

  Raises:
    ValueError: no parameter has an average.
  """

  def is_masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)

  found, structure = None, jax.tree.structure(params)
  for average in _averages(param_states):
    kept = params if found is None else found
    try:
      merged = jax.tree.map(lambda a, p: p if is_masked(a) else a, average, kept, is_leaf=is_masked)
    except ValueError:  # Of another tree.
      continue
    if jax.tree.structure(merged) == structure:
      found = merged
  if found is None:
    raise ValueError(
      "the optimizer's state has no parameter average; set ema_decay of the optimizer"
    )
  return found


def check_average(optimizer_def: Any, *, setting: str) -> None:
  """Raises ValueError if an optimizer keeps no parameter average; `setting` is what asks for one."""
  try:
    state = jax.eval_shape(optimizer_def.init_state, {"weight": jnp.zeros((1, 1))})
  except ValueError:
    # `by_part` needs the names of the parameters: `parameter_average` finds out.
    return
  if not _averages(state.param_states):
    raise ValueError(
      f"{setting}=True, but the optimizer keeps no parameter average: set {setting}=False, or ema_decay of the "
      "optimizer"
    )


def parameter_ema(decay: float, *, ramp: bool = False) -> optax.GradientTransformation:
  """Keeps `ema <- d * ema + (1 - d) * (params + updates)`. Comes last in a chain and changes no update.

  The state is `optax.EmaState`, which both engines save and partition like the parameters. It starts at the initial
  parameters, so no bias correction is needed. It is float32 regardless of the parameters' dtype.

  Assumption: the paper names an average and no decay. The files of gin have 0.9999 with a ramp: without one, 35,000
  steps (Table 3) leave 3% of the initial parameters in the average.

  Args:
    decay: d, in [0, 1).
    ramp: use `d_n = min(decay, (1 + n) / (10 + n))` at update n = 0, 1, ..., for runs too short to forget the
      initial parameters.
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


def by_part(*, parts: Mapping[str, optax.GradientTransformation]) -> Any:
  """One optax chain per top-level part of the parameters, wrapped for the engine.

  `parts` maps the names at the top of the parameter tree, which must be these, to chains such as `adamw_chain(...)`.
  """

  def labels(params: Any) -> Any:
    # optax also passes a placeholder instead of the tree, to find the state that an optimizer keeps per parameter.
    if isinstance(params, Mapping) and set(params) != set(parts):
      raise ValueError(
        f"by_part: got chains for {sorted(parts)}, expected one for each of {sorted(params)}."
      )
    return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key, params)

  return wrap(optax.multi_transform({**parts}, labels))


def wrap(optimizer: optax.GradientTransformation) -> Any:
  """An optax transformation as the engine's optimizer definition."""
  return engine.OptaxWrapper(optimizer)


def _chain(*parts: optax.GradientTransformation | None) -> optax.GradientTransformation:
  return optax.chain(*(part for part in parts if part is not None))


def _microbatch_mean(num_microbatches: int | None) -> optax.GradientTransformation | None:
  """Divides the sum of the microbatches' gradients under T5X; None where there is nothing to divide."""
  count = num_microbatches or 1
  return optax.scale(1.0 / count) if count > 1 and engine.use_t5x() else None
