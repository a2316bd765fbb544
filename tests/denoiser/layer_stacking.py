"""Conversion between the two parameter trees of the transformer's layers.

With `WaltDenoiser.scan_layers` = True the pairs of layers are one subtree "pairs" whose leaves have a leading axis, one
entry per pair; with False they are "pairs_0", "pairs_1", ... All other parameters are the same in both.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

_PAIR = re.compile(r"pairs_(\d+)")


def stack_pairs(params: Mapping[str, Any]) -> dict[str, Any]:
  """Converts the parameters of an unrolled model to those of a scanned model.

  Raises:
    ValueError: if the tree does not have pairs_0 ... pairs_n, all of one shape.
  """
  indices = sorted(int(m.group(1)) for name in params if (m := _PAIR.fullmatch(name)))
  if not indices or indices != list(range(len(indices))):
    raise ValueError(
      f"stack_pairs: got {sorted(params)}, expected pairs_0, pairs_1, ... without a gap; is the model already scanned?"
    )
  pairs = [params[f"pairs_{i}"] for i in indices]
  rest = {name: value for name, value in params.items() if not _PAIR.fullmatch(name)}
  return rest | {"pairs": jax.tree.map(lambda *leaves: jnp.stack(leaves), *pairs)}


def unstack_pairs(params: Mapping[str, Any]) -> dict[str, Any]:
  """The inverse of `stack_pairs`.

  Raises:
    ValueError: if the tree has no "pairs".
  """
  if "pairs" not in params:
    raise ValueError(f"unstack_pairs: got {sorted(params)}, expected 'pairs' among them")
  length = jax.tree.leaves(params["pairs"])[0].shape[0]
  rest = {name: value for name, value in params.items() if name != "pairs"}
  apart = {
    f"pairs_{i}": jax.tree.map(lambda leaf, i=i: leaf[i], params["pairs"]) for i in range(length)
  }
  return rest | apart
