"""`train`: creates data, state and periods from its arguments, and runs the main loop."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from absl import logging
from jax.experimental import multihost_utils

from walt_t5x.engine import checkpoints, run_record
from walt_t5x.engine.builtin import datasets
from walt_t5x.engine.builtin.base_model import BaseModel
from walt_t5x.engine.builtin.checkpoint_configs import CheckpointConfig
from walt_t5x.engine.builtin.checkpoint_manager import CheckpointManager, set_incomplete_aside
from walt_t5x.engine.builtin.data_iterator import ShardedIterator, eval_batches
from walt_t5x.engine.builtin.datasets import DatasetConfig
from walt_t5x.engine.builtin.local_checkpoints import LocalCheckpoints, newest_step
from walt_t5x.engine.builtin.main_loop import MainLoop, Periods
from walt_t5x.engine.builtin.monitoring import run_waits
from walt_t5x.engine.builtin.partitioner import PjitPartitioner
from walt_t5x.engine.builtin.restoring import Restorer, restore_row_position
from walt_t5x.engine.builtin.seeds import RowSeeds, drawn_seed
from walt_t5x.engine.builtin.train_state import StateInitializer, TrainState, write_model_info
from walt_t5x.engine.builtin.trainer import Trainer
from walt_t5x.engine.goodput import Goodput
from walt_t5x.engine.run_settings import RunSettings
from walt_t5x.engine.watchdog import Watchdog
from walt_t5x.files import storage


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
  watchdog: Watchdog | None = None,
) -> tuple[int, TrainState]:
  """Trains a model to `total_steps`, from its newest complete checkpoint if any; returns the last step and state.

  The same call after any interruption resumes the run: parameters, optimizer, parameter average, step and (with
  `save_dataset`) the next example. Periods count absolute steps, so a restart does not shift them.

  Args:
    model, partitioner, trainer_cls, train_state_initializer_cls: what T5X's `train` takes, of this engine.
    train_dataset_cfg, train_eval_dataset_cfg: data to train on, and to evaluate the loss on.
    infer_eval_dataset_cfg: must be None; `walt_t5x.evaluate` evaluates samples.
    checkpoint_cfg: what to save and to start from.
    model_dir: the run's folder.
    total_steps: step to stop at.
    eval_steps: batches per evaluation.
    eval_period: steps between evaluations.
    relative_steps: steps to train from the restored one; overrides `total_steps`.
    stats_period: steps between summaries; by default the smallest of the other periods.
    random_seed: for initial parameters, noise and, if its config has none, the order of the data. None draws a seed,
      which a restart draws again.
    use_hardware_rng: use XLA's own generator: faster, repeatable only on the same hardware and mesh.
    summarize_config_fn: `f(model_dir, writer, step)`, records the configuration.
    get_dataset_fn: `f(cfg, shard_id, num_shards, feature_converter_cls) -> tf.data.Dataset`.
    concurrent_metrics: False waits for each summary, so that 'TRAIN' actions run.
    actions: 'TRAIN' and 'TRAIN_EVAL' -> objects with `run(train_state, metrics_by_task=...) -> stop`.
    train_eval_get_dataset_fn: `f(cfg, shard_id, num_shards, eval_steps, feature_converter_cls) -> {name: Dataset}`.
    run_eval_before_training: evaluate once before the first step.
    use_orbax: must be True.
    inference_evaluator_cls, verify_matching_vocabs_fn: accepted for T5X compatibility, unused.
    gc_period: steps between runs of Python's garbage collector, which is off in between; 0 leaves it unchanged.
    settings: watchdog, skipped steps, profiler (the launcher passes what gin binds to `RunSettings`).
    watchdog: the launcher's, which watches already; by default one that begins once the state is initialized.

  Raises:
    exits.Preempted: SIGTERM was received; everything is saved.
    exits.NotFinite: too many consecutive steps had no finite loss and gradient.
  """
  del inference_evaluator_cls, verify_matching_vocabs_fn
  if infer_eval_dataset_cfg is not None:
    raise ValueError(
      "train: infer_eval_dataset_cfg must be None with the built-in engine; evaluate samples with walt_t5x.evaluate."
    )
  if not use_orbax:
    raise ValueError(
      "train: use_orbax=False is T5X's old format; the built-in engine writes only Orbax."
    )
  unknown = set(actions or ()) - {"TRAIN", "TRAIN_EVAL"}
  if unknown:
    raise ValueError(
      f"train: actions for {sorted(unknown)}, expected 'TRAIN' and 'TRAIN_EVAL' only."
    )
  settings = settings or RunSettings()
  watchdog = watchdog or Watchdog(limits=settings.limits(), model_dir=model_dir)
  watchdog.enter("data")
  began, goodput = time.monotonic(), Goodput(before=watchdog.age())
  storage.make_folder(model_dir)
  save_cfg, restore_cfg = checkpoint_cfg.save, checkpoint_cfg.restore

  # ---- Random numbers ----
  if use_hardware_rng:
    jax.config.update("jax_default_prng_impl", "unsafe_rbg")
  seed = random_seed if random_seed is not None else drawn_seed(model_dir)
  init_rng, trainer_rng = jax.random.split(jax.random.PRNGKey(seed))

  # ---- Data ----
  layout = partitioner.get_data_layout(train_dataset_cfg.batch_size)
  dataset = datasets.mixture_or_task(train_dataset_cfg)
  provenance = getattr(dataset, "walt_provenance", None)
  if provenance is not None:
    run_record.check(model_dir, provenance)
  given = train_dataset_cfg.seed
  row_seeds = RowSeeds(model_dir, seed if given is None else given)

  def rows(seed: int) -> ShardedIterator:
    cfg = dataclasses.replace(train_dataset_cfg, seed=seed)
    make = functools.partial(
      get_dataset_fn, cfg, layout.shard_id, layout.num_shards, model.FEATURE_CONVERTER_CLS
    )
    return ShardedIterator(
      make,
      sharding=partitioner.data_sharding,
      batch_size=layout.batch_size,
      folders=getattr(dataset, "walt_folders", ()),
    )

  with run_waits("opening the data"):
    iterator = rows(row_seeds.at(0)[1])
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

  # ---- State ----
  watchdog.enter("restore")
  initializer = train_state_initializer_cls(
    model, input_spec=iterator.element_spec, partitioner=partitioner
  )
  restorer = Restorer(initializer, init_rng)
  # The checkpoint of an earlier start that took no step, perhaps with settings that were corrected since.
  replaced = checkpoints.untrained_step(model_dir)
  set_incomplete_aside(model_dir)
  local = None
  if settings.local_checkpoints is not None:
    local = LocalCheckpoints(settings.local_checkpoints, model_dir)
  with goodput.within("restore"), run_waits("looking for a checkpoint and reading it"):
    resumed = from_local = local and local.restore(initializer, after=newest_step(model_dir))
    if resumed is None and replaced is None:
      resumed = restorer.newest(model_dir)
  if resumed is not None:
    replaced = None
  if replaced is not None:
    logging.warning(
      "%s was written before the first step; the run starts from its beginning and replaces it.",
      checkpoints.checkpoint_folder(model_dir, replaced),
    )
  if resumed is not None:
    state, first_step = resumed
    where = f", from {local.folder}" if local and from_local else ""
    logging.info("Resuming from step %d%s.", first_step, where)
    order_since, order_seed = row_seeds.at(first_step)
    if order_since > 0:
      iterator = rows(order_seed)
    # A local checkpoint has no position: the batches since one that has are read again.
    saved = max(newest_step(model_dir), order_since) if from_local else first_step
    restored = True
    if saved > order_since or not from_local:
      folder = checkpoints.checkpoint_folder(model_dir, saved)
      position = saved - order_since
      restored = restore_row_position(folder, iterator, layout, position=position)
    if restored and saved < first_step:
      watchdog.enter("data")
      with run_waits(f"reading the batches of steps {saved} to {first_step} again"):
        iterator.skip(first_step - saved)
    if not restored and first_step > 0:
      iterator = rows(row_seeds.renew(first_step))
  elif restore_cfg is not None and restore_cfg.path:
    with goodput.within("restore"), run_waits(f"reading {restore_cfg.path}"):
      state = restorer.from_config(restore_cfg)
    first_step = int(jax.device_get(state.step))
    if restore_cfg.restore_dataset:
      folder = checkpoints.find_checkpoint(str(restore_cfg.path))
      position = checkpoints.checkpoint_step(folder)
      restore_row_position(folder, iterator, layout, position=position)
  else:
    watchdog.enter("initialize")
    with run_waits("initializing the parameters"):
      state, first_step = initializer.from_scratch(init_rng), 0
  watchdog.enter("record")
  write_model_info(model_dir, initializer)

  # ---- Periods ----
  total = first_step + relative_steps if relative_steps else total_steps
  if total < first_step:
    raise ValueError(
      f"total_steps={total} is before the restored step {first_step}; raise TRAIN_STEPS or use another MODEL_DIR."
    )
  eval_period = eval_period if eval_rows else 0
  save_period = (save_cfg.period or 0) if save_cfg else 0
  periods = Periods(
    total=total,
    stats=stats_period or min(p for p in (eval_period, save_period, gc_period, total) if p),
    evaluate=eval_period,
    save=save_period,
    save_steps=set(save_cfg.checkpoint_steps or ()) if save_cfg else set(),
    save_locally=settings.local_period or 0,
    collect=gc_period,
  )
  manager = None
  if save_cfg is not None and (periods.save or periods.save_steps):
    manager = CheckpointManager(
      model_dir, config=save_cfg, layout=layout, keep_every=settings.keep_every
    )

  def begin(writer: Any, step: int) -> None:
    summarize_config_fn(model_dir, writer, step)
    if provenance is not None:
      run_record.record(model_dir, provenance)
    if manager is not None and replaced is not None:
      manager.delete(replaced)
    if resumed is None and jax.process_index() == 0:
      checkpoints.record_first(model_dir, first_step)

  # ---- Training ----
  trainer = trainer_cls(
    model=model,
    train_state=state,
    partitioner=partitioner,
    eval_names=list(eval_rows),
    summary_dir=model_dir,
    train_state_axes=initializer.axes,
    rng=trainer_rng,
  )
  del state  # The trainer donates its buffers.
  trainer.settings, trainer.goodput = settings, goodput
  trainer.once["init_or_restore_seconds"] = time.monotonic() - began
  loop = MainLoop(
    trainer=trainer,
    iterator=iterator,
    model_dir=model_dir,
    first_step=first_step,
    periods=periods,
    manager=manager,
    local=local,
    eval_batches=lambda: {
      name: eval_batches(held, partitioner.data_sharding, name=name)
      for name, held in eval_rows.items()
    },
    actions=actions,
    concurrent_metrics=concurrent_metrics,
    watchdog=watchdog,
  )
  last = loop.run(
    before=begin,
    eval_first=bool(eval_rows) and run_eval_before_training,
  )
  if jax.process_index() == 0:
    checkpoints.forget_first(model_dir)
  multihost_utils.sync_global_devices("trained")
  if local is not None:
    local.clear()
  return last
