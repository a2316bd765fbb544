"""Properties of TextEncoder: padding and batching have no effect; the fingerprint detects any bit."""

import dataclasses

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from walt_t5x.text.config import TINY
from walt_t5x.text.encoder import LENGTH_BUCKETS, TextEncoder, save_encoder
from walt_t5x.text.init_encoder import random_weights
from walt_t5x.text.model import T5Encoder
from walt_t5x.text.vocabulary import train_vocabulary

COLORS = ["red", "green", "blue", "yellow", "white", "purple"]
SHAPES = ["circle", "square", "triangle", "star"]
DIRECTIONS = ["left", "right", "up", "down"]
CAPTIONS = [
  f"a {c} {s} moving {d}, on a dark background" for c in COLORS for s in SHAPES for d in DIRECTIONS
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("encoder")
  vocabulary = train_vocabulary(CAPTIONS)
  config = dataclasses.replace(TINY, vocab_size=len(vocabulary))
  save_encoder(path, config=config, weights=random_weights(config, seed=0), vocabulary=vocabulary)
  return path


@pytest.fixture(scope="module")
def encoder(folder):
  return TextEncoder.load(folder, batch_size=4)


def test_a_list_has_the_embeddings_of_its_captions_alone(encoder):
  texts = [CAPTIONS[0], "", "red", CAPTIONS[5] + " " + CAPTIONS[6], *CAPTIONS[10:16], "qqq zebra"]
  ids = encoder.tokenize(texts, 64)
  together = encoder.encode(ids)
  assert [len(e) for e in together] == [len(i) for i in ids]
  for embedding, caption in zip(together, ids):
    np.testing.assert_array_equal(embedding, encoder.encode([caption])[0])
    assert embedding.shape == (len(caption), encoder.embedding_dim)
    assert embedding.dtype == np.float32


def unpadded(encoder, ids):
  """The embedding of one caption from the module alone, without bucket or batch."""
  apply = jax.jit(T5Encoder(encoder.config).apply)
  return np.asarray(apply({"params": encoder.params}, jnp.asarray(ids)[None])[0])


@pytest.mark.parametrize("length", [33, 512])
def test_padding_has_no_effect(encoder, length):
  (ids,) = encoder.tokenize([CAPTIONS[3]], 64)
  padded = unpadded(encoder, np.pad(ids, (0, length - len(ids))))
  np.testing.assert_allclose(padded[: len(ids)], unpadded(encoder, ids), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("length", [1, LENGTH_BUCKETS[0], LENGTH_BUCKETS[0] + 1])
def test_bucketing_has_no_effect(encoder, length):
  ids = np.arange(length, dtype=np.int32) % 40 + 1
  np.testing.assert_allclose(encoder.encode([ids])[0], unpadded(encoder, ids), rtol=1e-5, atol=1e-5)


def test_a_caption_runs_at_the_smallest_bucket_that_holds_it(encoder):
  lengths = {n: encoder._bucket(0, np.ones(n, np.int32)) for n in (1, 8, 9, 16, 33, 512)}
  assert lengths == {1: 8, 8: 8, 9: 16, 16: 16, 33: 64, 512: 512}


def test_truncation_keeps_the_eos(encoder):
  (complete,) = encoder.tokenize([CAPTIONS[0]], 64)
  (cut,) = encoder.tokenize([CAPTIONS[0]], 5)
  assert complete[-1] == 1 and 1 not in complete[:-1]
  assert list(cut) == [*complete[:4], 1]
  assert [list(i) for i in encoder.tokenize(["", " "], 64)] == [[1], [1]]


def encoder_of(config, weights, vocabulary):
  params = flax.traverse_util.unflatten_dict(weights, sep="/")
  return TextEncoder(config=config, params=params, vocabulary=vocabulary)


def test_fingerprint_survives_a_round_trip_and_ignores_the_activation_dtype(
  folder, encoder, tmp_path
):
  weights = random_weights(encoder.config, seed=0)
  save_encoder(tmp_path, config=encoder.config, weights=weights, vocabulary=encoder.vocabulary)
  assert TextEncoder.load(tmp_path).fingerprint == encoder.fingerprint
  assert TextEncoder.load(folder, dtype=jnp.bfloat16).fingerprint == encoder.fingerprint


def test_fingerprint_changes_with_everything_that_changes_embeddings(encoder):
  config, vocabulary = encoder.config, encoder.vocabulary
  weights = random_weights(config, seed=0)
  prints = {encoder.fingerprint, encoder_of(config, weights, vocabulary).fingerprint}
  assert len(prints) == 1
  for name in weights:
    changed = {**weights, name: weights[name].copy()}
    changed[name].flat[-1] = np.nextafter(changed[name].flat[-1], np.float32(np.inf))
    prints.add(encoder_of(config, changed, vocabulary).fingerprint)
  farther = dataclasses.replace(config, relative_attention_max_distance=256)
  prints.add(encoder_of(farther, weights, vocabulary).fingerprint)
  other_words = train_vocabulary([c.replace("red", "der") for c in CAPTIONS])
  prints.add(encoder_of(config, weights, other_words).fingerprint)
  assert len(prints) == 1 + len(weights) + 2


@pytest.mark.parametrize("seed", range(2))
def test_a_random_encoder_distinguishes_words(encoder, seed):
  weights = random_weights(encoder.config, seed)
  random = encoder_of(encoder.config, weights, encoder.vocabulary)
  ids = np.concatenate(random.tokenize(CAPTIONS, 64))
  embedding = np.concatenate(random.encode(random.tokenize(CAPTIONS, 64)))
  np.testing.assert_allclose(np.sqrt(np.mean(embedding**2, axis=1)), 1, rtol=1e-3)
  # The nearest row of the table, by cosine, is always that of the token.
  table = weights["token_embedder/embedding"]
  table = table / np.linalg.norm(table, axis=1, keepdims=True)
  cosine = embedding @ table.T / np.linalg.norm(embedding, axis=1, keepdims=True)
  np.testing.assert_array_equal(np.argmax(cosine, axis=1), ids)
  assert np.mean(cosine[np.arange(len(ids)), ids]) > 0.8
  words = np.concatenate([c[:-1] for c in random.tokenize(COLORS + SHAPES + DIRECTIONS, 64)])
  gram = table[words] @ table[words].T - np.eye(len(words))
  assert np.abs(gram).max() < 0.6
  # The embedding of a noun depends on its adjective: word order matters.
  first, second = random.encode(
    random.tokenize(["red circle blue square", "blue circle red square"], 9)
  )
  assert np.linalg.norm(first[1] - second[1]) > 0.05 * np.linalg.norm(first[1])


def test_bfloat16_activations_stay_close(folder, encoder):
  ids = encoder.tokenize(CAPTIONS[:4], 64)
  half = TextEncoder.load(folder, dtype=jnp.bfloat16, batch_size=4)
  for a, b in zip(encoder.encode(ids), half.encode(ids)):
    assert b.dtype == np.float32
    assert np.linalg.norm(a - b) < 0.03 * np.linalg.norm(a)
  with pytest.raises(ValueError, match="overflows float16"):
    TextEncoder.load(folder, dtype=jnp.float16)


def test_invalid_ids_raise(encoder):
  with pytest.raises(ValueError, match="Caption 1: got 0 ids"):
    encoder.encode([np.array([1], np.int32), np.array([], np.int32)])
  with pytest.raises(ValueError, match="without padding"):
    encoder.encode([np.array([5, 1, 0], np.int32)])
  with pytest.raises(ValueError, match="expected 1 to"):
    encoder.encode([np.array([encoder.config.vocab_size, 1], np.int32)])
  with pytest.raises(TypeError, match="one string"):
    encoder.tokenize("a red circle", 64)


def test_the_error_for_a_missing_file_says_what_to_do(folder, tmp_path):
  with pytest.raises(FileNotFoundError, match="init_encoder"):
    TextEncoder.load(tmp_path)
  (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
  with pytest.raises(FileNotFoundError, match=r"spiece\.model"):
    TextEncoder.load(tmp_path)
  (tmp_path / "spiece.model").write_bytes((folder / "spiece.model").read_bytes())
  with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
    TextEncoder.load(tmp_path)
