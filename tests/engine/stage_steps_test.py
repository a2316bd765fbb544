"""The engine's training step of a denoiser and of the tokenizer on eight devices: equal to one device; its collectives.

The step includes loss, gradient, clipping, optimizer, average, check for non-finite values and metrics. Of the base
stage, `tests/sharding/partitioning_test.py` tests loss and gradient for every set of rules, and
`denoiser_meshes_test.py` the loss with self-conditioning.
"""

import functools
import gc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from data import packed_text
from tests.collective_counts import collective_counts
from walt_t5x import engine
from walt_t5x.denoiser.transformer import WaltDenoiser
from walt_t5x.engine import optimizers
from walt_t5x.engine.builtin.train_state import StateInitializer, TrainState
from walt_t5x.engine.builtin.training_step import TrainingStep
from walt_t5x.models.denoiser_model import DenoiserModel
from walt_t5x.models.input_shapes import input_shapes, without_data
from walt_t5x.models.vae_model import VaeModel
from walt_t5x.sharding import partitioning
from walt_t5x.vae.autoencoder import CausalVae
from walt_t5x.vae.discriminator import Discriminator

# Compiled programs run once, so LLVM optimization is off.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
ROWS = 8


def _adamw() -> Any:
  # Small gradients would differ in their last bits, and Adam divides by them.
  return optimizers.adamw_chain(1e-2, eps=1e-3, clip_norm=1.0, ema_decay=0.9)


def _denoiser(**fields) -> DenoiserModel:
  module = WaltDenoiser(
    num_layers=2, width=16, num_heads=4, mlp_dim=32, latent_channels=4, spatial_window=(1, 4, 8),
    spatiotemporal_window=(3, 4, 4), text_dim=8, frame_prediction=True, scan_layers=True,
    remat="dots", dtype=jnp.float32, **fields,
  )  # fmt: skip
  return DenoiserModel(module=module, optimizer_def=optimizers.wrap(_adamw()))


def _tokenizer() -> VaeModel:
  parts = {"vae": _adamw(), "discriminator": _adamw()}
  module = CausalVae(
    latent_channels=2, base_channels=4, channel_multipliers=(1, 1), num_res_blocks=0,
    temporal_downsample=(True,),
  )  # fmt: skip
  discriminator = Discriminator(base_channels=2, channel_multipliers=(1,))
  return VaeModel(
    module=module, optimizer_def=optimizers.by_part(parts=parts), discriminator=discriminator
  )


# Kind of stage: (model, fields of its data, size of 'model', rules), as in the published files.
STAGES = {
  "super-resolution": (
    # Without the first pass of self-conditioning, half of the time to trace.
    functools.partial(
      _denoiser, patch_size=2, low_resolution_scale=2, pooled_text=False, self_conditioning=False
    ),
    {"field": "latents/3x16x16", "low_resolution": "latents/3x8x8", "text_length": 4},
    (2, {"fully_sharded": True, "model_axis": "sequence"}),
  ),
  "tokenizer": (_tokenizer, {"field": "pixels/3x8x8"}, (1, {})),
}
# Golden values from our own output: the collectives that XLA's CPU compiler makes of these steps, counted per loop
# iteration. A new entry adds communication to every step: find its cause before changing the table.
COUNTS = {
  "super-resolution": {
    "all-gather": 80,
    "all-reduce": 29,
    "all-to-all": 12,
    "collective-permute": 14,
  },
  "tokenizer": {"all-reduce": 11, "collective-permute": 6},
}


def _partitioner(devices: int, size: int, rules: dict) -> engine.PjitPartitioner:
  made = engine.PjitPartitioner(num_partitions=size, logical_axis_rules=partitioning.rules(**rules))
  grid = np.array(jax.devices()[:devices]).reshape(-1, size)
  made.mesh = Mesh(grid, ("data", "model"))
  return made


def _batch(shapes: dict) -> dict:
  rng = np.random.default_rng(0)
  batch = {name: rng.normal(size=s.shape).astype(s.dtype) for name, s in shapes.items()}
  if "video" in batch:
    return {"video": rng.integers(0, 256, shapes["video"].shape, np.uint8)}
  size = shapes["text"].shape[:-1]
  width = packed_text.width_of(shapes["text"].shape[-1])
  packed = packed_text.pack(rng.normal(size=(np.prod(size), width)).astype(np.float32))
  batch["text"] = np.asarray(packed).view(np.uint8).reshape(*size, -1)
  batch["text_mask"] = np.ones(shapes["text_mask"].shape, bool)
  batch["is_image"] = np.arange(ROWS) % 2 == 1
  return batch


def stepped(stage: str, devices: int):
  """(collectives of the compiled step, change of the state in one step, the optimizer's state, metrics)."""
  make, rows, (size, rules) = STAGES[stage]
  model = without_data(make())
  made = _partitioner(devices, size if devices > 1 else 1, rules)
  shapes = input_shapes(model, rows=ROWS, **rows)
  initializer = StateInitializer(model, input_spec=shapes, partitioner=made)
  rng = np.random.default_rng(1)
  params = jax.tree.map(
    lambda p: (rng.normal(size=p.shape) / max(1, np.prod(p.shape[:-1])) ** 0.5).astype(p.dtype),
    initializer.shapes.params,
  )
  others = jax.tree.map(lambda v: np.zeros(v.shape, v.dtype), initializer.shapes.flax_mutables)
  # Otherwise a program is compiled for each shape of an array, and another one to place it.
  create = jax.jit(functools.partial(TrainState.create, model.optimizer_def))
  state = jax.device_get(create({"params": params, **others}))
  state = jax.device_put(state, initializer.shardings)
  step = TrainingStep(
    model=model, partitioner=made, axes=initializer.axes, rng=jax.random.PRNGKey(0),
    learning_rate_fn=lambda step: 1e-2,
  )  # fmt: skip
  batch = jax.device_put(_batch(shapes), made.data_sharding)
  collectives = collective_counts(step.compile(state, batch, QUICKLY).as_text())
  before = jax.device_get(state.params)
  state, _ = step(state, batch)
  moved = jax.tree.map(lambda a, b: a - b, jax.device_get(state.params), before)
  metrics = {name: float(m.compute()) for name, m in jax.device_get(step.take_metrics()).items()}
  kept = jax.device_get(state.param_states)
  # These programs are the largest of the suite: each is dropped before the next is compiled.
  del step, state, batch, initializer
  jax.clear_caches()
  gc.collect()
  return collectives, moved, kept, metrics


@pytest.mark.parametrize("stage", STAGES)
def test_eight_devices_equal_one_with_exactly_these_collectives(stage):
  collectives, moved, kept, metrics = stepped(stage, 8)
  _, want_moved, want_kept, want_metrics = stepped(stage, 1)
  assert metrics == pytest.approx(want_metrics, rel=1e-4)
  assert metrics["skipped_steps"] == 0 and metrics["update_norm"] > 0
  for got, want in ((moved, want_moved), (kept, want_kept)):
    for (path, a), b in zip(
      jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True
    ):
      np.testing.assert_allclose(
        a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max(), err_msg=jax.tree_util.keystr(path)
      )
  assert collectives == COUNTS[stage]
