"""Sample videos during training."""

import functools
import types
import warnings

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tensorboard.backend.event_processing import event_accumulator

from data.provenance import read_provenance
from tests.engine import runs, toy
from tests.generation import cascades, random_cascade
from walt_t5x import engine
from walt_t5x.engine import optimizers
from walt_t5x.engine.builtin.partitioner import standard_logical_axis_rules
from walt_t5x.engine.checkpoints import load_params
from walt_t5x.engine.optimizers import parameter_average
from walt_t5x.generation.training_samples import SampleVideos
from walt_t5x.media import reading


class _Fades(toy.ToyModel):
  """Predicts clips whose brightness depends on parameters and example: enough to check what is shown."""

  def predict_batch(self, params, batch, rng=None):
    brightness = params["bias"][0] * batch["id"][:, 0]
    frames = brightness[:, None] - 0.5 * jnp.arange(5)
    return jnp.broadcast_to(frames[:, :, None, None, None], (len(frames), 5, 8, 8, 4))


def _state(step, bias, average):
  params = flax.core.freeze({"bias": jnp.array([bias])})
  ema = optax.EmaState(jnp.int32(step), flax.core.freeze({"bias": jnp.array([average])}))
  return types.SimpleNamespace(step=jnp.int32(step), params=params, param_states=(ema, ()))


def _shown(folder):
  """step -> the animated images of TensorBoard's image plugin, in order of their tags."""
  events = event_accumulator.EventAccumulator(str(folder / "samples"), size_guidance={"tensors": 0})
  events.Reload()
  found = {}
  for tag in sorted(events.Tags()["tensors"]):
    assert events.SummaryMetadata(tag).plugin_data.plugin_name == "images"
    for event in events.Tensors(tag):
      width, height, gif = event.tensor_proto.string_val
      assert (width, height) == (b"8", b"8")
      found.setdefault(event.step, []).append(gif)
  return found


def test_clips_of_the_average_are_shown_when_due(tmp_path):
  model = _Fades(runs.optimizers.adamw(0.1, ema_decay=0.9))
  action = SampleVideos(
    model=model,
    dataset_cfg=runs.dataset(split="validation"),
    model_dir=str(tmp_path),
    num_videos=3,
    every=10,
  )
  for step in (5, 9, 15):
    assert action.run(_state(step, bias=9.0, average=step / 10), {}) is False
  shown = _shown(tmp_path)
  assert list(shown) == [5, 15]  # 9 is too early.
  for step, gifs in shown.items():
    for row, gif in enumerate(gifs):
      file = tmp_path / "samples" / f"step{step:07}_{row}.gif"
      assert file.read_bytes() == gif
      frames = reading.read_video(file).frames
      assert frames.shape == (5, 8, 8, 3)
      expected = 255 * (0.5 + (row * (step / 10) - 0.5 * np.arange(5)) / 6.0)
      np.testing.assert_allclose(frames[:, 3, 3, 0], np.clip(expected, 0, 255), atol=3)


def test_a_run_without_an_average_says_so_before_it_starts(tmp_path):
  model = _Fades(runs.optimizers.adamw(0.1))
  with pytest.raises(ValueError, match=r"SampleVideos\.average=True, but the optimizer keeps no"):
    SampleVideos(model=model, dataset_cfg=None, model_dir="")
  action = SampleVideos(
    model=model,
    dataset_cfg=runs.dataset(split="validation"),
    model_dir=str(tmp_path),
    num_videos=1,
    average=False,
  )
  action.run(_state(5, bias=2.0, average=0.0), {})
  frames = reading.read_video(tmp_path / "samples" / "step0000005_0.gif").frames
  expected = 255 * (0.5 - 0.5 * np.arange(5) / 6.0)
  np.testing.assert_allclose(frames[:, 3, 3, 0], expected, atol=3)


def test_parts_without_an_average_keep_their_parameters():
  parts = {"vae": optimizers.adamw_chain(0.1, ema_decay=0.9), "other": optimizers.adamw_chain(0.1)}
  optimizer = optimizers.by_part(parts=parts)
  optimizers.check_average(optimizer, setting="x")
  params = {"vae": {"w": jnp.ones(2)}, "other": {"w": jnp.zeros(3)}}
  gradient = jax.tree.map(np.ones_like, params)
  state = jax.jit(optimizer.init_state)(params)
  after, state = jax.jit(optimizer.apply_gradient)(params, state, gradient)
  got = parameter_average(after, state.param_states)
  np.testing.assert_allclose(got["vae"]["w"], 0.9 * 1 + 0.1 * after["vae"]["w"], rtol=1e-6)
  np.testing.assert_array_equal(got["other"]["w"], after["other"]["w"])


def test_momentum_is_no_average():
  optimizer = optimizers.adafactor(0.1, momentum=0.9)
  params = {"w": jnp.ones(2)}
  with pytest.raises(ValueError, match="x=True, but the optimizer keeps no parameter average"):
    optimizers.check_average(optimizer, setting="x")
  with pytest.raises(ValueError, match="no parameter average"):
    parameter_average(params, optimizer.init_state(params).param_states)


def test_an_average_of_other_parameters_is_none():
  params = {"w": jnp.ones(2)}
  other = optax.EmaState(jnp.int32(0), {"other": jnp.ones(1)})
  for states in ((optax.EmptyState(),), (other,)):
    with pytest.raises(ValueError, match="no parameter average; set ema_decay"):
      parameter_average(params, states)


