"""The main loop: trains from one event to the next and monitors the run."""

import concurrent.futures
import contextlib
import dataclasses
import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils

from walt_t5x.engine import checkpoints, exits
from walt_t5x.engine.builtin.checkpoint_manager import CheckpointManager
from walt_t5x.engine.builtin.data_iterator import ShardedIterator
from walt_t5x.engine.builtin.local_checkpoints import LocalCheckpoints
from walt_t5x.engine.builtin.monitoring import Profiler, Progress, run_waits
from walt_t5x.engine.builtin.train_state import TrainState
from walt_t5x.engine.builtin.trainer import Trainer
from walt_t5x.engine.run_settings import STEP
from walt_t5x.engine.watchdog import Watchdog

# Short strides keep the progress display updated during long periods; they cost nothing on the device.
_STRIDE = 50


@dataclasses.dataclass(frozen=True, kw_only=True)
class Periods:
  """Periods count absolute steps, so that a restart does not shift them; 0 disables one. All end with the last step.

  Attributes:
    total: the last step.
    stats: steps per summary.
    evaluate: steps between evaluations.
    save: steps between checkpoints.
    save_steps: additional steps to save at.
    save_locally: steps between local checkpoints.
    collect: steps between runs of Python's garbage collector.
  """

  total: int
  stats: int
  evaluate: int = 0
  save: int = 0
  save_steps: Set[int] = frozenset()
  save_locally: int = 0
  collect: int = 0

  def next_event(self, step: int) -> int:
    """The first step after `step` that has an event."""
    periods = (self.stats, self.evaluate, self.save, self.save_locally, self.collect)
    ends = [(step // period + 1) * period for period in periods if period]
    return min([*ends, *(s for s in self.save_steps if s > step), self.total])

  def ends_summary(self, step: int) -> bool:
    """Whether a summary ends after this many steps."""
    return self._due(self.stats, step)

  def evaluates(self, step: int, *, last: bool) -> bool:
    """Whether to evaluate after this many steps; `last` if a run is stopped there."""
    return self.evaluate > 0 and (last or self._due(self.evaluate, step))

  def saves(self, step: int, *, last: bool) -> bool:
    """Whether to write a checkpoint after this many steps."""
    return last or self._due(self.save, step) or step in self.save_steps

  def saves_locally(self, step: int) -> bool:
    """Whether to write a local checkpoint after this many steps."""
    return self.save_locally > 0 and step < self.total and step % self.save_locally == 0

  def collects(self, step: int, *, last: bool) -> bool:
    """Whether to collect garbage after this many steps."""
    return self.collect > 0 and (last or self._due(self.collect, step))

  def _due(self, period: int, step: int) -> bool:
    return step == self.total or (period > 0 and step % period == 0)


@dataclasses.dataclass(kw_only=True)
class MainLoop:
  """Trains, evaluates, saves, and stops on request.

  Args:
    trainer: the trainer, with the initial state and the settings of the run.
    iterator: the training data, from the next example on.
    first_step: the step of the state.
    periods: the steps of all other actions.
    manager: writes checkpoints; None disables them.
    local: writes local checkpoints; None disables them.
    eval_batches: the batches of each evaluation set, once.
    model_dir, actions, concurrent_metrics, watchdog: as in `train`.

  Attributes:
    step: steps trained and dispatched so far.
  """

  trainer: Trainer
  iterator: ShardedIterator
  model_dir: str
  first_step: int
  periods: Periods
  manager: CheckpointManager | None
  local: LocalCheckpoints | None
  eval_batches: Callable[[], Mapping[str, Iterator[Any]]]
  actions: Mapping[str, Sequence[Any]] | None
  concurrent_metrics: bool
  watchdog: Watchdog

  def __post_init__(self) -> None:
    trainer, self.step = self.trainer, self.first_step
    self._progress = Progress(self.step, self.periods.total, enabled=jax.process_index() == 0)
    self._profiler = Profiler(self.model_dir, trainer.settings.profile_steps)
    self.watchdog.activity = lambda: trainer.goodput.phase
    self.watchdog.on_hang = self._on_hang
    trainer.on_summary = self._on_summary
    trainer.on_finished = self._on_finished
    trainer.before_step = self._before_step

  def run(self, *, before: Callable[[Any, int], None], eval_first: bool) -> tuple[int, TrainState]:
    """Trains to the last step and closes everything; returns and raises what `train` does.

    Args:
      before: `f(writer, step)`, called first.
      eval_first: evaluate before the first step.
    """
    finished = False
    try:
      with contextlib.closing(self.trainer), exits.preemption_notice() as self._stop_before:
        self.watchdog.start(self.step)
        before(self.trainer.summary_writer, self.step)
        if jax.process_index() == 0:
          self.trainer.goodput.record(self.model_dir, self.step)
        if eval_first:
          self.watchdog.enter("first_evaluation")
          self._evaluate()
        if self.periods.save:
          self.watchdog.enter("first_save")
          self._save()  # Fails early if the folder is not writable.
        if self.step == self.periods.total:
          logging.warning("The run is already at its last step %d; nothing to train.", self.step)
        else:
          first_batch = self.iterator.start_warmup()
          self.watchdog.enter("compile")
          self.trainer.compile_train(self.iterator.element_spec)
          self.watchdog.enter("first_batch")
          with self.trainer.goodput.within("data"), run_waits("reading the first batch"):
            concurrent.futures.wait([first_batch])
        if self.periods.collect:
          gc.disable()
        self.watchdog.enter(STEP)
        self._progress.begin()
        with self._progress.shown(lambda: self.trainer.goodput.phase):
          while self.step < self.periods.total and not self.trainer.stop_training:
            self._next_event()
          self.trainer.wait_for_steps()
        self.trainer.wait_for_summary()
        with self.trainer.goodput.within("checkpoint"), run_waits("writing the last checkpoint"):
          if self.manager is not None:
            self.manager.wait()
        finished = True
    finally:
      self.trainer.goodput.write(self.step, finished=finished)
      self.watchdog.stop()
      self._profiler.stop()
      self._progress.close()
      if self.manager is not None:
        self.manager.close()
      if self.periods.collect:
        gc.enable()
    logging.info("Trained steps %d to %d.", self.first_step, self.step)
    return self.step, self.trainer.train_state

  def _next_event(self) -> None:
    """Trains until the next event and handles it."""
    goal = self.periods.next_event(self.step)
    while goal - self.step > _STRIDE:
      self._advance(self.step + _STRIDE, summarize=False)
    summary = self._advance(goal, summarize=self.periods.ends_summary(goal))
    if summary is not None and not self.concurrent_metrics:
      self._act("TRAIN", {"train": summary.result()})
    last = self.trainer.stop_training
    if self.periods.collects(self.step, last=last):
      gc.collect()
    if self.local is not None and self.periods.saves_locally(self.step):
      self._save_locally(self.local)
    if self.manager is not None and self.periods.saves(self.step, last=last):
      self._save()
    if self.periods.evaluates(self.step, last=last):
      self._evaluate()

  def _advance(self, goal: int, *, summarize: bool) -> Any:
    """Trains to the step `goal`, or stops earlier; returns the summary of the period if it ends there."""
    summary = self.trainer.train(self.iterator, goal - self.step, self.step, summarize=summarize)
    self.step = self.trainer.host_step
    if self.step < goal:
      self._leave()
    self._progress.update(self.step)
    self._profiler.poll(self.step)
    return summary

  def _before_step(self, step: int) -> bool:
    self._profiler.before(step, self.trainer.wait_for_steps)
    stop = self._stop_before(step)
    self._stop_before.trained |= not stop
    return stop

  def _evaluate(self) -> None:
    started = time.monotonic()
    with self.trainer.goodput.within("eval"), run_waits("evaluating"):
      results = self.trainer.eval(self.eval_batches())
      losses = ", ".join(f"{n} {r['loss']:.4g}" for n, r in results.items() if "loss" in r)
      logging.info("Evaluated at step %d: %s", self.step, losses)
      self._act("TRAIN_EVAL", results)
    self.watchdog.beat()
    self.trainer.once["evaluate_seconds"] = time.monotonic() - started

  def _save(self) -> None:
    assert self.manager is not None
    self.trainer.wait_for_steps()
    self.trainer.wait_for_summary()
    self.trainer.goodput.saved(self.step)
    started = time.monotonic()
    with self.trainer.goodput.within("checkpoint"), run_waits("starting a checkpoint"):
      saved = self.manager.save(self.step, self.trainer.train_state, self.iterator)
    self.watchdog.beat()
    if saved:
      self.trainer.once["checkpoint_seconds"] = time.monotonic() - started

  def _save_locally(self, local: LocalCheckpoints) -> None:
    self.trainer.wait_for_steps()
    with self.trainer.goodput.within("checkpoint"):
      local.save(self.step, self.trainer.train_state)
    self.trainer.goodput.saved(self.step)
    self.watchdog.beat()
    self.trainer.once["local_checkpoint_seconds"] = local.seconds

  def _leave(self) -> None:
    """Saves and ends a run that is asked to stop."""
    self.trainer.summarize_pending()
    saved = "nothing is saved, because SaveCheckpointConfig.period is not set"
    if self.step == self.first_step:
      saved = "no step was taken, so there is nothing to save"
    elif self.manager is not None:
      # The time until the process is killed may be too short for a checkpoint in a store.
      if self.local is not None:
        self._save_locally(self.local)
      self._save()
      self.manager.wait()
      saved = f"saved in {checkpoints.checkpoint_folder(self.model_dir, self.step)}"
    raise self._stop_before.error(
      f"Stopped after step {self.step}; {saved}; start the same command again to resume."
    )

  def _act(self, mode: str, results: Mapping[str, Any]) -> None:
    """Runs the actions, which may request a stop; host 0 decides for all."""
    actions = (self.actions or {}).get(mode, ())
    stop = any(
      [action.run(self.trainer.train_state, metrics_by_task=results) for action in actions]
    )
    self.trainer.stop_training |= bool(multihost_utils.broadcast_one_to_all(np.int32(stop)))

  def _on_finished(self, step: int) -> None:
    self.watchdog.beat(step)
    self._progress.update(step)

  def _on_hang(self, step: int, seconds: float) -> None:
    goodput = self.trainer.goodput
    self.trainer.summary_writer.write_scalars(step, {"hang_seconds": seconds} | goodput.scalars())
    goodput.write(step)

  def _on_summary(self, step: int, scalars: Mapping[str, float]) -> None:
    """Shows the loss with the progress, warns if it or a step is not finite, and records where the time went."""
    self.trainer.goodput.write(step, wait=True)
    if scalars.get("skipped_steps"):
      logging.warning(
        "%d steps of this period had no finite loss or gradient and were skipped.",
        scalars["skipped_steps"],
      )
    loss = scalars.get("loss", 0.0)
    if not math.isfinite(loss):
      logging.warning("The loss is %s.", loss)
    self._progress.note = f"loss {loss:.4g}" if "loss" in scalars else ""
