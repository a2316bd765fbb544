"""State of a model that is not trained: collections that the loss takes and returns, in T5X's `flax_mutables`."""

import functools
import json

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.linen import partitioning as flax_partitioning

from tests.engine import runs, toy
from walt_t5x import engine
from walt_t5x.engine import checkpoints, optimizers


class Counting(toy.ToyModel):
  """Counts the evaluations of its loss and averages its inputs; evaluations also report the count."""

  def get_initial_variables(self, rng, input_shapes, input_types=None):
    axes = {
      "count_axes": flax_partitioning.AxisMetadata(()),
      "mean_axes": flax_partitioning.AxisMetadata(("embed",)),
    }
    running = {"count": jnp.int32(0), "mean": jnp.zeros(toy.WIDTH)}
    variables = dict(super().get_initial_variables(rng, input_shapes, input_types))
    return variables | {"running": running, "running_axes": axes}

  def loss_fn(self, params, batch, dropout_rng, flax_mutables):
    loss, metrics = super().loss_fn(params, batch, dropout_rng)
    running = flax_mutables["running"]
    mean = 0.5 * running["mean"] + 0.5 * batch["x"].mean(0)
    following = {"count": running["count"] + 1, "mean": mean}
    return loss, (metrics, flax.core.freeze({"running": following}))

  def eval_fn(self, params, batch, flax_mutables):
    _, (metrics, _) = self.loss_fn(params, batch, None, flax_mutables)
    count = jnp.full(len(batch["x"]), flax_mutables["running"]["count"], jnp.float32)
    return jnp.float32(0), metrics | {"count": toy.clu_metrics.Average.from_model_output(count)}


class Former(toy.ToyModel):
  """The state of `Counting` among the parameters, where the tokenizer's was before 0.2."""

  def get_initial_variables(self, rng, input_shapes, input_types=None):
    variables = flax.core.unfreeze(super().get_initial_variables(rng, input_shapes, input_types))
    variables["params"]["running"] = {"step": jnp.float32(7), "mean": jnp.arange(4.0)}
    variables["params_axes"]["running"] = {
      "step_axes": flax_partitioning.AxisMetadata(()),
      "mean_axes": flax_partitioning.AxisMetadata(("embed",)),
    }
    return variables

  def loss_fn(self, params, batch, dropout_rng):
    return super().loss_fn({k: v for k, v in params.items() if k != "running"}, batch, dropout_rng)


@functools.cache
def _model(kind=Counting, **settings):
  return kind(optimizers.adamw(runs.SCHEDULE, ema_decay=0.9, **settings))


def _running(state):
  return jax.device_get(state.flax_mutables["running"])


@pytest.mark.parametrize("microbatches", [None, 2])
def test_every_evaluation_of_the_loss_follows_the_one_before(microbatches, tmp_path):
  trainer = runs.trainer(num_microbatches=microbatches)
  state = runs.train(tmp_path / "counting", 8, model=_model(), trainer_cls=trainer)
  assert _running(state)["count"] == 8 * (microbatches or 1)
  assert np.any(_running(state)["mean"])
  # The loss trains as it does without the collection.
  alone = runs.train(tmp_path / "alone", 8, model=_model(toy.ToyModel), trainer_cls=trainer)
  jax.tree.map(np.testing.assert_array_equal, dict(alone.params), dict(state.params))
  if microbatches:
    # Saved, restored and continued: equal to the uninterrupted run.
    runs.train(tmp_path / "parts", 5, model=_model(), trainer_cls=trainer)
    saved = checkpoints.load_state_dict(tmp_path / "parts")["flax_mutables"]["running"]
    assert saved["count"] == 5 * microbatches
    resumed = runs.train(tmp_path / "parts", 8, model=_model(), trainer_cls=trainer)
    jax.tree.map(np.testing.assert_array_equal, runs.flat(resumed), runs.flat(state))


def test_evaluation_reads_the_state_and_keeps_it(tmp_path):
  state = runs.train(tmp_path, 6, model=_model(), train_eval_dataset_cfg=runs.dataset())
  assert _running(state)["count"] == 6
  name = "training_eval/engine_toy/count"
  lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
  counts = [line[name] for line in lines if name in line]
  assert counts == [5, 6]


def test_a_skipped_step_changes_nothing(tmp_path):
  class Poisoned(Counting):
    def loss_fn(self, params, batch, dropout_rng, flax_mutables):
      loss, aux = super().loss_fn(params, batch, dropout_rng, flax_mutables)
      return jnp.where(flax_mutables["running"]["count"] == 3, jnp.nan, loss), aux

  state = runs.train(tmp_path, 6, model=_model(Poisoned))
  assert int(state.step) == 6 and _running(state)["count"] == 3


def test_the_state_moves_to_another_mesh(tmp_path):
  runs.train(tmp_path, 4, model=_model())
  moved = runs.train(tmp_path, 5, model=_model(), partitioner=engine.PjitPartitioner(2))
  assert _running(moved)["count"] == 5
  info = (tmp_path / "model-info.txt").read_text()
  assert "flax_mutables/running/mean" in info and "embed=4" in info


def test_a_checkpoint_with_the_state_among_its_parameters_is_read(tmp_path):
  runs.train(tmp_path, 3, model=_model(Former, weight_decay=0.0))
  state = runs.train(tmp_path, 4, model=_model())
  assert _running(state)["count"] == 8
  assert "running" not in state.params


def test_a_collection_needs_axes(tmp_path):
  class Bare(Counting):
    def get_initial_variables(self, *args):
      return {k: v for k, v in super().get_initial_variables(*args).items() if k != "running_axes"}

  with pytest.raises(ValueError, match=r"each other collection with its axes"):
    runs.train(tmp_path, 1, model=_model(Bare))
