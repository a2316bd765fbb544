"""The loops that benchmarks/engine.py measures: all train the same denoiser on the same batch from the same state.

- by hand: `jax.jit` of loss, gradient, clipping, AdamW, parameter average and update, with donated state, in a `for`
  loop that waits once, at the end. It computes no metrics.
- engine's program: the built-in engine's step in the same `for` loop. It also computes metrics: the loss by modality
  and noise level, merged over steps; gradient and update norm; learning rate; and it keeps the old state if loss or
  gradient is not finite.
- engine: `Trainer.train`. The same program, and per step a check for SIGTERM, the number of skipped steps of a few
  steps before, the time spent on input, a profiler annotation; per call a summary.
- T5X: T5X's Trainer with its compiled step; the metrics of the loss, merged on the host, the learning rate; per call a
  summary.
"""

import functools
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Seconds, and CPU seconds of all threads, per step.
Times = tuple[float, float]
Loop = Callable[[int], Times]


def make_model(layers: int, width: int) -> Any:
  from walt_t5x.denoiser.transformer import WaltDenoiser
  from walt_t5x.engine import optimizers, schedules
  from walt_t5x.models.denoiser_model import DenoiserModel

  module = WaltDenoiser(
    num_layers=layers,
    width=width,
    num_heads=4,
    mlp_dim=4 * width,
    latent_channels=8,
    patch_size=1,
    spatial_window=(1, 8, 8),
    spatiotemporal_window=(3, 8, 8),
    adaln_rank=2,
    text_dim=64,
    dtype="float32",
  )
  rate = schedules.warmup_cosine(peak=1e-3, warmup_steps=10, total_steps=10_000)
  optimizer = optimizers.adamw(rate, ema_decay=0.99)
  return DenoiserModel(module=module, optimizer_def=optimizer, self_conditioning_probability=0.5)


def training_rows(model: Any, rows: int, folder: Path) -> tuple[Any, Any]:
  """Batches of a small cache on the first device, and their layout."""
  import seqio

  from benchmarks.engine_rows import LATENTS, write_cache
  from data import corpus, tasks
  from walt_t5x.engine.builtin.data_iterator import ShardedIterator
  from walt_t5x.engine.builtin.datasets import DatasetConfig, get_dataset
  from walt_t5x.engine.builtin.partitioner import PjitPartitioner

  cache = folder / "cache"
  if not cache.exists():
    write_cache(cache, videos=64, images=8, shards=2)
  seqio.set_global_cache_dirs([str(cache)])
  row = tasks.RowFormat(text_length=16, text_slots=3)
  task = tasks.video_task(task="shapes", latents=LATENTS, row=row)
  model.corpus = corpus.constants_of(task)
  config = DatasetConfig(
    mixture_or_task_name=task,
    task_feature_lengths={"latents": 3, "is_image": 1, "text": 3, "text_mask": 3},
    split="train",
    batch_size=rows,
    shuffle=True,
    seed=0,
    use_cached=True,
    trim_output_features=False,
  )  # fmt: skip
  partitioner = PjitPartitioner(num_partitions=1)
  layout = partitioner.get_data_layout(rows)
  make = functools.partial(
    get_dataset, config, layout.shard_id, layout.num_shards, model.FEATURE_CONVERTER_CLS
  )
  return ShardedIterator(make, sharding=partitioner.data_sharding, batch_size=rows), layout


def by_hand(model: Any, params: Any, batch: Any) -> Loop:
  """The minimal loop, from a copy of `params`."""
  import jax
  import jax.numpy as jnp
  import optax

  optimizer = model.optimizer_def.optax_optimizer
  key = jax.random.PRNGKey(0)

  def step(params, opt_state, n, batch):
    rng = jax.random.fold_in(key, n)
    (loss, _), grads = jax.value_and_grad(model.loss_fn, has_aux=True)(params, batch, rng)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, n + 1, loss

  step = jax.jit(step, donate_argnums=(0, 1, 2))
  params = jax.tree.map(jnp.copy, params)
  held = (params, optimizer.init(params), jnp.zeros([], jnp.int32))

  def run(steps: int) -> Times:
    nonlocal held
    started = clocks()
    for _ in range(steps):
      *held, loss = step(*held, batch)
    jax.block_until_ready(loss)
    return since(started, steps)

  return run


def by_program(model: Any, state: Any, initializer: Any, batch: Any) -> Loop:
  """The built-in engine's program without its loop, from a copy of `state`."""
  import jax
  import jax.numpy as jnp

  from walt_t5x.engine.builtin.partitioner import PjitPartitioner
  from walt_t5x.engine.builtin.training_step import TrainingStep

  step = TrainingStep(
    model=model,
    partitioner=PjitPartitioner(num_partitions=1),
    axes=initializer.axes,
    rng=jax.random.PRNGKey(1),
    learning_rate_fn=lambda step: 1e-3,
  )
  state = jax.tree.map(jnp.copy, state)

  def run(steps: int) -> Times:
    nonlocal state
    started = clocks()
    for _ in range(steps):
      state, skipped = step(state, batch)
    jax.block_until_ready(skipped)
    return since(started, steps)

  return run


def by_trainer(trainer: Any, batch: Any) -> Loop:
  """A Trainer of either engine."""
  trainer.compile_train(batch)
  reached = 0

  def run(steps: int) -> Times:
    nonlocal reached
    started = clocks()
    summary = trainer.train(itertools.repeat(batch), steps, reached)
    summary.result()
    reached += steps
    return since(started, steps)

  return run


def builtin_trainer(model: Any, state: Any, initializer: Any, folder: Path) -> Any:
  import jax

  from walt_t5x import engine

  return engine.Trainer(
    model=model,
    train_state=state,
    partitioner=engine.PjitPartitioner(num_partitions=1),
    eval_names=[],
    summary_dir=str(folder),
    train_state_axes=initializer.axes,
    rng=jax.random.PRNGKey(1),
    learning_rate_fn=lambda step: 1e-3,
  )


def t5x_trainer(model: Any, batch: Any, folder: Path) -> Any:
  """T5X's Trainer with a new state; T5X must be the engine of the process."""
  import jax
  from t5x import utils

  from walt_t5x import engine

  partitioner = engine.PjitPartitioner(num_partitions=1)
  initializer = utils.TrainStateInitializer(
    optimizer_def=model.optimizer_def,
    init_fn=model.get_initial_variables,
    input_shapes={k: v.shape for k, v in batch.items()},
    partitioner=partitioner,
    input_types={k: v.dtype for k, v in batch.items()},
  )
  return engine.Trainer(
    model=model,
    train_state=initializer.from_scratch(jax.random.PRNGKey(0)),
    partitioner=partitioner,
    eval_names=[],
    summary_dir=str(folder),
    train_state_axes=initializer.train_state_axes,
    rng=jax.random.PRNGKey(1),
    learning_rate_fn=lambda step: 1e-3,
    num_microbatches=None,
  )


def clocks() -> Times:
  return time.perf_counter(), time.process_time()


def since(started: Times, steps: int) -> Times:
  return tuple((now - then) / steps for now, then in zip(clocks(), started))
