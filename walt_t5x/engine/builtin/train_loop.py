"""`train`: data, state, checkpoints and the main loop, in the order in which they happen."""

import functools
import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from walt_t5x.engine import checkpoints, exits
from walt_t5x.engine.builtin import datasets, restoring, run_inputs
from walt_t5x.engine.builtin.base_model import BaseModel
from walt_t5x.engine.builtin.checkpoint_configs import CheckpointConfig
from walt_t5x.engine.builtin.checkpoint_manager import CheckpointManager, set_torn_aside
from walt_t5x.engine.builtin.datasets import DatasetConfig
from walt_t5x.engine.builtin.goodput import Goodput
from walt_t5x.engine.builtin.initial_state import StateInitializer, write_model_info
from walt_t5x.engine.builtin.partitioner import PjitPartitioner
from walt_t5x.engine.builtin.preemption import PreemptionNotice
from walt_t5x.engine.builtin.profiling import Profiler
from walt_t5x.engine.builtin.progress import Progress
from walt_t5x.engine.builtin.train_state import TrainState
from walt_t5x.engine.builtin.trainer import Trainer
from walt_t5x.engine.builtin.watchdog import Watchdog
from walt_t5x.engine.run_settings import RunSettings


def train(
  *,
  model: BaseModel,
  train_dataset_cfg: DatasetConfig,
  train_eval_dataset_cfg: DatasetConfig | None,
  infer_eval_dataset_cfg: DatasetConfig | None,
  checkpoint_cfg: CheckpointConfig,
  partitioner: PjitPartitioner,
  trainer_cls: Callable[..., Trainer],
  model_dir: str,
  total_steps: int,
  eval_steps: int,
  eval_period: int,
  relative_steps: int | None = None,
  stats_period: int | None = None,
  random_seed: int | None,
  use_hardware_rng: bool = False,
  summarize_config_fn: Callable[[str, Any, int], None],
  inference_evaluator_cls: Any = None,
  get_dataset_fn: Callable[..., Any] = datasets.get_dataset,
  concurrent_metrics: bool = True,
  actions: Mapping[str, Sequence[Any]] | None = None,
  train_eval_get_dataset_fn: Callable[..., Any] = datasets.get_training_eval_datasets,
  run_eval_before_training: bool = False,
  train_state_initializer_cls: Callable[..., StateInitializer] = StateInitializer,
  use_orbax: bool = True,
  verify_matching_vocabs_fn: Callable[..., None] | None = None,
  gc_period: int = 0,
  settings: RunSettings | None = None,
) -> tuple[int, TrainState]:
  """Trains a model to `total_steps`, from its newest whole checkpoint if it has one.

  The same call after any interruption continues the run: parameters, optimizer, parameter average, step and (with
  `save_dataset`) the row that comes next. Periods count absolute steps, so a restart does not shift them.

  Args:
    model: what to train.
    train_dataset_cfg: rows to train on.
    train_eval_dataset_cfg: rows to evaluate the loss on, or None.
    infer_eval_dataset_cfg: must be None; `walt_t5x.evaluate` judges samples.
    checkpoint_cfg: what to save and to start from.
    partitioner: mesh and rules.
    trainer_cls: makes the trainer.
    model_dir: the run's folder.
    total_steps: step to stop at.
    eval_steps: batches an evaluation.
    eval_period: steps between evaluations.
    relative_steps: steps to train from the restored one; overrides `total_steps`.
    stats_period: steps between summaries; by default the least of the other periods.
    random_seed: for initial parameters, noise and, where its config has none, the order of rows. None draws one, and
      a restart draws the same.
    use_hardware_rng: XLA's own generator: faster, repeatable only on the same hardware and mesh.
    summarize_config_fn: `f(model_dir, writer, step)`, records the configuration.
    inference_evaluator_cls: T5X only, unused.
    get_dataset_fn: `f(cfg, shard_id, num_shards, feature_converter_cls) -> tf.data.Dataset`.
    concurrent_metrics: False waits for each summary, so that 'TRAIN' actions run.
    actions: 'TRAIN' and 'TRAIN_EVAL' -> objects with `run(train_state, metrics_by_task=...) -> stop`.
    train_eval_get_dataset_fn: `f(cfg, shard_id, num_shards, eval_steps, feature_converter_cls) -> {name: Dataset}`.
    run_eval_before_training: evaluate once before the first step.
    train_state_initializer_cls: makes the initial state.
    use_orbax: must be True.
    verify_matching_vocabs_fn: accepted for T5X's sake; models here have no vocabulary of their own.
    gc_period: steps between runs of Python's garbage collector, which is then off in between; 0 leaves it alone.
    settings: watchdog, skipped steps, profiler (the launcher passes what gin binds to `RunSettings`).

  Returns:
    The last step and the last state.

  Raises:
    exits.Preempted: SIGTERM came; everything is saved.
    exits.NotFinite: too many steps in a row had no finite loss and gradient.
  """
  del inference_evaluator_cls, verify_matching_vocabs_fn
  _check_arguments(infer_eval_dataset_cfg, use_orbax=use_orbax, actions=actions)
  settings = settings or RunSettings()
  began, goodput = time.monotonic(), Goodput()
  epath.Path(model_dir).mkdir(parents=True, exist_ok=True)
  save_cfg, restore_cfg = checkpoint_cfg.save, checkpoint_cfg.restore

  # ---- Random numbers ----
  if use_hardware_rng:
    jax.config.update("jax_default_prng_impl", "unsafe_rbg")
  seed = random_seed if random_seed is not None else run_inputs.drawn_seed(model_dir)
  init_rng, trainer_rng = jax.random.split(jax.random.PRNGKey(seed))

  # ---- Rows ----
  layout = partitioner.get_data_layout(train_dataset_cfg.batch_size)
  run_inputs.record_provenance(model_dir, train_dataset_cfg)
  given = train_dataset_cfg.seed
  row_seeds = run_inputs.RowSeeds(model_dir, seed if given is None else given)
  rows = functools.partial(
    run_inputs.rows,
    train_dataset_cfg,
    model,
    layout=layout,
    get_dataset_fn=get_dataset_fn,
    partitioner=partitioner,
  )
  iterator = rows(seed=row_seeds.at(0))
  eval_rows: Mapping[str, Any] = {}
  if train_eval_dataset_cfg is not None:
    eval_layout = partitioner.get_data_layout(train_eval_dataset_cfg.batch_size)
    eval_rows = train_eval_get_dataset_fn(
      train_eval_dataset_cfg,
      eval_layout.shard_id,
      eval_layout.num_shards,
      eval_steps,
      model.FEATURE_CONVERTER_CLS,
    )

  # ---- State: this run's newest checkpoint, else the one to start from, else scratch ----
  initializer = train_state_initializer_cls(
    model, input_spec=iterator.element_spec, partitioner=partitioner
  )
  restorer = restoring.Restorer(
    shapes=initializer.shapes,
    shardings=initializer.shardings,
    from_scratch=lambda: initializer.from_scratch(init_rng),
  )
  set_torn_aside(model_dir)
  resumed = restorer.newest(model_dir)
  if resumed is not None:
    state, host_step = resumed
    logging.info("Resuming from step %d.", host_step)
    if row_seeds.at(host_step) != row_seeds.at(0):
      iterator = rows(seed=row_seeds.at(host_step))
    folder = checkpoints.checkpoint_folder(model_dir, host_step)
    if not restoring.restore_row_position(folder, iterator, layout) and host_step > 0:
      iterator = rows(seed=row_seeds.renew(host_step))
  elif restore_cfg is not None and restore_cfg.path:
    state = restorer.from_config(restore_cfg)
    host_step = int(jax.device_get(state.step))
    if restore_cfg.restore_dataset:
      restoring.restore_row_position(
        checkpoints.find_checkpoint(str(restore_cfg.path)), iterator, layout
      )
  else:
    state, host_step = restorer.from_scratch(), 0
  write_model_info(model_dir, initializer)

  # ---- Periods ----
  first_step = host_step
  total = host_step + relative_steps if relative_steps else total_steps
  if total < host_step:
    raise ValueError(
      f"total_steps={total} lies before the restored step {host_step}; raise TRAIN_STEPS or use another MODEL_DIR."
    )
  eval_period = eval_period if eval_rows else 0
  save_period = (save_cfg.period or 0) if save_cfg else 0
  save_steps = set(save_cfg.checkpoint_steps or ()) if save_cfg else set()
  stats_period = stats_period or min(p for p in (eval_period, save_period, gc_period, total) if p)
  manager = None
  if save_cfg is not None and (save_period or save_steps):
    manager = CheckpointManager(
      model_dir, config=save_cfg, layout=layout, keep_every=settings.keep_every
    )

  trainer = trainer_cls(
    model=model,
    train_state=state,
    partitioner=partitioner,
    eval_names=list(eval_rows),
    summary_dir=model_dir,
    train_state_axes=initializer.axes,
    rng=trainer_rng,
  )
  del state, resumed
  trainer.settings, trainer.goodput = settings, goodput
  progress = Progress(host_step, total, enabled=jax.process_index() == 0)
  trainer.on_summary = lambda step, scalars: progress.note(_note(scalars))
  trainer.add_scalar("init_or_restore_seconds", time.monotonic() - began)

  # ---- Watching over the run ----
  notice, profiler = PreemptionNotice(), Profiler(model_dir, settings.profile_steps)
  watchdog = Watchdog(
    settings.watchdog_seconds,
    model_dir=model_dir,
    phase=lambda: goodput.phase,
    on_hang=lambda step, seconds: trainer.summary_writer.write_scalars(
      step, {"hang_seconds": seconds} | goodput.scalars()
    ),
  )
  trainer.on_finished = watchdog.beat

  def before_step(step: int) -> bool:
    if profiler.ends_at(step):
      trainer.wait_for_steps()
      profiler.stop()
    profiler.before(step)
    return notice.before(step)

  trainer.before_step = before_step

  def evaluate() -> None:
    started = time.monotonic()
    with goodput.within("eval"):
      results = trainer.eval(
        {name: run_inputs.eval_batches(held, partitioner) for name, held in eval_rows.items()}
      )
      trainer.stop_training |= _run_actions(actions, "TRAIN_EVAL", trainer.train_state, results)
    watchdog.beat()
    trainer.add_scalar("evaluate_seconds", time.monotonic() - started)

  def save() -> None:
    assert manager is not None
    trainer.wait_for_steps()
    trainer.wait_for_summary()
    started = time.monotonic()
    with goodput.within("checkpoint"):
      saved = manager.save(host_step, trainer.train_state, iterator)
    watchdog.beat()
    if saved:
      trainer.add_scalar("checkpoint_seconds", time.monotonic() - started)

  def advance(goal: int, *, summarize: bool) -> Any:
    """Trains to the step `goal`, or leaves on the way; the summary of the period, if it ends there."""
    nonlocal host_step
    summary = trainer.train(iterator, goal - host_step, host_step, summarize=summarize)
    host_step = trainer.host_step
    if host_step < goal:
      leave()
    progress.update(host_step)
    profiler.poll(host_step)
    return summary

  def leave() -> None:
    """Saves and ends a run that is asked to go."""
    trainer.summarize_pending()
    where = "nothing is saved, because SaveCheckpointConfig.period is not set"
    if host_step == first_step:
      where = "no step was taken, so there is nothing to save"
    elif manager is not None:
      save()
      manager.wait()
      where = f"saved in {checkpoints.checkpoint_folder(model_dir, host_step)}"
    raise exits.Preempted(host_step, f"{where}; start the same command again to go on")

  try:
    with trainer, notice:
      summarize_config_fn(model_dir, trainer.summary_writer, host_step)
      if eval_rows and run_eval_before_training:
        evaluate()
      if manager is not None and save_period:
        save()  # Finds out early that the folder cannot be written.
      if host_step == total:
        logging.warning("The run is at its last step %d already; nothing to train.", total)
      else:
        iterator.start_warmup()
        trainer.compile_train(iterator.element_spec)
      if gc_period:
        gc.disable()
      watchdog.start(host_step)

      # ---- Main loop: from one event to the next ----
      while host_step < total and not trainer.stop_training:
        goal = min(
          [
            _next_multiple(host_step, p)
            for p in (stats_period, eval_period, save_period, gc_period)
            if p
          ]
          + [s for s in save_steps if s > host_step]
          + [total]
        )
        summarize = goal % stats_period == 0 or goal == total
        # Short strides keep the progress display alive through long periods; they cost nothing on the device.
        while goal - host_step > _STRIDE:
          advance(host_step + _STRIDE, summarize=False)
        summary = advance(goal, summarize=summarize)
        if summary is not None and not concurrent_metrics:
          results = {"train": summary.result()}
          trainer.stop_training |= _run_actions(actions, "TRAIN", trainer.train_state, results)
        last = host_step == total or trainer.stop_training
        if gc_period and (last or host_step % gc_period == 0):
          gc.collect()
        if manager is not None and (
          last or (save_period and host_step % save_period == 0) or host_step in save_steps
        ):
          save()
        if eval_period and (last or host_step % eval_period == 0):
          evaluate()

      trainer.wait_for_steps()
      trainer.wait_for_summary()
      with goodput.within("checkpoint"):
        if manager is not None:
          manager.wait()
  finally:
    watchdog.stop()
    profiler.stop()
    progress.close()
    if manager is not None:
      manager.close()
    if gc_period:
      gc.enable()
  logging.info("Trained steps %d to %d.", first_step, host_step)
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices("trained")
  return host_step, trainer.train_state


