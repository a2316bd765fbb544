"""Properties of the autoencoder: causality, images as first frames, sizes and errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.random_params import random_params
from tests.vae.networks import TINY
from walt_t5x.vae.autoencoder import CausalVae
from walt_t5x.vae.encoder_decoder import depth_to_space
from walt_t5x.vae.inflation import inflate_params, inflate_state


@functools.cache
def _tiny():
  vae = CausalVae(**TINY)
  params = random_params(vae.init, jnp.zeros((1, 9, 16, 16, 3)))
  encode = jax.jit(lambda video: vae.apply({"params": params}, video, method="encode").mean)
  decode = jax.jit(lambda z: vae.apply({"params": params}, z, method="decode"))
  # numpy: with arrays of JAX every slice of another shape would compile a program.
  return lambda video: np.asarray(encode(video)), lambda z: np.asarray(decode(z))


def _video(seed=0):
  return np.random.default_rng(seed).random((2, 9, 16, 16, 3), np.float32)


def _after(video, frames):
  """`video`, with `frames` instead of its last ones; a number is a color."""
  changed, count = video.copy(), 8 if np.isscalar(frames) else frames.shape[1]
  changed[:, -count:] = frames
  return changed


@pytest.mark.parametrize("frame", [1, 2, 4, 5, 8])
def test_a_frame_does_not_change_earlier_groups(frame):
  encode, decode = _tiny()
  video = _video()
  changed = _after(video, _video(1)[:, frame:])
  group = -(-frame // 4)
  z, z_changed = encode(video), encode(changed)
  np.testing.assert_array_equal(z[:, :group], z_changed[:, :group])
  assert np.abs(z[:, group] - z_changed[:, group]).max() > 1e-3
  first = 1 + 4 * (group - 1)
  y, y_changed = decode(z), decode(z_changed)
  np.testing.assert_array_equal(y[:, :first], y_changed[:, :first])
  assert np.abs(y[:, first:] - y_changed[:, first:]).max() > 1e-3


def test_an_image_has_the_latent_of_the_first_frame_of_any_video():
  encode, decode = _tiny()
  image = _video()[:, :1]
  lone = encode(image)
  for seed in (1, 2):
    z = encode(_after(_video(), _video(seed)[:, 1:]))
    np.testing.assert_allclose(z[:, :1], lone, atol=1e-5)
    np.testing.assert_allclose(decode(z)[:, :1], decode(lone), atol=1e-5)
  black, white = (encode(_after(_video(), color)) for color in (0.0, 1.0))
  np.testing.assert_array_equal(black[:, :1], white[:, :1])


def test_depth_to_space_places_blocks_and_drops_the_first_frames():
  # Channel value = 100 * (2 frames) + 10 * row + column of the block.
  code = [100 * f + 10 * r + s for f in range(2) for r in range(2) for s in range(2)]
  x = 1000.0 * jnp.arange(3.0).reshape(1, 3, 1, 1, 1) + jnp.asarray(code, jnp.float32)
  y = depth_to_space(x, (2, 2, 2))
  assert y.shape == (1, 5, 2, 2, 1)
  np.testing.assert_array_equal(y[0, :, 0, 0, 0], [100, 1000, 1100, 2000, 2100])
  np.testing.assert_array_equal(y[0, 1, :, :, 0], [[1000, 1001], [1010, 1011]])
  with pytest.raises(ValueError, match="got 6 channels, expected a multiple of 4"):
    depth_to_space(jnp.zeros((1, 1, 2, 2, 6)), (1, 2, 2))


def _count(vae: CausalVae, shape: tuple[int, ...]) -> dict[str, int]:
  params = jax.eval_shape(vae.init, jax.random.key(0), jnp.zeros(shape))["params"]
  return {k: sum(leaf.size for leaf in jax.tree.leaves(v)) for k, v in params.items()}


def test_published_sizes():
  video = _count(CausalVae(), (1, 17, 128, 128, 3))
  assert round(video["encoder"] / 1e6, 1) == 150.3
  assert round(video["decoder"] / 1e6, 1) == 225.5
  assert round(sum(video.values()) / 1e6, 1) == 375.8
  image = CausalVae(
    channel_multipliers=(1, 1, 2, 4),
    temporal_downsample=(False, False, False),
    temporal_kernel=1,
    down_kernel=(1, 3, 3),
  )
  assert round(sum(_count(image, (1, 1, 256, 256, 3)).values()) / 1e6, 1) == 102.6


@pytest.mark.parametrize(
  "config, video, latents, posterior",
  [
    ({"num_res_blocks": 1}, (17, 128, 128), (5, 16, 16, 8), "deterministic"),
    (TINY, (9, 32, 32), (3, 8, 8, 4), "gaussian"),
    (TINY, (1, 16, 24), (1, 4, 6, 4), "deterministic"),
  ],
)
def test_shapes(config, video, latents, posterior):
  vae = CausalVae(**config, posterior=posterior)
  x = jax.ShapeDtypeStruct((2, *video, 3), jnp.float32)
  (y, q), variables = jax.eval_shape(vae.init_with_output, jax.random.key(0), x)
  assert y.shape == x.shape
  assert q.mean.shape == (2, *latents) == (2, *vae.latent_shape(video))
  assert (q.logvar is None) == (posterior == "deterministic")
  axes = jax.tree.leaves(variables["params_axes"], is_leaf=lambda a: hasattr(a, "names"))
  params = jax.tree.leaves(variables["params"])
  assert [len(a.names) for a in axes] == [p.ndim for p in params]


def test_factors():
  assert (CausalVae().spatial_factor, CausalVae().temporal_factor) == (8, 4)
  assert (CausalVae(**TINY).spatial_factor, CausalVae(**TINY).temporal_factor) == (4, 4)


@pytest.mark.parametrize(
  "shape, message",
  [
    ((16, 128, 128), r"got 16 frames, expected 1 \+ k \* 4; 13 or 17 would fit"),
    ((17, 100, 128), r"got height 100, expected a multiple of 8; 96 or 104 would fit"),
    ((17, 128, 4), r"got width 4, expected a multiple of 8; 8 would fit"),
  ],
)
def test_sizes_that_do_not_fit_raise(shape, message):
  vae = CausalVae()
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(vae.init, jax.random.key(0), jnp.zeros((1, *shape, 3)))


def test_invalid_fields_raise():
  video = jnp.zeros((1, 1, 16, 16, 3))
  with pytest.raises(ValueError, match="got 1 temporal_downsample flags for 3"):
    CausalVae(**{**TINY, "temporal_downsample": (True,)}).init(jax.random.key(0), video)
  with pytest.raises(ValueError, match="got latents with 5 channels, expected 4"):
    _tiny()[1](jnp.zeros((1, 1, 4, 4, 5)))


def test_bfloat16_activations_keep_float32_parameters():
  vae = CausalVae(**TINY, dtype=jnp.bfloat16)
  shape = jax.ShapeDtypeStruct((1, 9, 16, 16, 3), jnp.float32)
  (y, q), variables = jax.eval_shape(vae.init_with_output, jax.random.key(0), shape)
  assert y.dtype == q.mean.dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {jnp.dtype("float32")}


def test_an_inflated_image_tokenizer_gives_the_same_result_for_images():
  config = {**TINY, "channel_multipliers": (1, 2), "temporal_downsample": (True,)}
  image_config = {**config, "temporal_downsample": (False,)}
  image_vae = CausalVae(**image_config, temporal_kernel=1, down_kernel=(1, 3, 3))
  video_vae = CausalVae(**config)
  image_params = random_params(image_vae.init, jnp.zeros((1, 1, 16, 16, 3)))
  video_shapes = jax.eval_shape(video_vae.init, jax.random.key(0), jnp.zeros((1, 9, 16, 16, 3)))
  inflated = inflate_params(image_params, video_shapes["params"])
  image = _video()[:, :1]
  y, q = jax.jit(image_vae.apply)({"params": image_params}, image)
  y_video, q_video = jax.jit(video_vae.apply)({"params": inflated}, image)
  np.testing.assert_allclose(q_video.mean, q.mean, atol=1e-5)
  np.testing.assert_allclose(y_video, y, atol=1e-5)

  shapes = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct((*leaf.shape[:-1], 2 * leaf.shape[-1]), leaf.dtype),
    video_shapes["params"],
  )
  with pytest.raises(ValueError, match="after inflation, expected"):
    inflate_params(image_params, shapes)


def test_a_saved_image_tokenizer_initializes_a_video_tokenizer_and_its_average():
  target = {
    "target": {"vae": {"a": {"kernel": np.zeros((3, 3, 3, 1, 2))}}, "discriminator": {"b": 0}},
    "state": {
      "step": 0,
      "param_states": {
        "3": {"count": 0, "ema": {"vae": {"a": {"kernel": np.zeros((3, 3, 3, 1, 2))}}}},
        "1": {"mu": {"vae": {"a": {"kernel": np.zeros((3, 3, 3, 1, 2))}}}},
      },
    },
  }
  image = np.arange(18.0).reshape(1, 3, 3, 1, 2)
  saved = {"target": {"vae": {"a": {"kernel": image}}}, "state": {"step": 9}}
  found = inflate_state(saved, target)
  expected = np.concatenate([np.zeros((2, 3, 3, 1, 2)), image])
  np.testing.assert_array_equal(found["target"]["vae"]["a"]["kernel"], expected)
  ema = found["state"]["param_states"]["3"]["ema"]["vae"]["a"]["kernel"]
  np.testing.assert_array_equal(ema, expected)
  # Moments, step and discriminator are absent: they start from scratch.
  assert found["state"] == {"param_states": {"3": {"ema": {"vae": {"a": {"kernel": ema}}}}}}
  assert set(found["target"]) == {"vae"}
  assert inflate_state(saved, target, is_resuming=True) is saved
