"""Parity with Hugging Face's T5EncoderModel, through files written by either side."""

import dataclasses
import json

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from walt_t5x.text.config import TINY, T5Config
from walt_t5x.text.import_weights import EncoderWeights, infer_config
from walt_t5x.text.init_encoder import random_weights
from walt_t5x.text.model import T5Encoder
from walt_t5x.text.safetensors_files import SafetensorsSource, save_weights, torch_name

SMALL_SHAPED = T5Config(vocab_size=96, d_model=48, d_kv=16, d_ff=80, num_heads=6, num_layers=3)
# Heads == buckets: a missing transpose of the bias table raises no shape error.
SQUARE_TABLE = T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_heads=32, num_layers=2)
XL_SHAPED = T5Config(vocab_size=128, d_model=2048, d_kv=64, d_ff=5120, num_heads=32, num_layers=1)


def torch_encoder(config):
  """A random T5EncoderModel with nonuniform norms and bias table."""
  torch.manual_seed(1)
  model = transformers.T5EncoderModel(
    transformers.T5Config(
      **dataclasses.asdict(config), feed_forward_proj="gated-gelu", layer_norm_epsilon=1e-6
    )
  ).eval()
  with torch.no_grad():
    for name, weight in model.named_parameters():
      if "layer_norm" in name:
        weight.uniform_(0.5, 1.5)
      elif "relative_attention_bias" in name:
        weight.normal_(0, 2)
  return model


def padded_ids(config, lengths, seed=0):
  rng = np.random.default_rng(seed)
  ids = np.zeros((len(lengths), max(lengths)), np.int64)
  for row, length in enumerate(lengths):
    ids[row, :length] = rng.integers(1, config.vocab_size, length)
  return ids


def torch_outputs(model, ids):
  with torch.no_grad():
    tokens = torch.from_numpy(ids)
    return model(input_ids=tokens, attention_mask=(tokens != 0).long()).last_hidden_state.numpy()


def flax_outputs(config, flat, ids):
  params = flax.traverse_util.unflatten_dict({k: jnp.asarray(v) for k, v in flat.items()}, sep="/")
  apply = jax.jit(T5Encoder(config).apply)
  return np.asarray(apply({"params": params}, jnp.asarray(ids)))


def relative_error(got, expected, ids):
  real = ids != 0
  return np.linalg.norm(got[real] - expected[real]) / np.linalg.norm(expected[real])


@pytest.mark.parametrize(
  "config, lengths",
  [(SMALL_SHAPED, (5, 40, 200)), (SQUARE_TABLE, (3, 33, 150)), (XL_SHAPED, (4, 30))],
  ids=["small", "square_table", "xl"],
)
def test_outputs_equal_torch_after_import(config, lengths, tmp_path):
  model = torch_encoder(config)
  model.save_pretrained(tmp_path)
  assert T5Config.from_json(tmp_path / "config.json") == config
  source = SafetensorsSource(tmp_path)
  assert infer_config(source) == config
  ids = padded_ids(config, lengths)
  expected = torch_outputs(model, ids)
  flat = dict(EncoderWeights(source, config))
  assert relative_error(flax_outputs(config, flat, ids), expected, ids) < 1e-5
  if config is SQUARE_TABLE:
    # The tolerance must detect a missing transpose, which has the right shape here.
    flat["encoder/relpos_bias/rel_embedding"] = flat["encoder/relpos_bias/rel_embedding"].T
    assert relative_error(flax_outputs(config, flat, ids), expected, ids) > 0.05


def test_torch_loads_saved_weights(tmp_path):
  config = dataclasses.replace(TINY, vocab_size=80)
  weights = random_weights(config, seed=3)
  save_weights(tmp_path / "model.safetensors", config, weights)
  (tmp_path / "config.json").write_text(config.to_json())
  model, report = transformers.T5EncoderModel.from_pretrained(tmp_path, output_loading_info=True)
  assert not report["missing_keys"] and not report["unexpected_keys"], report
  ids = padded_ids(config, (7, 20))
  expected = torch_outputs(model.eval(), ids)
  assert relative_error(flax_outputs(config, weights, ids), expected, ids) < 1e-5
  back = EncoderWeights(SafetensorsSource(tmp_path), config)
  assert set(back) == set(weights)
  for name in weights:
    np.testing.assert_array_equal(back[name], weights[name])


