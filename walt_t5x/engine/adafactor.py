"""Adafactor's factored second moments, and their logical axes for both engines.

For a parameter W [..., m, n] whose two largest axes are m and n, Adafactor keeps the means of the squared gradient over
n (`v_row` [..., m]) and over m (`v_col` [..., n]) instead of the full second moment, so 3B parameters need megabytes of
optimizer state instead of 12 GB.

Source: Shazeer & Stern, Adafactor (1804.04235).
"""

import functools
import sys
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import PartitionSpec

Shapes = tuple[tuple[int, ...], ...]


def scale_by_factored_rms(**settings: Any) -> optax.GradientTransformation:
  """optax's transformation of this name and its settings, with states that know the shapes of their parameters."""
  factored: Any = optax.scale_by_factored_rms(**settings)

  def init(params: Any) -> optax.FactoredState:
    shapes = tuple(tuple(leaf.shape) for leaf in jax.tree.leaves(params))
    return _state_type(shapes)(*factored.init(params))

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    updates, new = factored.update(updates, state, params)
    return updates, type(state)(*new)

  return optax.GradientTransformation(init, update)


@functools.cache
def _state_type(shapes: Shapes) -> type[optax.FactoredState]:
  """The type of the states of parameters with these shapes.

  The moments alone do not distinguish [m, n] from [n, m], and both engines pass only the state to the function that
  returns its axes. In a checkpoint the state has the layout of `optax.FactoredState`.
  """
  made = type("FactoredState", (optax.FactoredState,), {"__slots__": (), "shapes": shapes})
  # T5X is optional; where it trains, it is loaded. It has rules for most other optax states.
  t5x_optimizers = sys.modules.get("t5x.optimizers")
  if t5x_optimizers is not None:
    t5x_optimizers.OptaxStatePartitionRules._RULES[made] = factored_state_axes
  return made


def factored_state_axes(state: optax.FactoredState, param_axes: Any) -> optax.FactoredState:
  """Logical axes of a factored state: each moment has its parameter's axis names without the averaged axis.

  Args:
    state: a state of `scale_by_factored_rms`, or its shapes; may contain `optax.MaskedNode`s.
    param_axes: `PartitionSpec` of logical names, one per parameter.
  """
  shapes: Shapes | None = getattr(state, "shapes", None)
  if shapes is None:
    raise ValueError(
      "factored_state_axes: got a state without the shapes of its parameters, expected one of "
      "engine.adafactor.scale_by_factored_rms; initialize the optimizer with it."
    )

  def masked(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)

  def of(moment: int) -> Any:
    """Axes of v_row, v_col or v; a moment that is not kept has one element and no name."""
    remaining = iter(shapes)

    def axes(row: Any, names: Any) -> Any:
      if masked(row):
        return row
      shape, names = next(remaining), tuple(names)
      # optax drops the longest axis from v_row and the second longest from v_col, with ties broken as by argsort.
      dropped = [int(axis) for axis in np.argsort(shape)[:-3:-1]]
      if len(shape) > 1 and _without(shape, dropped[0]) == row.shape:
        kept = [*(_without(names, axis) for axis in dropped), (None,)]
      else:
        kept = [(None,), (None,), names]
      return PartitionSpec(*kept[moment])

    return jax.tree.map(axes, state.v_row, param_axes, is_leaf=masked)

  return state._replace(count=PartitionSpec(), v_row=of(0), v_col=of(1), v=of(2))


def _without(items: tuple, index: int) -> tuple:
  return items[:index] + items[index + 1 :]
