"""The built-in engine's step against a hand-written loop, and how long a checkpoint holds the loop up.

  python -m benchmarks.engine                  # prints the tables, writes benchmarks/engine.{md,json}
  python -m benchmarks.engine --sizes narrow   # the quick half

Both loops train the same denoiser on the same batch from the same state, in one process, in turns: a hand-written
`jax.jit` of loss, gradient, AdamW with parameter average and update, which computes nothing else; and the engine's
`Trainer`, with its norms, its metrics, its watch for values that are not finite, and its look at SIGTERM. The ratio is
the median over the turns of (engine / hand-written), of the clock and of the processor time of all threads; the latter
says the same on a busy machine.

A checkpoint's stall is the time that `save` keeps the training thread; the file is written while training goes on.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("WALT_T5X_ENGINE", "builtin")

HERE = Path(__file__).resolve().parent
# Name -> layers, width, rows, steps a turn. `tiny` is gin/models/walt_tiny_base.gin.
SIZES = {"narrow": (2, 64, 8, 12), "tiny": (4, 128, 16, 5)}


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


def hand_written(model: Any, state: Any, batch: Any) -> Callable[[int], tuple[float, float]]:
  """Seconds and processor seconds a step of a loop that does the least; runs so many steps."""
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
  held = jax.tree.map(jnp.copy, (state.params, state.param_states, jnp.zeros([], jnp.int32)))

  def run(steps: int) -> tuple[float, float]:
    nonlocal held
    started = clocks()
    for _ in range(steps):
      *held, loss = step(*held, batch)
    jax.block_until_ready(loss)
    return since(started, steps)

  return run


def clocks() -> tuple[float, float]:
  return time.perf_counter(), time.process_time()


def since(started: tuple[float, float], steps: int) -> tuple[float, float]:
  return tuple((now - then) / steps for now, then in zip(clocks(), started))


def step_times(size: str, turns: int, folder: Path) -> dict[str, Any]:
  """Both loops in turns; also hands the parts to `stalls`."""
  import jax
  import seqio

  from benchmarks.engine_rows import LATENTS, write_cache
  from data import tasks
  from walt_t5x import engine
  from walt_t5x.engine.builtin import run_inputs
  from walt_t5x.engine.builtin.datasets import get_dataset
  from walt_t5x.engine.builtin.initial_state import StateInitializer
  from walt_t5x.engine.builtin.preemption import PreemptionNotice

  layers, width, rows, steps = SIZES[size]
  cache = folder / "cache"
  if not cache.exists():
    write_cache(cache, videos=64, images=8, shards=2)
  seqio.set_global_cache_dirs([str(cache)])
  row = tasks.RowFormat(text_length=16, text_slots=3)
  config = engine.DatasetConfig(
    mixture_or_task_name=tasks.video_task(task="shapes", latents=LATENTS, row=row),
    task_feature_lengths={
      "latents": 3, "is_image": 1, "text": 3, "text_mask": 3, "null_text": 1,
    },
    split="train",
    batch_size=rows,
    shuffle=True,
    seed=0,
    use_cached=True,
    trim_output_features=False,
  )  # fmt: skip
  model = make_model(layers, width)
  partitioner = engine.PjitPartitioner(num_partitions=1)
  layout = partitioner.get_data_layout(rows)
  iterator = run_inputs.rows(
    config, model, layout=layout, seed=0, get_dataset_fn=get_dataset, partitioner=partitioner
  )
  initializer = StateInitializer(model, input_spec=iterator.element_spec, partitioner=partitioner)
  state = initializer.from_scratch(jax.random.PRNGKey(0))
  batch = next(iterator)

  (folder / size).mkdir()
  by_hand = hand_written(model, state, batch)
  trainer = engine.Trainer(
    model=model,
    train_state=state,
    partitioner=partitioner,
    eval_names=[],
    summary_dir=str(folder / size),
    train_state_axes=initializer.axes,
    rng=jax.random.PRNGKey(1),
    learning_rate_fn=lambda step: 1e-3,
  )
  trainer.compile_train(batch)
  reached = 0
  with PreemptionNotice() as notice:
    trainer.before_step = notice.before

    def by_engine(count: int) -> tuple[float, float]:
      nonlocal reached
      started = clocks()
      trainer.train(_endless(batch), count, reached)
      trainer.wait_for_steps()
      trainer.wait_for_summary()
      reached += count
      return since(started, count)

    by_hand(2), by_engine(2)
    pairs = []
    for turn in range(turns):
      if turn % 2:
        mine, hand = by_engine(steps), by_hand(steps)
      else:
        hand, mine = by_hand(steps), by_engine(steps)
      pairs.append((hand, mine))
    result = {
      "parameters": sum(int(p.size) for p in jax.tree.leaves(state_params(trainer))),
      "rows": rows,
      "hand_written_ms": 1e3 * statistics.median(h[0] for h, _ in pairs),
      "engine_ms": 1e3 * statistics.median(e[0] for _, e in pairs),
      "ratio": statistics.median(e[0] / h[0] for h, e in pairs),
      "processor_ratio": statistics.median(e[1] / h[1] for h, e in pairs),
      "load_average": os.getloadavg()[0],
      "turns": turns,
      "steps_a_turn": steps,
    }
    result |= stalls(trainer, iterator, layout, by_engine, folder / f"{size}_checkpoints")
  trainer.close()
  return result


def state_params(trainer: Any) -> Any:
  return trainer.train_state.params


def _endless(batch: Any) -> Any:
  while True:
    yield batch


def stalls(
  trainer: Any, iterator: Any, layout: Any, train: Callable[[int], Any], folder: Path
) -> dict[str, Any]:
  """What saving costs: the training thread's stall, and the time until the files are whole."""
  import jax

  from walt_t5x import engine
  from walt_t5x.engine.builtin.checkpoint_manager import CheckpointManager

  config = engine.SaveCheckpointConfig(period=1, keep=2, save_dataset=True)
  manager = CheckpointManager(str(folder), config=config, layout=layout)
  stall, whole = [], []
  for n in range(5):
    trainer.wait_for_steps()
    started = time.perf_counter()
    manager.save(n, trainer.train_state, iterator)
    stall.append(time.perf_counter() - started)
    train(2)  # Goes on beside the writing.
    manager.wait()
    whole.append(time.perf_counter() - started)
  manager.close()
  size = sum(x.nbytes for x in jax.tree.leaves(trainer.train_state.state_dict()))
  return {
    "checkpoint_MB": size / 1e6,
    "stall_ms": 1e3 * statistics.median(stall[1:]),
    "first_stall_ms": 1e3 * stall[0],
    "whole_ms": 1e3 * statistics.median(whole[1:]),
  }