def test_sharded_bfloat16_and_encoder_decoder_checkpoints(tmp_path):
  torch.manual_seed(2)
  complete = transformers.T5ForConditionalGeneration(
    transformers.T5Config(
      **dataclasses.asdict(SMALL_SHAPED), feed_forward_proj="gated-gelu", num_decoder_layers=1
    )
  ).to(torch.bfloat16)
  complete.save_pretrained(tmp_path, max_shard_size="100KB")
  assert (tmp_path / "model.safetensors.index.json").is_file()
  config = T5Config.from_json(tmp_path / "config.json")
  weights = EncoderWeights(SafetensorsSource(tmp_path), config)
  state = complete.state_dict()
  for name in weights:
    stored, transposed = torch_name(name)
    expected = state[stored].float().numpy()
    np.testing.assert_array_equal(weights[name], expected.T if transposed else expected)
    assert weights[name].dtype == np.float32
  next(tmp_path.glob("model-00001-*")).unlink()
  with pytest.raises(FileNotFoundError, match="shards that are missing from its folder"):
    SafetensorsSource(tmp_path)


def saved_tensors(config, tmp_path):
  save_weights(tmp_path / "model.safetensors", config, random_weights(config, 0))
  return safetensors.numpy.load_file(tmp_path / "model.safetensors")


def test_the_embedding_may_have_its_second_name(tmp_path):
  tensors = saved_tensors(SMALL_SHAPED, tmp_path)
  tensors["encoder.embed_tokens.weight"] = tensors.pop("shared.weight")
  safetensors.numpy.save_file(tensors, tmp_path / "copy.safetensors")
  source = SafetensorsSource(tmp_path / "copy.safetensors")
  weights = EncoderWeights(source, infer_config(source))
  expected = random_weights(SMALL_SHAPED, 0)["token_embedder/embedding"]
  np.testing.assert_array_equal(weights["token_embedder/embedding"], expected)


def test_checkpoints_that_do_not_fit_raise(tmp_path):
  tensors = saved_tensors(SMALL_SHAPED, tmp_path)
  path = tmp_path / "broken.safetensors"

  def load(changes, drop=()):
    kept = {k: v for k, v in tensors.items() if k not in drop}
    safetensors.numpy.save_file({**kept, **changes}, path)
    return EncoderWeights(SafetensorsSource(path), SMALL_SHAPED)

  wo = "encoder.block.2.layer.1.DenseReluDense.wo.weight"
  with pytest.raises(ValueError, match=r"Checkpoint lacks encoder\.block\.2\.layer\.1"):
    load({}, drop=[wo])
  with pytest.raises(ValueError, match=r"got shape \(80, 48\), expected \(48, 80\)"):
    load({wo: tensors[wo].T.copy()})
  with pytest.raises(ValueError, match="does not use"):
    load({"encoder.block.3.layer.0.layer_norm.weight": np.ones(48, np.float32)})
  with pytest.raises(ValueError, match=r"T5 v1\.0"):
    safetensors.numpy.save_file({"shared.weight": np.ones((4, 4), np.float32)}, path)
    infer_config(SafetensorsSource(path))


@pytest.mark.parametrize(
  "change, message",
  [
    ({"feed_forward_proj": "relu"}, "gated-gelu"),
    ({"feed_forward_proj": None}, "gated-gelu"),
    ({"model_type": "umt5"}, "model_type is 'umt5'"),
    ({"layer_norm_epsilon": 1e-5}, "layer_norm_epsilon"),
  ],
)
def test_other_architectures_raise(change, message, tmp_path):
  path = tmp_path / "config.json"
  path.write_text(TINY.to_json())
  assert T5Config.from_json(path) == TINY
  path.write_text(json.dumps({**json.loads(TINY.to_json()), **change}))
  with pytest.raises(ValueError, match=message):
    T5Config.from_json(path)
