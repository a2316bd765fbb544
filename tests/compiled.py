"""Applies modules in one compiled program; otherwise every operation on every shape is a separate program."""

from typing import Any

import jax


def apply(module: Any, variables: Any, *arguments: Any, **static: Any) -> Any:
  """`module.apply(variables, *arguments, **static)`."""
  return jax.jit(lambda v, *a: module.apply(v, *a, **static))(variables, *arguments)
