"""Optimizer factories for gin. Each returns an `OptaxWrapper`, which both engines train with."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import optax

from walt_t5x import engine
from walt_t5x.engine.adafactor import adafactor_chain, register_with_t5x
from walt_t5x.engine.ema import parameter_ema

ScalarOrSchedule = float | Callable[[Any], Any]

# Gradients for `assignment` are scaled by this power of two: exact, and too small to show in a gradient norm.
ASSIGNMENT_SCALE = 2.0**-20


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
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: added to the root of the second moment.
    weight_decay: decoupled decay, multiplied by the learning rate; 0 disables it.
    weight_decay_names: decay only parameters whose last name is listed (for example `("kernel",)`); None decays all.
    clip_norm: gradients above this global norm are scaled down to it; None disables clipping.
    ema_decay: decay of the parameter average (`engine.ema`); None disables it.
    ema_ramp: shorten the average's memory in the first steps, see `engine.ema`.
    num_microbatches: the trainer's `num_microbatches`. The built-in engine averages the gradients of microbatches
      and ignores this; T5X adds them, so under T5X the chain divides by it. Losses here are means over examples.
  """
  parts: list[optax.GradientTransformation] = []
  if engine.use_t5x() and num_microbatches is not None and num_microbatches > 1:
    parts.append(optax.scale(1.0 / num_microbatches))
  if clip_norm is not None:
    parts.append(optax.clip_by_global_norm(clip_norm))
  parts.append(optax.scale_by_adam(b1=b1, b2=b2, eps=eps))
  if weight_decay:
    mask = None if weight_decay_names is None else _named(tuple(weight_decay_names))
    parts.append(optax.add_decayed_weights(weight_decay, mask=mask))
  parts.append(optax.scale_by_learning_rate(learning_rate))
  if ema_decay is not None:
    parts.append(parameter_ema(ema_decay, ramp=ema_ramp))
  return optax.chain(*parts)


def adamw(learning_rate: ScalarOrSchedule, **settings: Any) -> Any:
  """The chain of `adamw_chain`, wrapped for the engine; takes the same settings."""
  return wrap(adamw_chain(learning_rate, **settings))


def adafactor(
  learning_rate: ScalarOrSchedule, *, num_microbatches: int | None = None, **settings: Any
) -> Any:
  """The chain of `walt_t5x.engine.adafactor`, wrapped for the engine; takes the same settings.

  Args:
    learning_rate: a number, or a schedule.
    num_microbatches: as for `adamw_chain`.
    settings: settings of `adafactor_chain`.
  """
  chain = adafactor_chain(learning_rate, **settings)
  if engine.use_t5x() and num_microbatches is not None and num_microbatches > 1:
    chain = optax.chain(optax.scale(1.0 / num_microbatches), chain)
  return wrap(chain)


def by_part(*, parts: Mapping[str, optax.GradientTransformation]) -> Any:
  """One optax chain per top-level part of the parameters, wrapped for the engine.

  Args:
    parts: name at the top of the parameter tree -> chain, such as `adamw_chain(...)`.

  Raises:
    ValueError: on first use, if the parameters have other parts.
  """

  def labels(params: Any) -> Any:
    # optax also passes a placeholder instead of the tree, to find the state that an optimizer keeps per parameter.
    if isinstance(params, Mapping) and set(params) != set(parts):
      raise ValueError(
        f"by_part: got chains for {sorted(parts)}, expected one for each of {sorted(params)}."
      )
    return jax.tree_util.tree_map_with_path(lambda path, _: path[0].key, params)

  return wrap(optax.multi_transform({**parts}, labels))


def assignment(*, num_microbatches: int | None = None) -> optax.GradientTransformation:
  """`p <- p - g / ASSIGNMENT_SCALE`: a loss whose gradient is ASSIGNMENT_SCALE (p - target) sets p to its target.

  For counters and running averages that a loss stores among the parameters.

  Args:
    num_microbatches: as in `adamw_chain`.
  """
  rate = 1.0 / ASSIGNMENT_SCALE
  if engine.use_t5x() and num_microbatches is not None and num_microbatches > 1:
    rate /= num_microbatches
  return optax.sgd(rate)


def wrap(optimizer: optax.GradientTransformation) -> Any:
  """An optax transformation as the engine's optimizer definition."""
  if engine.use_t5x():
    register_with_t5x()
  return engine.OptaxWrapper(optimizer)


def _named(names: tuple[str, ...]) -> Callable[[Any], Any]:
  """A mask over parameters: True where the last name of the path is one of `names`."""

  def mask(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
      lambda path, _: getattr(path[-1], "key", getattr(path[-1], "name", None)) in names, params
    )

  return mask
