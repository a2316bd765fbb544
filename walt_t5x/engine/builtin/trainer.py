"""One training step over the mesh, and the loop that feeds it."""

import concurrent.futures
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import logging
from clu import metrics as clu_metrics

from walt_t5x.engine.builtin.base_model import BaseModel
from walt_t5x.engine.builtin.microbatches import gradients, merge_metrics
from walt_t5x.engine.builtin.partitioner import PjitPartitioner
from walt_t5x.engine.builtin.summaries import create_writer
from walt_t5x.engine.builtin.train_state import TrainState

Batch = Mapping[str, jax.Array]
_merge_on_device = jax.jit(merge_metrics)


class Trainer:
  """Trains a model; keeps the device busy and the host out of its way.

  Metrics are merged on the device. The host fetches them once a stats period, in a thread of its own; the loop waits
  only for the period before, so it never runs more than two periods ahead of the device.

  Args:
    model: what to train.
    train_state: the state to start from, on the mesh.
    partitioner: mesh and rules.
    eval_names: names of the evaluation sets.
    summary_dir: the run's folder for metrics, or None.
    train_state_axes: mesh axes of the state, the same tree.
    rng: base key; step n uses `fold_in(rng, n)`.
    learning_rate_fn: step -> learning rate, for the log (the optimizer has its own, see `OptaxWrapper`).
    num_microbatches: gradient accumulation, or None.
    weight_metrics_computer: object with `compute_metrics(grads, old_state, new_state) -> metrics`, or None.
  """

  def __init__(
    self,
    model: BaseModel,
    train_state: TrainState,
    partitioner: PjitPartitioner,
    eval_names: Sequence[str],
    summary_dir: str | None,
    train_state_axes: Any,
    rng: jax.Array,
    learning_rate_fn: Callable[[Any], Any],
    num_microbatches: int | None = None,
    weight_metrics_computer: Any = None,
  ):
    self.train_state = train_state
    self.stop_training = False
    self.on_summary: Callable[[int, Mapping[str, float]], None] = lambda step, scalars: None
    self._model, self._partitioner, self._axes = model, partitioner, train_state_axes
    self._rng, self._learning_rate_fn = rng, learning_rate_fn
    self._num_microbatches, self._weight_metrics = num_microbatches, weight_metrics_computer
    self._writer = create_writer(summary_dir, "train")
    self._eval_writers = {
      name: create_writer(summary_dir, f"training_eval/{name}") for name in eval_names
    }
    self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="summaries")
    self._summary: concurrent.futures.Future[dict[str, float]] | None = None
    self._period_end = 0.0
    self._pending: _Period | None = None
    self._once: dict[str, float] = {}
    self._train_step = partitioner.partition(
      self._step,
      in_axis_resources=(train_state_axes, partitioner.data_partition_spec),
      out_axis_resources=(train_state_axes, None),
      donate_argnums=(0,),
    )
    self._eval_step = partitioner.partition(
      lambda params, batch: model.eval_fn(params, batch)[1],
      in_axis_resources=(train_state_axes.params, partitioner.data_partition_spec),
      out_axis_resources=None,
    )
    self._compiled_train_step: Callable[..., Any] | None = None

  def __enter__(self) -> "Trainer":
    return self

  def __exit__(self, *exception: Any) -> None:
    self.close()

  @property
  def summary_writer(self) -> Any:
    """The CLU writer of the training metrics."""
    return self._writer

  def compile_train(self, batch: Any) -> float:
    """Compiles the step for batches like this (arrays or shapes); returns the seconds it took."""
    start = time.monotonic()
    self._compiled_train_step = self._partitioner.compile(self._train_step, self.train_state, batch)
    seconds = time.monotonic() - start
    logging.info("Compiled the training step in %.1f s.", seconds)
    self.add_scalar("compile_seconds", seconds)
    return seconds

  def add_scalar(self, name: str, value: float) -> None:
    """Goes into the next summary, once."""
    self._once[name] = value

  def train(
    self,
    batch_iter: Iterator[Batch],
    num_steps: int,
    start_step: int | None = None,
    *,
    summarize: bool = True,
  ) -> "concurrent.futures.Future[dict[str, float]] | None":
    """Runs steps.

    Args:
      batch_iter: batches on the mesh.
      num_steps: how many.
      start_step: the step to start from; None reads it from the device, which waits for it.
      summarize: end the stats period here; otherwise these steps are part of a longer one.

    Returns:
      The metrics of the period, once the device has them; None with `summarize=False`.
    """
    step = int(jax.device_get(self.train_state.step)) if start_step is None else start_step
    train_step = self._compiled_train_step or self._train_step
    period = self._pending or _Period(started=time.monotonic())
    for n in range(step, step + num_steps):
      with jax.profiler.StepTraceAnnotation("train", step_num=n):
        asked = time.monotonic()
        batch = _next(batch_iter, n)
        period.waited += time.monotonic() - asked
        self.train_state, metrics = train_step(self.train_state, batch)
        period.metrics = _merge_on_device(period.metrics, metrics) if period.metrics else metrics
      period.steps += 1
      period.rows += next(iter(batch.values())).shape[0]
    if not summarize:
      self._pending = period
      return None
    self._pending = None
    self.wait_for_summary()
    once, self._once = self._once, {}
    self._summary = self._pool.submit(self._summarize, period, step + num_steps, once)
    return self._summary

  def eval(self, batch_iters: Mapping[str, Iterator[Batch]]) -> dict[str, dict[str, float]]:
    """Metrics of each evaluation set, written and returned."""
    step = int(jax.device_get(self.train_state.step))
    results = {}
    for name, batches in batch_iters.items():
      merged: dict[str, Any] = {}
      for batch in batches:
        metrics = self._eval_step(self.train_state.params, batch)
        merged = _merge_on_device(merged, metrics) if merged else dict(metrics)
      results[name] = _scalars(merged)
      if name in self._eval_writers:
        self._eval_writers[name].write_scalars(step, results[name])
    return results

  def wait_for_summary(self) -> None:
    """Returns when the last summary is written, or raises what went wrong in its thread."""
    if self._summary is not None:
      self._summary.result()

  def close(self) -> None:
    """Finishes the summaries and closes the writers."""
    self._pool.shutdown(wait=True)
    for writer in (self._writer, *self._eval_writers.values()):
      writer.close()

  def _step(self, state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Any]]:
    grads, metrics = gradients(
      self._model.loss_fn,
      state.params,
      batch,
      rng=jax.random.fold_in(self._rng, state.step),
      num_microbatches=self._num_microbatches,
      data_sharding=self._partitioner.data_sharding,
    )
    new_state = state.apply_gradient(grads)
    metrics |= {
      "learning_rate": _average(self._learning_rate_fn(state.step)),
      "gradient_norm": _average(optax.global_norm(grads)),
    }
    if self._weight_metrics is not None:
      metrics |= self._weight_metrics.compute_metrics(grads, state, new_state)
    return new_state, metrics

  def _summarize(self, period: "_Period", step: int, once: dict[str, float]) -> dict[str, float]:
    jax.block_until_ready(period.metrics)
    now = time.monotonic()
    seconds = max(now - max(period.started, self._period_end), 1e-9)
    self._period_end = now
    scalars = _scalars(period.metrics) | {
      "steps_per_second": period.steps / seconds,
      "rows_per_second": period.rows / seconds,
      "data_wait_share": min(1.0, period.waited / seconds),
    }
    scalars |= once
    self._writer.write_scalars(step, scalars)
    self._writer.flush()
    self.on_summary(step, scalars)
    return scalars


class _Period:
  """What has been trained since the last summary."""

  def __init__(self, started: float):
    self.started = started
    self.metrics: dict[str, Any] = {}
    self.steps = self.rows = 0
    self.waited = 0.0


def _next(batch_iter: Iterator[Batch], step: int) -> Batch:
  try:
    return next(batch_iter)
  except StopIteration:
    raise RuntimeError(
      f"the training rows ended before step {step}: the dataset is empty, or was made with a finite num_epochs."
    ) from None


def _average(value: Any) -> clu_metrics.Metric:
  return clu_metrics.Average.from_model_output(jnp.asarray(value, jnp.float32).reshape(1))


def _scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
  """Metrics as numbers of the host; a metric with several values becomes several."""
  computed = {name: metric.compute() for name, metric in jax.device_get(dict(metrics)).items()}
  scalars: dict[str, float] = {}
  for name, value in computed.items():
    parts = value.items() if isinstance(value, Mapping) else [("", value)]
    for part, x in parts:
      flat = jnp.asarray(x).reshape(-1)
      full = f"{name}/{part}" if part else name
      if flat.size == 1:
        scalars[full] = float(flat[0])
      else:
        scalars |= {f"{full}/{i}": float(v) for i, v in enumerate(flat)}
  return scalars
