"""Low-rank adapters: they start as no change, are merged without one, and only they are trained."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from data.corpus import CorpusConstants
from tests import tiny_denoiser
from tests.random_params import random_params
from walt_t5x.denoiser import adapters
from walt_t5x.denoiser.transformer import Conditioning, WaltDenoiser
from walt_t5x.engine import flops, optimizers, restore_transforms
from walt_t5x.files.mismatch import Mismatch
from walt_t5x.models.denoiser_model import DenoiserModel

RANK = 3
CORPUS = CorpusConstants(null_text=np.zeros((1, 6), np.float32))
FIELDS: dict[str, Any] = tiny_denoiser.FIELDS | {"text_dim": 6}
BATCH = {
  "latents": np.random.default_rng(1).normal(size=(2, 3, 4, 4, 4)).astype(np.float32),
  "is_image": np.array([False, True]),
  "text": np.random.default_rng(2).normal(size=(2, 3, 5, 6)).astype(np.float32),
  "text_mask": np.ones((2, 3, 5), bool),
}


def _batch():
  return {name: jnp.asarray(value) for name, value in BATCH.items()}


def _model(rank=RANK, optimizer=None, **changes):
  trainable = changes.pop("trainable", None)
  module = WaltDenoiser(**(FIELDS | {"adapter_rank": rank} | changes))
  return DenoiserModel(
    module=module, optimizer_def=optimizer, trainable=trainable, corpus=lambda: CORPUS
  )


def _init(model):
  shapes = {name: value.shape for name, value in BATCH.items()}
  types = {name: value.dtype for name, value in BATCH.items()}
  return lambda key: model.get_initial_variables(key, shapes, types)


def _flat(params) -> dict:
  return traverse_util.flatten_dict(dict(params), sep="/")


@functools.cache
def _compiled(module):
  batch = _batch()
  conditioning = Conditioning(
    is_image=batch["is_image"], text=batch["text"], text_mask=batch["text_mask"]
  )
  inputs = batch["latents"], jnp.array([3.0, 500.0]), None, conditioning
  program = jax.jit(lambda params: module.apply({"params": params}, *inputs))
  return lambda params: np.asarray(program(params))


def _prediction(module, params):
  return _compiled(module)(params)


@pytest.mark.parametrize("scan", [False, True])
def test_merged_adapters_compute_the_same_as_unmerged_ones(scan):
  fields = {"scan_layers": scan, "num_layers": 4 if scan else 2}
  model = _model(**fields)
  params = random_params(_init(model), seed=1)
  unmerged = _prediction(model.module, params)
  plain = dataclasses.replace(model.module, adapter_rank=0)
  merged = jax.jit(adapters.merged)(params)
  shapes = jax.eval_shape(_init(_model(0, **fields)), jax.random.key(0))["params"]
  assert jax.tree.map(jnp.shape, merged) == jax.tree.map(jnp.shape, dict(shapes))
  np.testing.assert_allclose(_prediction(plain, merged), unmerged, rtol=1e-5, atol=1e-5)
  # The adapters have an effect, and every projection of attention and MLP has one.
  without = {k: v for k, v in _flat(params).items() if "adapter_" not in k}
  alone = _prediction(plain, traverse_util.unflatten_dict(without, sep="/"))
  assert np.abs(alone - unmerged).max() > 0.1
  kernels = {k for k in without if k.endswith("kernel") and ("attention" in k or "mlp/" in k)}
  kernels = {k for k in kernels if "pairs" in k}
  adapted = {k.replace("adapter_down", "kernel") for k in _flat(params) if "adapter_down" in k}
  assert adapted == kernels and len(kernels) == 20
  assert adapters.merged(merged) == merged


def test_training_starts_from_the_network_without_adapters():
  model = _model()

  @jax.jit
  def initial(key):
    return {k: v for k, v in _flat(_init(model)(key)["params"]).items() if "adapter_" in k}

  params = _flat(random_params(_init(model), seed=1))
  without = {k: v for k, v in params.items() if "adapter_" not in k}
  adapted = params | initial(jax.random.key(0))
  plain = dataclasses.replace(model.module, adapter_rank=0)
  np.testing.assert_array_equal(
    _prediction(model.module, traverse_util.unflatten_dict(adapted, sep="/")),
    _prediction(plain, traverse_util.unflatten_dict(without, sep="/")),
  )


def _state_names(state) -> set[str]:
  leaves = jax.tree_util.tree_leaves_with_path(state.param_states)
  return {
    "/".join(str(getattr(part, "key", part)) for part in path) for path, leaf in leaves if leaf.ndim
  }


def test_only_what_is_trainable_changes_and_has_optimizer_state():
  optimizer = optimizers.adamw(1e-2, weight_decay=0.1, ema_decay=0.5)
  # Self-conditioning would only trace the network twice.
  model = _model(
    trainable=("adapter_", "final_adaln"), optimizer=optimizer, self_conditioning=False
  )
  params = random_params(_init(model), seed=1)
  state = jax.jit(model.optimizer_def.init_state)(params)

  @jax.jit
  def step(params, state, rng):
    grads = jax.grad(lambda p: model.loss_fn(p, _batch(), rng)[0])(params)
    return model.optimizer_def.apply_gradient(params, state, grads)

  trained = params
  for number in range(2):
    trained, state = step(trained, state, jax.random.key(number))
  before, after = _flat(params), _flat(trained)
  changed = {name for name in before if not np.array_equal(before[name], after[name])}
  assert changed == {name for name in before if "adapter_" in name or "final_adaln" in name}
  names = _state_names(state)
  # Two moments and an average of each.
  assert len(names) == 3 * len(changed)
  assert all(any(name.endswith(c) for c in changed) for name in names)
  average = _flat(optimizers.parameter_average(trained, state.param_states))
  assert {name for name in before if not np.array_equal(average[name], before[name])} == changed


def test_frozen_parameters_cost_no_gradient():
  """A product with a kernel costs one product forward and, for the gradient of its input alone, one backward."""

  def products(model, grad):
    params = jax.eval_shape(_init(model), jax.random.key(0))["params"]
    loss = lambda p: model.loss_fn(p, _batch(), jax.random.key(0))[0]  # noqa: E731
    return flops.count_flops_of(jax.grad(loss) if grad else loss, params)

  forward = products(_model(0, self_conditioning=False), grad=False)
  everything = products(_model(0, self_conditioning=False), grad=True)
  frozen = products(_model(0, self_conditioning=False, trainable=("patch_embedding",)), grad=True)
  assert 2.9 < everything / forward < 3.0
  # The scores of attention, whose both factors depend on the input, still cost two backward.
  assert 1.9 < frozen / forward < 2.3


def test_a_pattern_that_matches_nothing_is_named():
  optimizer = optimizers.adamw(1e-2)
  model = _model(0, trainable=("adapter_",), optimizer=optimizer)
  params = random_params(_init(model))
  with pytest.raises(ValueError, match=r"'adapter_' matches none of the \d+.*adapter_rank"):
    model.optimizer_def.init_state(params)


def test_adapters_start_anew_on_the_weights_of_a_run():
  kernel, factor = np.full((2, 2), 3.0), np.ones((2, 1))
  target = {"a": {"kernel": np.zeros((2, 2)), "adapter_up": factor}}
  ema = optax.EmaState(count=np.zeros([]), ema={"a": {"adapter_up": factor}})._asdict()
  wanted = {"target": target, "state": {"step": 0, "param_states": {"0": ema}}}
  found = {"target": {"a": {"kernel": kernel}}, "state": {"step": 7}}
  start = restore_transforms.weights_alone
  with pytest.raises(Mismatch, match="a/adapter_up: None"):
    start(found, wanted)
  started = start(found, wanted, new_parameters=("adapter_",))
  assert _flat(started).keys() == {"target/a/kernel"}
  np.testing.assert_array_equal(started["target"]["a"]["kernel"], kernel)
  # Parameters that the new network lacks are still a mismatch.
  with pytest.raises(Mismatch, match="adapter_up"):
    start(wanted, found, new_parameters=("adapter_",))
