"""Adafactor for both engines: the optax chain, and the logical axes of its factored second moments.

For a parameter W [..., m, n] whose two largest axes are m and n, Adafactor keeps the means of the squared gradient over
n (`v_row` [..., m]) and over m (`v_col` [..., n]) instead of the full second moment, so 3B parameters need megabytes of
optimizer state instead of 12 GB.

Source: Shazeer & Stern, Adafactor (1804.04235).
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import PartitionSpec

from walt_t5x.engine.ema import parameter_ema


def adafactor_chain(
  learning_rate: float | Callable[[Any], Any],
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
    learning_rate: a number, or a schedule (`walt_t5x.engine.schedules`).
    decay_rate: the second moment at update n = 1, 2, ... decays by 1 - n^-decay_rate.
    momentum: decay of an average of the updates; None disables momentum.
    clip_norm: gradients above this global norm are scaled down to it; None disables clipping.
    clip_update_rms: an update whose root mean square is above this is scaled down to it; None disables it.
    min_dim_size_to_factor: only parameters whose two largest axes are at least this long are factored; 64 includes the
      head dimension of every published model.
    weight_decay: decoupled decay, multiplied by the learning rate.
    ema_decay: decay of the parameter average (`engine.ema`); None disables it, as in the paper's text models.
    ema_ramp: shorten the average's memory in the first steps.
  """
  parts: list[optax.GradientTransformation] = []
  if clip_norm is not None:
    parts.append(optax.clip_by_global_norm(clip_norm))
  factored = optax.scale_by_factored_rms(
    decay_rate=decay_rate, min_dim_size_to_factor=min_dim_size_to_factor
  )
  parts.append(_remembering_shapes(factored))
  if clip_update_rms is not None:
    parts.append(optax.clip_by_block_rms(clip_update_rms))
  if momentum is not None:
    parts.append(optax.ema(momentum, debias=False))
  if weight_decay:
    parts.append(optax.add_decayed_weights(weight_decay))
  parts.append(optax.scale_by_learning_rate(learning_rate))
  if ema_decay is not None:
    parts.append(parameter_ema(ema_decay, ramp=ema_ramp))
  return optax.chain(*parts)


# Shapes of a state's moments -> shapes of its parameters. The moments alone do not distinguish [m, n] from [n, m], and
# both engines pass only the state to the function that returns its axes.
_PARAMETER_SHAPES: dict[Any, list[tuple[int, ...]]] = {}


def _remembering_shapes(factored: optax.GradientTransformation) -> optax.GradientTransformation:
  """Wraps the transformation so that its init records the parameters' shapes for `factored_state_axes`."""

  def init(params: Any) -> optax.FactoredState:
    state = factored.init(params)
    assert isinstance(state, optax.FactoredState)
    _PARAMETER_SHAPES[_moment_shapes(state)] = [leaf.shape for leaf in jax.tree.leaves(params)]
    return state

  return optax.GradientTransformation(init, factored.update)


def _moment_shapes(state: optax.FactoredState) -> Any:
  return tuple(
    tuple(leaf.shape for leaf in jax.tree.leaves(tree))
    for tree in (state.v_row, state.v_col, state.v)
  )


def factored_state_axes(state: optax.FactoredState, param_axes: Any) -> optax.FactoredState:
  """Logical axes of a factored state: each moment has its parameter's axis names without the averaged axis.

  Args:
    state: a state that `adafactor_chain` created in this process, or its shapes; may contain `optax.MaskedNode`s.
    param_axes: `PartitionSpec` of logical names, one per parameter.

  Raises:
    ValueError: no `adafactor_chain` in this process created such a state.
  """
  shapes = _PARAMETER_SHAPES.get(_moment_shapes(state))
  if shapes is None:
    raise ValueError(
      "factored_state_axes: got a state of shapes that no adafactor_chain in this process created; initialize the "
      "optimizer (jax.eval_shape is enough) before requesting its axes"
    )

  def masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)

  def of(pick: int) -> Any:
    remaining = iter(shapes)

    def axes(row: Any, names: Any) -> Any:
      if masked(row):
        return row
      return _moment_axes(next(remaining), row.shape, tuple(names))[pick]

    return jax.tree.map(axes, state.v_row, param_axes, is_leaf=masked)

  return state._replace(count=PartitionSpec(), v_row=of(0), v_col=of(1), v=of(2))


def _moment_axes(
  shape: tuple[int, ...], row: tuple[int, ...], names: tuple[str | None, ...]
) -> tuple[PartitionSpec, PartitionSpec, PartitionSpec]:
  """Axes of v_row, v_col and v; a moment that is not kept has one element and no name."""
  none = PartitionSpec(None)
  # optax drops the longest axis from v_row and the second longest from v_col, with ties broken as by argsort.
  if len(shape) > 1:
    second, longest = (int(i) for i in np.argsort(shape)[-2:])
    if _without(shape, longest) == row:
      rows, cols = _without(names, longest), _without(names, second)
      return PartitionSpec(*rows), PartitionSpec(*cols), none
  return none, none, PartitionSpec(*names)


def _without(items: tuple, index: int) -> tuple:
  return items[:index] + items[index + 1 :]


def register_with_t5x() -> None:
  """Registers the partitioning of a factored state with T5X's OptaxWrapper, which supports most other optax states."""
  # T5X is optional and not in the requirements.
  from t5x import optimizers as t5x_optimizers  # pyright: ignore[reportMissingImports]

  t5x_optimizers.OptaxStatePartitionRules._RULES.setdefault(
    optax.FactoredState, factored_state_axes
  )
