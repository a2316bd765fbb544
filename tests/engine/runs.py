"""Short runs of the built-in engine for tests, without gin.

Runs of one process share the compiled step and the first state, half of the time of a short run. Programs that tests
start, and launches with a gin file, compile their own.
"""

import functools
import json
import os
import pathlib
import sys
import time
from typing import Any, ClassVar

import jax
import numpy as np
import optax

from tests.engine import toy
from walt_t5x import engine
from walt_t5x.engine import optimizers, schedules
from walt_t5x.engine.builtin.train_state import StateInitializer

SCHEDULE = schedules.warmup_cosine(peak=0.1, warmup_steps=2, total_steps=20)


@functools.cache
def model(*, noise: float = 0.0, **settings: Any) -> toy.ToyModel:
  """The toy model with the toy chain."""
  settings = {"weight_decay": 0.01, "ema_decay": 0.9} | settings
  return toy.ToyModel(optimizers.adamw(SCHEDULE, **settings), noise=noise)


def dataset(**changes: Any) -> engine.DatasetConfig:
  """The toy data."""
  settings = {
    "mixture_or_task_name": "engine_toy",
    "task_feature_lengths": {"x": 4, "y": 1, "id": 1},
    "split": "train",
    "batch_size": 8,
    "shuffle": True,
    "seed": None,
  }
  return engine.DatasetConfig(**(settings | changes))


class Initializer(StateInitializer):
  """Computes the first state once for each model, mesh and key."""

  _states: ClassVar[dict[Any, Any]] = {}

  def from_scratch(self, rng: jax.Array) -> Any:
    mesh = self._partitioner
    key = (self._model, tuple(self._shapes.items()), rng.tobytes())
    key += (mesh.mesh, mesh.logical_axis_rules, jax.config.read("jax_disable_most_optimizations"))
    if key not in self._states:
      self._states[key] = jax.device_get(super().from_scratch(rng))
    # Copies, because a step may reuse the memory of its state.
    return jax.device_put(jax.tree.map(np.copy, self._states[key]), self.shardings)


class Trainer(engine.Trainer):
  """Compiles once for each model, mesh and key."""

  _compiled: ClassVar[dict[Any, Any]] = {}

  def compile_train(self, batch: Any) -> None:
    step, mesh = self._step, self._partitioner
    shapes = tuple((name, value.shape) for name, value in batch.items())
    key = (step.model, step.learning_rate_fn, step.num_microbatches, step.rng.tobytes(), shapes)
    key += (mesh.mesh, mesh.logical_axis_rules, jax.config.read("jax_disable_most_optimizations"))
    if key not in self._compiled:
      super().compile_train(batch)
      self._compiled[key] = step._compiled, step._empty, step.flops
    step._compiled, step._empty, step.flops = self._compiled[key]


def trainer(**settings: Any) -> Any:
  """A trainer constructor with bound arguments, as gin binds them."""
  return functools.partial(Trainer, **({"learning_rate_fn": SCHEDULE} | settings))


def train(model_dir: os.PathLike[str], total_steps: int, **changes: Any) -> Any:
  """Trains; returns the last state."""
  save = engine.SaveCheckpointConfig(period=5, keep=3, save_dataset=True)
  arguments: dict[str, Any] = {
    "model": model(noise=0.1),
    "train_dataset_cfg": dataset(),
    "train_eval_dataset_cfg": None,
    "infer_eval_dataset_cfg": None,
    "checkpoint_cfg": engine.CheckpointConfig(save=save),
    "partitioner": one_device(),
    "trainer_cls": trainer(),
    "train_state_initializer_cls": Initializer,
    "model_dir": str(model_dir),
    "total_steps": total_steps,
    "eval_steps": 2,
    "eval_period": 5,
    "stats_period": 1,
    "random_seed": 0,
    "summarize_config_fn": lambda *_: None,
  }
  return engine.train(**(arguments | changes))[1]


class Crashed(RuntimeError):
  """What `Crash` raises."""


class Crash:
  """An action that ends a run after a step as a kill does, without a checkpoint; None never does."""

  def __init__(self, step: int | None):
    self.step = step

  def run(self, state: Any, metrics_by_task: Any) -> bool:
    del metrics_by_task
    if int(state.step) == self.step:
      raise Crashed(f"after step {self.step}")
    return False


def write_empty_checkpoint(model_dir: pathlib.Path, step: int) -> None:
  """A complete checkpoint, as its folder shows, without arrays."""
  state = model_dir / f"checkpoint_{step}" / "state"
  state.mkdir(parents=True)
  (state.parent / "_CHECKPOINT_METADATA").write_text('{"commit_timestamp_nsecs": 1}')
  for name in ("_METADATA", "manifest.ocdbt"):
    (state / name).write_text("{}")


def lines(model_dir: os.PathLike[str]) -> list[dict[str, Any]]:
  """The training lines of `metrics.jsonl`."""
  text = (pathlib.Path(model_dir) / "metrics.jsonl").read_text()
  return [line for line in map(json.loads, text.splitlines()) if "loss" in line]


def flat(state: Any) -> dict[str, Any]:
  """Every array of a state by name, on the host."""
  leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(state.state_dict()))
  return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def one_device() -> engine.PjitPartitioner:
  """A partitioner over the first device only."""
  partitioner = engine.PjitPartitioner(num_partitions=1)
  partitioner.mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("data", "model"))
  return partitioner


SGD = optax.sgd


def main() -> None:
  """Trains to step 10 in the folder that is given, slowly, so that it can be killed on the way."""

  class Slow(engine.Trainer):
    def train(self, *arguments: Any, **settings: Any) -> Any:
      time.sleep(0.2)
      return super().train(*arguments, **settings)

  train(sys.argv[1], 10, trainer_cls=lambda **k: Slow(learning_rate_fn=SCHEDULE, **k))


if __name__ == "__main__":
  main()
