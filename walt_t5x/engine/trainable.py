"""Training of a part of the parameters: the rest is kept, without optimizer state and gradients."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import optax

from walt_t5x.engine import optimizers


def trained_alone(optimizer_def: Any, patterns: Sequence[str]) -> Any:
  """An engine optimizer of the parameters whose names match, by an optimizer of all.

  Args:
    optimizer_def: the engine optimizer of the trained parameters.
    patterns: regular expressions, searched in names such as `pairs_0/spatial/attention/query/kernel`.

  Raises:
    ValueError: when it meets the parameters, if a pattern matches no name.
  """

  def labels(params: Any) -> Any:
    # optax also passes a placeholder instead of the tree, to find the state that an optimizer keeps per parameter.
    if isinstance(params, Mapping):
      _check(patterns, params)
    return jax.tree_util.tree_map_with_path(
      lambda path, _: "trained" if _matches(patterns, path) else "frozen", params
    )

  chains = {"trained": optimizer_def.optax_optimizer, "frozen": optax.set_to_zero()}
  return optimizers.wrap(optax.multi_transform({**chains}, labels))


def with_frozen(params: Any, patterns: Sequence[str]) -> Any:
  """The parameters, through which no gradient reaches those whose names do not match."""
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: leaf if _matches(patterns, path) else jax.lax.stop_gradient(leaf), params
  )


def _name(path: Sequence[Any]) -> str:
  return "/".join(str(getattr(part, "key", part)) for part in path)


def _matches(patterns: Sequence[str], path: Sequence[Any]) -> bool:
  return any(re.search(pattern, _name(path)) for pattern in patterns)


def _check(patterns: Sequence[str], params: Mapping[str, Any]) -> None:
  names = [_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(dict(params))]
  for pattern in patterns:
    if not any(re.search(pattern, name) for name in names):
      raise ValueError(
        f"trainable={pattern!r} matches none of the {len(names)} parameters, such as {names[0]}: set a regular "
        "expression that is found in the names of those to train; adapter_ needs WaltDenoiser.adapter_rank"
      )