_STRIDE = 50


def _check_arguments(
  infer_eval_dataset_cfg: Any, *, use_orbax: bool, actions: Mapping[str, Sequence[Any]] | None
) -> None:
  if infer_eval_dataset_cfg is not None:
    raise ValueError(
      "train: infer_eval_dataset_cfg must be None with the built-in engine; judge samples with walt_t5x.evaluate."
    )
  if not use_orbax:
    raise ValueError(
      "train: use_orbax=False is T5X's old format; the built-in engine writes Orbax only."
    )
  unknown = set(actions or ()) - {"TRAIN", "TRAIN_EVAL"}
  if unknown:
    raise ValueError(
      f"train: actions for {sorted(unknown)}, expected 'TRAIN' and 'TRAIN_EVAL' only."
    )


def _run_actions(
  actions: Mapping[str, Sequence[Any]] | None,
  mode: str,
  state: TrainState,
  results: Mapping[str, Any],
) -> bool:
  """True if an action asks to stop; host 0 decides for all."""
  wishes = [action.run(state, metrics_by_task=results) for action in (actions or {}).get(mode, ())]
  stop = any(wishes)
  if jax.process_count() > 1:
    stop = bool(multihost_utils.broadcast_one_to_all(np.int32(stop)))
  return stop


def _next_multiple(step: int, period: int) -> int:
  return (step // period + 1) * period


def _note(scalars: Mapping[str, float]) -> str:
  if scalars.get("skipped_steps"):
    logging.warning(
      "%d steps of this period had no finite loss or gradient and were skipped.",
      scalars["skipped_steps"],
    )
  loss = scalars.get("loss")
  if loss is None:
    return ""
  if not math.isfinite(loss):
    logging.warning("The loss is %s.", loss)
  return f"loss {loss:.4g}"
