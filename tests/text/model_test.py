"""Sizes, names and logical axes of the encoder."""

import math

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt_t5x.text.config import BASE, LARGE, PRESETS, SMALL, TINY, XL, XXL, T5Config
from walt_t5x.text.init_encoder import random_weights
from walt_t5x.text.model import T5Encoder, parameter_shapes


def closed_form_count(c: T5Config) -> int:
  attention = 4 * c.d_model * c.num_heads * c.d_kv
  mlp = 3 * c.d_model * c.d_ff
  layers = c.num_layers * (attention + mlp + 2 * c.d_model)
  table = c.relative_attention_num_buckets * c.num_heads
  return c.vocab_size * c.d_model + layers + table + c.d_model


@pytest.mark.parametrize("config", [SMALL, BASE, LARGE, XL, XXL, TINY])
def test_parameter_count_equals_the_closed_form(config):
  assert sum(map(math.prod, parameter_shapes(config).values())) == closed_form_count(config)


def test_xl_has_the_published_number_of_parameters():
  shapes = parameter_shapes(PRESETS["xl"])
  assert sum(map(math.prod, shapes.values())) == 1_223_527_424
  assert shapes["encoder/relpos_bias/rel_embedding"] == (32, 32)


def test_names_are_those_of_t5x():
  layer = [
    "attention/key/kernel",
    "attention/out/kernel",
    "attention/query/kernel",
    "attention/value/kernel",
    "mlp/wi_0/kernel",
    "mlp/wi_1/kernel",
    "mlp/wo/kernel",
    "pre_attention_layer_norm/scale",
    "pre_mlp_layer_norm/scale",
  ]
  expected = {
    "token_embedder/embedding",
    "encoder/relpos_bias/rel_embedding",
    "encoder/encoder_norm/scale",
    *(f"encoder/layers_{i}/{name}" for i in range(2) for name in layer),
  }
  assert set(parameter_shapes(TINY)) == expected


def test_every_parameter_has_one_logical_axis_per_dimension():
  ids = jax.ShapeDtypeStruct((1, 4), jnp.int32)
  variables = jax.eval_shape(T5Encoder(TINY).init, jax.random.key(0), ids)
  params = flax.traverse_util.flatten_dict(variables["params"])
  axes = flax.traverse_util.flatten_dict(variables["params_axes"])
  assert {(*path[:-1], path[-1] + "_axes") for path in params} == set(axes)
  sizes = {
    "vocab": TINY.vocab_size,
    "embed": TINY.d_model,
    "joined_kv": TINY.num_heads * TINY.d_kv,
    "mlp": TINY.d_ff,
    "heads": TINY.num_heads,
    "relpos_buckets": TINY.relative_attention_num_buckets,
  }
  for path, leaf in params.items():
    names = axes[(*path[:-1], path[-1] + "_axes")].names
    assert leaf.shape == tuple(sizes[name] for name in names), path
    assert leaf.dtype == jnp.float32


def test_positions_are_relative():
  """T5 has no absolute positions: shifting the complete text does not change its embeddings."""
  module = T5Encoder(TINY)
  text = jnp.array([[9, 8, 7, 6]])
  params = {"params": flax.traverse_util.unflatten_dict(random_weights(TINY, 0), sep="/")}
  apply = jax.jit(module.apply)
  shifted = apply(params, jnp.array([[0, 0, 0, 9, 8, 7, 6]]))[:, 3:]
  np.testing.assert_allclose(shifted, apply(params, text), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  "field, value", [("d_model", 0), ("num_heads", -1), ("relative_attention_num_buckets", 31)]
)
def test_invalid_sizes_raise(field, value):
  sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_heads": 2, "num_layers": 1, field: value}
  with pytest.raises(ValueError, match=field):
    T5Config(**sizes)
