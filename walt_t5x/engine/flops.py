"""Floating-point operations (FLOPs) of a program, counted from its jaxpr (shapes only)."""

import math
from collections.abc import Callable
from typing import Any

import jax


def count_flops(jaxpr: Any) -> float:
  """FLOPs of the matrix products and convolutions in a jaxpr, closed or open; a multiply-add counts as two.

  Counted before partitioning, over all devices. XLA's own cost analysis counts the body of a loop once; here a scan
  counts once per iteration. What `jax.checkpoint` recomputes in the backward pass is excluded, so that the count of a
  model does not depend on rematerialization. A `while` loop counts once, a `cond` as its most expensive branch, a
  Pallas kernel as its `metadata["model_flops"]` if present, a `shard_map` once per device of the mesh.
  """
  jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
  return sum(_equation(eqn) for eqn in jaxpr.eqns)


def count_flops_of(function: Callable[..., Any], *args: Any) -> float:
  """`count_flops` of a pure function of arrays or `jax.ShapeDtypeStruct`s; compiles and runs nothing."""
  return count_flops(jax.make_jaxpr(function)(*args))


def _equation(eqn: Any) -> float:
  name = eqn.primitive.name
  if name == "dot_general":
    (lhs_contracting, _), _ = eqn.params["dimension_numbers"]
    contracted = math.prod(eqn.invars[0].aval.shape[i] for i in lhs_contracting)
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * contracted
  if name == "conv_general_dilated":
    return _convolution(eqn)
  if name == "scan":
    return eqn.params["length"] * count_flops(eqn.params["jaxpr"])
  if name == "while":
    return count_flops(eqn.params["body_jaxpr"])
  if name == "cond":
    return max(count_flops(branch) for branch in eqn.params["branches"])
  if name == "shard_map":
    # The program of one device.
    return eqn.params["mesh"].size * count_flops(eqn.params["jaxpr"])
  if name == "pallas_call":
    known = dict(eqn.params.get("metadata") or {}).get("model_flops")
    if known is not None:
      return float(known)
    grid = eqn.params["grid_mapping"].grid
    return math.prod(int(n) for n in grid) * count_flops(eqn.params["jaxpr"])
  if name in ("checkpoint", "remat", "remat2") and eqn.params.get("differentiated"):
    return _backward(eqn.params["jaxpr"])
  # The program that an equation calls; if there are several (custom derivatives), the first is the one that runs.
  for key in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
    value = eqn.params.get(key)
    if hasattr(value, "eqns") or hasattr(value, "jaxpr"):
      return count_flops(value)
  return 0.0


def _backward(jaxpr: Any) -> float:
  """FLOPs of a differentiated block without what it recomputes: only what depends on the cotangents.

  JAX passes a block its residuals first and its cotangents last, and every result is linear in the cotangents. The
  cotangents are therefore the shortest tail of the arguments that every result depends on.
  """
  jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
  for tail in range(1, len(jaxpr.invars) + 1):
    moved = set(jaxpr.invars[-tail:])
    backward = []
    for eqn in jaxpr.eqns:
      if any(var in moved for var in eqn.invars if not hasattr(var, "val")):
        backward.append(eqn)
        moved.update(eqn.outvars)
    if all(hasattr(var, "val") or var in moved for var in jaxpr.outvars):
      return sum(_equation(eqn) for eqn in backward)
  return count_flops(jaxpr)


def _convolution(eqn: Any) -> float:
  """Two FLOPs for each output value, input channel of its group, and kernel tap that is applied to a real input.

  Transposed convolutions (gradients of strided ones) dilate their input with zeros, which are not counted.
  """
  numbers = eqn.params["dimension_numbers"]
  kernel = eqn.invars[1].aval.shape
  out = eqn.outvars[0].aval.shape
  taps = math.prod(kernel[i] for i in numbers.rhs_spec[2:])
  channels = kernel[numbers.rhs_spec[1]]
  return 2.0 * math.prod(out) * taps * channels / math.prod(eqn.params["lhs_dilation"])
