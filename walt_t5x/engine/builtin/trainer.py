"""Feeds the training step and reports its metrics."""

import collections
import concurrent.futures
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

from walt_t5x.engine.builtin.base_model import BaseModel
from walt_t5x.engine.builtin.monitoring import run_waits
from walt_t5x.engine.builtin.partitioner import PjitPartitioner
from walt_t5x.engine.builtin.summaries import create_writer, last_value, without_empty
from walt_t5x.engine.builtin.train_state import TrainState
from walt_t5x.engine.builtin.training_step import Batch, TrainingStep, merge_metrics
from walt_t5x.engine.chips import peak_flops
from walt_t5x.engine.exits import NotFinite
from walt_t5x.engine.goodput import Goodput
from walt_t5x.engine.run_settings import RunSettings

_merge_on_device = jax.jit(merge_metrics)


class Trainer:
  """Trains a model; keeps the devices busy and the host off the critical path.

  A step is one dispatch (`TrainingStep`). The host fetches its metrics once per stats period, in a separate thread. The
  loop waits for the previous period and never runs more than `settings.max_steps_in_flight` ahead, so it knows which
  steps the devices have finished, and handles a request to stop soon. The next batches are read and sent to the
  devices in the meantime.

  Args:
    train_state: the state to start from, on the mesh.
    eval_names: names of the evaluation sets.
    summary_dir: the run's folder for metrics, or None.
    model, partitioner, train_state_axes, rng, learning_rate_fn, num_microbatches, weight_metrics_computer: as in
      `TrainingStep`. The learning rate is only logged: the optimizer has its own, see `OptaxWrapper`.
    constants: scalars that are added to every training summary, such as configured rates.

  Attributes:
    settings: how the run is monitored; set before `compile_train`.
    goodput: how the main thread spends its time.
    once: scalars of the next summary only.
    summary_writer: the CLU writer of the training metrics.
    on_finished: `f(steps)`, called when the devices have finished this many steps.
    before_step: `f(step)`, called before a step is dispatched; true ends `train` there.
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
    constants: Mapping[str, float] | None = None,
  ):
    self.train_state = train_state
    self._constants = dict(constants or {})
    self.stop_training = False
    self.host_step = 0
    self.on_summary: Callable[[int, Mapping[str, float]], None] = lambda step, scalars: None
    self._partitioner = partitioner
    self.summary_writer = create_writer(summary_dir, "train")
    self._compiled_before = last_value(summary_dir, "compile_seconds")
    self._eval_writers = {
      name: create_writer(summary_dir, f"training_eval/{name}") for name in eval_names
    }
    self._pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="summaries")
    self._summary: concurrent.futures.Future[dict[str, float]] | None = None
    self._period_end = 0.0
    self._pending: _Period | None = None
    self.once: dict[str, float] = {}
    self.settings, self.goodput = RunSettings(), Goodput()
    self.on_finished: Callable[[int], None] = lambda step: None
    self.before_step: Callable[[int], bool] = lambda step: False
    self._in_flight: collections.deque[tuple[int, jax.Array]] = collections.deque()
    self._step = TrainingStep(
      model=model,
      partitioner=partitioner,
      axes=train_state_axes,
      rng=rng,
      learning_rate_fn=learning_rate_fn,
      num_microbatches=num_microbatches,
      weight_metrics=weight_metrics_computer,
    )
    self._eval_step = partitioner.partition(
      lambda params, flax_mutables, batch: model.eval_fn(
        params, batch, *((flax_mutables,) if flax_mutables else ())
      )[1],
      in_axis_resources=(
        train_state_axes.params,
        train_state_axes.flax_mutables,
        partitioner.data_partition_spec,
      ),
      out_axis_resources=None,
    )

  def compile_train(self, batch: Any) -> None:
    """Compiles the step for batches of these shapes (arrays or shapes)."""
    start = time.monotonic()
    with (
      self.goodput.within("compile"),
      run_waits("compiling the training step", expected=self._compiled_before),
    ):
      self._step.compile(self.train_state, batch)
    self.once["compile_seconds"] = time.monotonic() - start
    logging.info("Compiled the training step in %.1f s.", self.once["compile_seconds"])

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
      num_steps: number of steps.
      start_step: the step of the state; None reads it from the device, which blocks.
      summarize: end the stats period here; otherwise these steps are part of a longer one.

    Returns:
      The metrics of the period, once the device has them; None with `summarize=False`, or if `before_step` ended it.

    Raises:
      NotFinite: too many consecutive steps were skipped.
    """
    step = int(jax.device_get(self.train_state.step)) if start_step is None else start_step
    period = self._pending or _Period(started=time.monotonic())
    self._pending = period
    self.host_step = step
    self.goodput.enter("step")
    for n in range(step, step + num_steps):
      if self.before_step(n):
        return None
      self._tell_finished()
      with jax.profiler.StepTraceAnnotation("train", step_num=n):
        asked = time.monotonic()
        with self.goodput.within("data"):
          batch = next(batch_iter, None)
        if batch is None:
          raise RuntimeError(
            f"the training data ended before step {n}: the dataset is empty, or was made with a finite num_epochs."
          )
        period.waited += time.monotonic() - asked
        self.train_state, in_a_row = self._step(self.train_state, batch)
      period.steps += 1
      period.rows += next(iter(batch.values())).shape[0]
      self.host_step = n + 1
      in_a_row.copy_to_host_async()
      self._in_flight.append((n, in_a_row))
      limit = self.settings.max_steps_in_flight
      if len(self._in_flight) > limit:
        # For several steps at once, never for the newest: consecutive dispatches cost the host less each.
        self.wait_for_steps(max(1, limit // 2))
    return self.summarize_pending() if summarize else None

  def summarize_pending(self) -> "concurrent.futures.Future[dict[str, float]] | None":
    """Ends the stats period at the current step; None if it contains no step."""
    period, self._pending = self._pending, None
    if period is None or not period.steps:
      return None
    period.metrics = self._step.take_metrics()
    self.wait_for_summary()
    once, self.once = self.once | self.goodput.scalars(), {}
    self._summary = self._pool.submit(self._summarize, period, self.host_step, once)
    return self._summary

  def _tell_finished(self) -> None:
    """Does not wait. Only `wait_for_steps` checks the results of finished steps, at the same step on every host."""
    for step, in_a_row in self._in_flight:
      # Arrays have `is_ready`; the abstract `jax.Array` does not declare it.
      if not in_a_row.is_ready():  # pyright: ignore[reportAttributeAccessIssue]
        return
      self.on_finished(step + 1)

  def wait_for_steps(self, in_flight: int = 0) -> None:
    """Returns when no more than `in_flight` steps are unfinished.

    Raises:
      NotFinite: too many consecutive steps were skipped.
    """
    while len(self._in_flight) > in_flight:
      step, in_a_row = self._in_flight.popleft()
      skipped = int(jax.device_get(in_a_row))
      self.on_finished(step + 1)
      limit = self.settings.max_nonfinite_steps
      if limit is not None and skipped >= limit:
        self.summarize_pending()  # Writes the period that shows the failure.
        raise NotFinite(last_good_step=step + 1 - skipped, skipped=skipped)

  def eval(self, batch_iters: Mapping[str, Iterator[Batch]]) -> dict[str, dict[str, float]]:
    """Metrics of each evaluation set, written and returned."""
    step = int(jax.device_get(self.train_state.step))
    results = {}
    for name, batches in batch_iters.items():
      merged: dict[str, Any] = {}
      for batch in batches:
        metrics = self._eval_step(self.train_state.params, self.train_state.flax_mutables, batch)
        merged = _merge_on_device(merged, metrics) if merged else dict(metrics)
        jax.block_until_ready(merged)
        self.on_finished(step)
      results[name] = _scalars(merged)
      self._eval_writers[name].write_scalars(step, results[name])
    return results

  def wait_for_summary(self) -> None:
    """Waits until the last summary is written; raises the error of its thread, if any."""
    if self._summary is not None:
      self._summary.result()

  def close(self) -> None:
    """Finishes the summaries and closes the writers."""
    self._pool.shutdown(wait=True)
    for writer in (self.summary_writer, *self._eval_writers.values()):
      writer.close()

  def _summarize(self, period: "_Period", step: int, once: dict[str, float]) -> dict[str, float]:
    jax.block_until_ready(period.metrics)
    now = time.monotonic()
    seconds = max(now - max(period.started, self._period_end), 1e-9)
    self._period_end = now
    scalars = _scalars(period.metrics) | self._constants
    scalars["steps_per_second"] = period.steps / seconds
    scalars["rows_per_second"] = period.rows / seconds
    scalars["data_wait_share"] = min(1.0, period.waited / seconds)
    scalars |= self._utilization(period.steps / seconds) | once
    self.summary_writer.write_scalars(step, scalars)
    self.summary_writer.flush()
    self.on_summary(step, scalars)
    return scalars

  def _utilization(self, steps_per_second: float) -> dict[str, float]:
    """FLOP/s of a device, and their fraction of its peak if that is known."""
    if not self._step.flops:
      return {}
    devices = self._partitioner.mesh.devices
    achieved = self._step.flops * steps_per_second / devices.size
    peak = self.settings.peak_flops_per_device or peak_flops(devices.flat[0])
    found = {"model_tflops_per_second_per_device": achieved / 1e12}
    return found | ({"model_flops_utilisation": achieved / peak} if peak else {})


@dataclasses.dataclass
class _Period:
  """Steps trained since the last summary, and their merged metrics at its end."""

  started: float
  steps: int = 0
  rows: int = 0
  waited: float = 0.0
  metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
  """Metrics as host numbers; a metric with several values becomes several."""
  scalars: dict[str, float] = {}
  for name, metric in jax.device_get(dict(metrics)).items():
    with np.errstate(invalid="ignore"):  # The average over no examples of a kind is NaN.
      value = metric.compute()
    for part, x in value.items() if isinstance(value, Mapping) else [("", value)]:
      flat = np.asarray(x).reshape(-1)  # Not jnp, which would run after the queued steps.
      full = f"{name}/{part}" if part else name
      names = [full] if flat.size == 1 else [f"{full}/{i}" for i in range(flat.size)]
      scalars |= zip(names, map(float, flat))
  return without_empty(scalars)
