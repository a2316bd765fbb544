"""Streaming equals one call for any group size, and reads only as many frames as needed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.random_params import random_params
from tests.vae.networks import TINY
from walt_t5x.vae.autoencoder import CausalVae
from walt_t5x.vae.streaming import VaeStream

# Time is halved once, after a level that only halves space, or twice. Blocks add no other kind of convolution.
CONFIGS = {
  "late": {
    **TINY,
    "channel_multipliers": (1, 1, 2),
    "num_res_blocks": 0,
    "temporal_downsample": (False, True),
  },
  "both": TINY,
}


@functools.cache
def _vae(name):
  vae = CausalVae(**CONFIGS[name])
  return vae, random_params(vae.init, jnp.zeros((1, 9, 8, 8, 3)))


@functools.cache
def _stream(name, group):
  """Tests share its compiled functions."""
  return VaeStream(*_vae(name), group=group)


def _video(frames=13):
  return np.random.default_rng(1).uniform(size=(2, frames, 8, 8, 3)).astype(np.float32)


def _frames(video):
  return (video[:, i] for i in range(video.shape[1]))


@pytest.mark.parametrize("name, group", [("both", 1), ("late", 4)])
def test_a_stream_equals_one_call(name, group):
  vae, params = _vae(name)
  video = _video()
  complete = jax.jit(lambda x: vae.apply({"params": params}, x, method="encode").mean)(video)
  stream = _stream(name, group)
  parts = [posterior.mean for posterior in stream.encode(_frames(video))]
  assert [p.shape[1] for p in parts[:2]] == [1, group]
  np.testing.assert_allclose(np.concatenate(parts, axis=1), complete, atol=1e-5)

  pixels = jax.jit(lambda z: vae.apply({"params": params}, z, method="decode"))(complete)
  parts = list(stream.decode(complete))
  assert [p.shape[1] for p in parts[:2]] == [1, group * vae.temporal_factor]
  np.testing.assert_allclose(np.concatenate(parts, axis=1), pixels, atol=1e-5)


def test_the_context_is_used_and_has_few_frames():
  _, params = _vae("both")
  video, encode = _video(5), _stream("both", 1)._encode
  _, context = encode(params, video[:, :1], None)
  # A 3^3 or a strided 4^3 convolution keeps two frames, a 4^3 convolution without stride in time three.
  assert {leaf.shape[1] for leaf in jax.tree.leaves(context)} == {2}
  zeros = jax.tree.map(np.zeros_like, context)
  used, unused = (np.asarray(encode(params, video[:, 1:], c)[0].mean) for c in (context, zeros))
  assert np.abs(used - unused).max() > 1e-3
  late, params = _vae("late")
  _, state = jax.eval_shape(
    lambda x: late.apply({"params": params}, x, method="encode", mutable=["stream"]), video[:, :1]
  )
  kept = state["stream"]["encoder"]
  assert kept["level_0_down"]["context"].shape[1] == 3
  assert kept["level_1_down"]["context"].shape[1] == 2


def test_a_stream_reads_only_the_current_group():
  asked = []

  def frames():
    for i in range(9):
      asked.append(i)
      yield _video(9)[:, i]

  stream = _stream("both", 1).encode(frames())
  next(stream)
  assert asked == [0]
  next(stream)
  assert asked == [0, 1, 2, 3, 4]


def test_a_stream_that_ends_inside_a_latent_frame_raises():
  vae, params = _vae("both")
  with pytest.raises(ValueError, match=r"ended after 8 frames, expected 1 \+ k \* 4; 5 or 9 would"):
    list(_stream("both", 1).encode(_frames(_video(8))))
  with pytest.raises(ValueError, match="ended after 0 frames"):
    list(_stream("both", 1).encode([]))
  with pytest.raises(ValueError, match="got group=0"):
    VaeStream(vae, params, group=0)