def t5x_note() -> str:
  import importlib.util

  if importlib.util.find_spec("t5x") is None:
    return "T5X is not importable here, so its Trainer was not measured."
  return "T5X is importable; measure its Trainer with WALT_T5X_ENGINE=t5x and t5x/train.py's own step times."


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=list(SIZES))
  parser.add_argument("--turns", type=int, default=12)
  parser.add_argument("--output", default=str(HERE), help="where engine.{md,json} go")
  arguments = parser.parse_args()
  results = {}
  with tempfile.TemporaryDirectory() as folder:
    for size in arguments.sizes:
      results[size] = step_times(size, arguments.turns, Path(folder))
      print(size, json.dumps(results[size]), flush=True)
  lines = [
    "| size | parameters | rows | hand-written ms | engine ms | ratio | processor time | load |",
    "| --- | --- | --- | --- | --- | --- | --- | --- |",
  ]
  for size, r in results.items():
    lines.append(
      f"| {size} | {r['parameters']:,} | {r['rows']} | {r['hand_written_ms']:.1f} | {r['engine_ms']:.1f} | "
      f"{r['ratio']:.3f} | {r['processor_ratio']:.3f} | {r['load_average']:.1f} |"
    )
  lines += [
    "",
    "| size | checkpoint MB | stall ms | first stall ms | whole after ms |",
    "| --- | --- | --- | --- | --- |",
  ]
  for size, r in results.items():
    lines.append(
      f"| {size} | {r['checkpoint_MB']:.1f} | {r['stall_ms']:.0f} | {r['first_stall_ms']:.0f} | {r['whole_ms']:.0f} |"
    )
  table = "\n".join([*lines, "", t5x_note()]) + "\n"
  print(table)
  output = Path(arguments.output)
  (output / "engine.json").write_text(json.dumps(results, indent=1) + "\n")
  (output / "engine.md").write_text("# The engine's step and its checkpoints\n\n" + table)
  worst = max(r["ratio"] for r in results.values())
  print(f"worst ratio {worst:.3f}: {'within 3%' if worst <= 1.03 else 'NOT within 3%'}")
  return 0 if worst <= 1.03 else 1


if __name__ == "__main__":
  sys.exit(main())
