"""Floating-point operations of a JAX function, counted from its jaxpr: shapes alone, nothing is compiled or run.

A matrix product [m, k] x [k, n] counts 2 m n k, a convolution likewise; everything else counts nothing. The body of a
scan counts as often as it runs, a conditional as its most expensive branch, what a checkpoint policy computes again
as often as it is computed.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax


def count_flops(function: Callable[..., Any], *args: Any) -> float:
  """Operations of matrix products and convolutions in `function(*args)`.

  Args:
    function: pure, traceable.
    args: arrays or `jax.ShapeDtypeStruct`s.

  Raises:
    ValueError: on a `while` loop, whose length shapes do not tell.
  """
  return _of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def _of_jaxpr(jaxpr: Any) -> float:
  return float(sum(_of_equation(equation) for equation in jaxpr.eqns))


def _of_equation(equation: Any) -> float:
  kind, params = equation.primitive.name, equation.params
  if kind == "dot_general":
    (contracted, _), _ = params["dimension_numbers"]
    lhs = equation.invars[0].aval.shape
    return 2.0 * equation.outvars[0].aval.size * math.prod(lhs[i] for i in contracted)
  if kind == "conv_general_dilated":
    return _of_convolution(equation)
  inner = [_of_jaxpr(jaxpr) for jaxpr in _inner(params)]
  if kind == "scan":
    return params["length"] * sum(inner)
  if kind == "while" and sum(inner):
    raise ValueError(
      "count_flops: a `while` loop holds matrix products, and shapes do not tell how often it runs; use `lax.scan`"
    )
  if kind == "cond":
    return max(inner)
  return sum(inner)


def _of_convolution(equation: Any) -> float:
  """2 x output positions x kernel taps x input channels; holes that dilation makes count nothing."""
  params = equation.params
  dimensions = params["dimension_numbers"]
  kernel, out = equation.invars[1].aval.shape, equation.outvars[0].aval
  taps = math.prod(kernel[i] for i in dimensions.rhs_spec[1:])
  holes = math.prod(params["lhs_dilation"]) / params["batch_group_count"]
  return 2.0 * out.size * taps / max(holes, 1)


def _inner(value: Any) -> Iterator[Any]:
  """The jaxprs among an equation's parameters."""
  if isinstance(value, dict):
    for item in value.values():
      yield from _inner(item)
  elif isinstance(value, tuple | list):
    for item in value:
      yield from _inner(item)
  elif hasattr(value, "jaxpr"):
    yield value.jaxpr
  elif hasattr(value, "eqns"):
    yield value