def test_invalid_settings_are_rejected(tmp_path):
  model = _Fades(runs.optimizers.adamw(0.1, ema_decay=0.9))
  with pytest.raises(ValueError, match="vae=False, vae_checkpoint=True, latents=False; give all"):
    SampleVideos(model=model, dataset_cfg=None, model_dir="", vae_checkpoint="x")
  action = SampleVideos(
    model=model,
    dataset_cfg=runs.dataset(split="validation"),
    model_dir=str(tmp_path),
    num_videos=toy.ROWS + 1,
  )
  with pytest.raises(ValueError, match=f"fewer than num_videos={toy.ROWS + 1} examples"):
    action.run(_state(1, 1.0, 1.0), {})


def test_a_run_over_a_mesh_makes_its_clips(tmp_path):
  """Sharded parameters, an evaluation every five steps, clips at the first and at the last."""
  model = _Fades(runs.optimizers.adamw(0.1, ema_decay=0.9))
  held = runs.dataset(split="validation", shuffle=False)
  action = SampleVideos(
    model=model, dataset_cfg=held, model_dir=str(tmp_path), num_videos=2, every=10
  )
  rules = [*standard_logical_axis_rules(), ("unmodeled", None)]
  runs.train(
    tmp_path,
    15,
    model=model,
    partitioner=engine.PjitPartitioner(num_partitions=2, logical_axis_rules=rules),
    train_eval_dataset_cfg=held,
    actions={"TRAIN_EVAL": [action]},
  )
  assert jax.device_count() == 8
  assert sorted(_shown(tmp_path)) == [5, 15]


class _Latents(toy.ToyModel):
  """Predicts latents that differ by example."""

  def predict_batch(self, params, batch, rng=None):
    level = params["bias"][0] * batch["id"][:, 0]
    ramp = jnp.linspace(-1, 1, 5 * 4 * 4 * 4).reshape(5, 4, 4, 4)
    return level[:, None, None, None, None] + ramp


@pytest.fixture(scope="module")
def cascade(tmp_path_factory):
  """A written cascade; its base stage's folder is that of the run."""
  return cascades.written(tmp_path_factory.mktemp("cascade"), stages=("base",))


@pytest.fixture(scope="module")
def decode(cascade):
  """The decoder of the cascade, compiled once, and its parameters."""
  params = jax.tree.map(jnp.asarray, load_params(cascade.vae_checkpoint, ema=True)["vae"])
  program = jax.jit(functools.partial(cascade.vae.apply, method="decode"))
  return lambda latents: program({"params": params}, latents), params


def _decoding(cascade, **options):
  return SampleVideos(
    **{
      "model": _Latents(runs.optimizers.adamw(0.1, ema_decay=0.9)),
      "dataset_cfg": runs.dataset(split="validation"),
      "model_dir": cascade.stages[0].checkpoint,
      "num_videos": 2,
      "vae": cascade.vae,
      "vae_checkpoint": cascade.vae_checkpoint,
      "latents": cascades.BASE,
    }
    | options
  )


@pytest.mark.parametrize("devices", [1, 8])
def test_latents_are_decoded_by_the_tokenizer_whose_weights_are_no_constants(
  cascade, decode, monkeypatch, devices
):
  state, mesh = _state(1, 1.0, 1.0), Mesh(np.array(jax.devices()[:devices]), ("data",))
  state.param_states = jax.device_put(state.param_states, NamedSharding(mesh, PartitionSpec()))
  action, written = _decoding(cascade), []
  monkeypatch.setattr(action, "_write", lambda step, clips: written.append(clips))
  # A tenth of the weights; JAX warns when it lowers a program with larger constants.
  limit = 4_000
  decoder, params = decode
  assert sum(leaf.nbytes for leaf in jax.tree.leaves(params)) > 10 * limit
  before = jax.config.jax_captured_constants_warn_bytes
  jax.config.update("jax_captured_constants_warn_bytes", limit)
  try:
    with warnings.catch_warnings():
      warnings.filterwarnings("error", message=".*constants were captured")
      action.run(state, {})
  finally:
    jax.config.update("jax_captured_constants_warn_bytes", before)
  statistics = read_provenance(cascade.stages[0].checkpoint).latents[cascades.BASE]
  ramp = np.linspace(-1, 1, 5 * 4 * 4 * 4).reshape(5, 4, 4, 4)
  latents = np.stack([ramp, 1 + ramp]) * np.array(statistics.std) + np.array(statistics.mean)
  expected = 255 * np.clip(np.asarray(decoder(latents.astype(np.float32))), 0, 1)
  assert len(written) == 1 and expected.std() > 1
  np.testing.assert_allclose(written[0], expected, atol=1)


def test_another_tokenizer_than_the_datas_own_is_rejected(cascade, tmp_path):
  params = load_params(cascade.vae_checkpoint, ema=True)
  random_cascade._save(str(tmp_path / "vae"), jax.tree.map(lambda p: p + 1e-3, params), ema=True)
  action = _decoding(cascade, vae_checkpoint=str(tmp_path / "vae"))
  with pytest.raises(ValueError, match=r"tokenizer .*fingerprint .*vae_checkpoint"):
    action.run(_state(1, 1.0, 1.0), {})
