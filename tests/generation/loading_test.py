"""A cascade from files: the saved weights are loaded, and other files are rejected before weights are read."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.generation import cascades, random_cascade
from walt_t5x.engine import weights_file
from walt_t5x.engine.checkpoints import load_params
from walt_t5x.generation.loading import load_cascade, read_infos
from walt_t5x.generation.stage import StageInfo, load_weights
from walt_t5x.generation.stage_sampler import StageSampler, mesh_for


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  """A complete cascade with random weights on disk."""
  return cascades.written(tmp_path_factory.mktemp("cascade"))


@pytest.fixture(scope="module")
def cascade(made):
  return cascades.loaded(made)


def _with_stage(config, index, **changes):
  stages = list(config.stages)
  stages[index] = dataclasses.replace(stages[index], **changes)
  return dataclasses.replace(config, stages=stages)


def test_the_tokenizer_in_parts_equals_the_tokenizer_at_once(made, cascade):
  """Three clips, two at a time: padding is removed, and clips keep their order."""
  params = jax.tree.map(jnp.asarray, load_params(made.vae_checkpoint, ema=True)["vae"])
  clips = np.random.default_rng(0).integers(0, 256, (3, 5, 16, 16, 3), np.uint8)
  apply = jax.jit(
    lambda x, method: made.vae.apply({"params": params}, x, method=method), static_argnums=1
  )
  latents = cascade.codec.encode(clips)
  assert cascade.codec.rows == 2
  np.testing.assert_allclose(latents, apply(clips / np.float32(255), "encode").mean, atol=1e-4)
  expected = np.clip(np.asarray(apply(latents, "decode"), np.float64), 0, 1) * 255
  np.testing.assert_allclose(cascade.codec.decode(latents), expected, atol=0.51)
  with pytest.raises(ValueError, match="NaN or infinite"):
    cascade.codec.decode(np.full_like(latents, np.nan))


def test_weights_are_averaged_and_converted_as_configured(made, tmp_path):
  base = made.stages[0]
  params = random_cascade.random_params(base, text_length=8, seed=5, spread=0.1)
  average = jax.tree.map(lambda p: p + 1, params)
  folder = tmp_path / "averaged"
  random_cascade._save(str(folder), params, ema=True, average=average)
  shutil.copy(f"{base.checkpoint}/provenance.json", folder)

  def load(**changes):
    config = dataclasses.replace(base, checkpoint=str(folder), **changes)
    return load_weights(StageInfo.read(config))

  (averaged, fingerprint), (plain, other) = load(), load(ema=False)
  jax.tree.map(np.testing.assert_array_equal, averaged, average)
  jax.tree.map(np.testing.assert_array_equal, plain, params)
  assert fingerprint != other
  narrow, again = load(weights_dtype="bfloat16")
  # The fingerprint is of the file, regardless of the dtype in memory.
  assert again == fingerprint
  for held, saved in zip(jax.tree.leaves(narrow), jax.tree.leaves(average)):
    assert held.dtype == jnp.bfloat16
    np.testing.assert_array_equal(held, saved.astype(jnp.bfloat16))


@pytest.mark.parametrize(("preset", "dtype"), [(True, None), (False, "bfloat16")])
def test_weights_are_read_into_their_shards_and_have_the_fingerprint_of_the_file(
  made, cascade, tmp_path, preset, dtype
):
  stage = dataclasses.replace(made.stages[0], weights_dtype=dtype)
  if preset:
    (tmp_path / "checkpoint_0").mkdir()
    params, _ = load_weights(cascade.infos[0])
    weights_file.write(str(tmp_path / "checkpoint_0"), params, dtype="bfloat16")
    shutil.copy(f"{stage.checkpoint}/provenance.json", tmp_path)
    stage = dataclasses.replace(stage, checkpoint=str(tmp_path))
  info = StageInfo.read(stage)
  expected, fingerprint = load_weights(info)
  sampler = StageSampler(stage, mesh=mesh_for(1, jax.devices()), sharded=True)
  split, again = sampler.load(info)
  assert again == fingerprint
  assert info.weight_bytes() == sum(leaf.nbytes for leaf in jax.tree.leaves(expected))
  for leaf, sharding, same in zip(*map(jax.tree.leaves, (split, sampler.shardings, expected))):
    assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim) and leaf.dtype == same.dtype
    np.testing.assert_array_equal(leaf, same)
  kernel = split["pairs_0"]["spatial"]["mlp"]["wi"]["kernel"]
  assert {shard.data.size for shard in kernel.addressable_shards} == {kernel.size // 8}


def test_small_weights_are_replicated_unless_the_setting_says_otherwise(made, cascade):
  sharded = load_cascade(
    dataclasses.replace(made, stage_weights="sharded"), cascade.infos, batch_size=2
  )
  for some, split in ((cascade, False), (sharded, True)):
    weights = jax.tree.leaves(some._weights(some.infos[0]))
    assert any(not leaf.sharding.is_fully_replicated for leaf in weights) == split
    assert {len(leaf.devices()) for leaf in weights} == {8}
  with pytest.raises(ValueError, match="stage_weights='half': expected one of auto, sharded, rep"):
    dataclasses.replace(made, stage_weights="half")


def test_other_networks_tokenizers_and_text_encoders_are_rejected(made, cascade, tmp_path):
  wide = _with_stage(made, 0, model=cascades.model(mlp_dim=64))
  with pytest.raises(ValueError, match=r"stage 'base': .* does not have the network that gin desc"):
    read_infos(wide)
  gone = _with_stage(made, 1, checkpoint=str(tmp_path / "nothing"))
  with pytest.raises(FileNotFoundError, match="no complete checkpoint in"):
    read_infos(gone)
  field = _with_stage(made, 0, latents="latents/5x2x2")
  with pytest.raises(ValueError, match=r"had latents .*, not 'latents/5x2x2'"):
    StageInfo.read(field.stages[0])
  infos = cascade.infos
  other = tmp_path / "vae"
  params = load_params(made.vae_checkpoint, ema=True)
  random_cascade._save(str(other), jax.tree.map(lambda p: p + 1e-3, params), ema=True)
  with pytest.raises(ValueError, match=r"tokenizer has fingerprint .* trained with") as error:
    load_cascade(dataclasses.replace(made, vae_checkpoint=str(other)), infos, batch_size=2)
  assert infos[0].provenance.vae["fingerprint"] in str(error.value)
  narrow = dataclasses.replace(made, vae=cascades.vae(base_channels=8))
  with pytest.raises(
    ValueError, match=r"tokenizer .* does not have the network that gin describes"
  ):
    load_cascade(narrow, infos, batch_size=2)
  random_cascade._write_text_encoder(str(tmp_path / "text"), ["a", "b"], width=8, seed=1)
  with pytest.raises(ValueError, match=r"text encoder has fingerprint .* generate.text_encoder"):
    load_cascade(
      dataclasses.replace(made, text_encoder=str(tmp_path / "text")), infos, batch_size=2
    )
  with pytest.raises(ValueError, match=r"the stages read text: set generate\.text_encoder"):
    load_cascade(dataclasses.replace(made, text_encoder=None), infos, batch_size=2)


def test_text_is_the_encoders_output_for_each_prompt(made, cascade):
  prompts = ["a red square moves right", "a blue circle"]
  text, mask = cascade.encode_text(prompts)
  encoder = cascade.text_encoder
  for row, prompt in enumerate(prompts):
    (expected,) = encoder.encode(encoder.tokenize([prompt], made.text_length))
    assert mask[row, 0].tolist() == [True] * len(expected) + [False] * (8 - len(expected))
    np.testing.assert_array_equal(text[row, 0, : len(expected)], expected)
    assert not np.any(text[row, 0, len(expected) :])
