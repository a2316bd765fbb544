"""Gradients and metrics of a batch, computed at once or in microbatches."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from clu import metrics as clu_metrics
from jax.sharding import NamedSharding, PartitionSpec

LossFn = Callable[[Any, Mapping[str, jax.Array], jax.Array], tuple[jax.Array, dict[str, Any]]]


def gradients(
  loss_fn: LossFn,
  params: Any,
  batch: Mapping[str, jax.Array],
  *,
  rng: jax.Array,
  num_microbatches: int | None,
  data_sharding: NamedSharding,
) -> tuple[jax.Array, Any, dict[str, Any]]:
  """A loss that is a mean over examples, its gradient, and its metrics.

  With k microbatches the gradient is the mean of their gradients, in float32: equal to that of the full batch, with
  less memory. Microbatch i takes examples i, i + k, ... so that every device works on examples that it already holds.
  (T5X adds the gradients of microbatches instead; `engine.optimizers` compensates for it.)

  Args:
    loss_fn: `(params, batch, rng) -> (loss, metrics)`.
    params: the parameters.
    batch: name -> array, batch axis first.
    rng: key of this step; microbatch i uses `fold_in(rng, i)`.
    num_microbatches: k, or None for the full batch at once.
    data_sharding: sharding of the batch axis.

  Raises:
    ValueError: k does not divide the batch.
  """
  grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
  if num_microbatches is None or num_microbatches <= 1:
    (loss, metrics), grads = grad_fn(params, batch, rng)
    return loss, grads, dict(metrics)

  k = num_microbatches
  rows = next(iter(batch.values())).shape[0]
  if rows % k:
    raise ValueError(
      f"Trainer.num_microbatches: got {k}, expected a divisor of the batch size {rows}."
    )
  stacked_sharding = NamedSharding(data_sharding.mesh, PartitionSpec(None, *data_sharding.spec))

  def split(x: jax.Array) -> jax.Array:
    x = jnp.moveaxis(x.reshape(rows // k, k, *x.shape[1:]), 1, 0)  # (k, rows / k, ...)
    return jax.lax.with_sharding_constraint(x, stacked_sharding)

  def one(total: Any, inputs: tuple[jax.Array, Any]) -> tuple[Any, Any]:
    i, microbatch = inputs
    (loss, metrics), grads = grad_fn(params, microbatch, jax.random.fold_in(rng, i))
    total = jax.tree.map(lambda t, g: t + g.astype(jnp.float32), total, grads)
    return total, (loss, dict(metrics))

  zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
  total, (losses, stacked) = jax.lax.scan(
    one, zeros, (jnp.arange(k), {n: split(x) for n, x in batch.items()})
  )
  grads = jax.tree.map(lambda t: t / k, total)
  parts = [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(k)]
  return jnp.mean(losses), grads, functools.reduce(merge_metrics, parts)


def merge_metrics(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
  """Merges the metrics of two sets of examples into those of their union."""
  return jax.tree.map(
    lambda x, y: x.merge(y), dict(a), dict(b), is_leaf=lambda m: isinstance(m, clu_metrics.Metric)
  )
