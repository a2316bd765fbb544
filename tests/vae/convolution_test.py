"""The causal convolution and its two implementations compared with numpy and torch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from walt_t5x.vae.convolution import CausalConv, convolve, convolve_by_frames

CASES = [
  ((3, 3, 3), (1, 1, 1)),
  ((4, 4, 4), (2, 2, 2)),
  ((4, 4, 4), (1, 2, 2)),
  ((1, 3, 3), (1, 2, 2)),
]


def _normal(shape):
  return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def _native(x, kernel, *, strides, padding):
  """One XLA 3D convolution."""
  return jax.lax.conv_general_dilated(
    x, kernel, strides, padding, dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
  )


def _layer(kernel_size, strides, frames=5):
  layer = CausalConv(6, kernel_size=kernel_size, strides=strides)
  params = {"kernel": _normal((*kernel_size, 4, 6)) / 8, "bias": jnp.arange(6.0)}
  return layer, params, _normal((2, frames, 8, 8, 4))


@pytest.mark.parametrize("kernel_size, strides", CASES)
def test_equals_torch_on_a_clip_with_its_first_frame_repeated(kernel_size, strides):
  layer, params, x = _layer(kernel_size, strides)
  first = np.repeat(np.asarray(x[:, :1]), kernel_size[0] - 1, axis=1)
  padded = np.concatenate([first, x], axis=1)
  # SAME padding puts an odd zero after, which torch cannot express, so both axes are padded explicitly.
  side = [((k - s) // 2, (k - s) - (k - s) // 2) for k, s in zip(kernel_size[1:], strides[1:])]
  padded = np.pad(padded, [(0, 0), (0, 0), side[0], side[1], (0, 0)])
  expected = torch.nn.functional.conv3d(
    torch.from_numpy(padded.transpose(0, 4, 1, 2, 3).copy()),
    torch.from_numpy(np.asarray(params["kernel"]).transpose(4, 3, 0, 1, 2).copy()),
    torch.from_numpy(np.asarray(params["bias"]).copy()),
    stride=strides,
  ).numpy()
  y = layer.apply({"params": params}, x)
  np.testing.assert_allclose(y, expected.transpose(0, 2, 3, 4, 1), atol=1e-5)


@pytest.mark.parametrize("kernel_size, strides", CASES[:2])
def test_by_frames_equals_native_with_gradients(kernel_size, strides):
  x, kernel = _normal((2, 6, 8, 8, 4)), _normal((*kernel_size, 4, 6)) / 10
  padding = ((1, 0), (1, 1), (0, 1))

  @functools.partial(jax.jit, static_argnums=0)
  def value_and_gradients(implementation, x, kernel):
    y, pullback = jax.vjp(
      lambda x, kernel: implementation(x, kernel, strides=strides, padding=padding), x, kernel
    )
    return y, *pullback(jnp.sin(y))

  native = value_and_gradients(_native, x, kernel)
  for implementation in (convolve_by_frames, convolve):
    y, *gradients = value_and_gradients(implementation, x, kernel)
    np.testing.assert_allclose(y, native[0], atol=1e-5)
    for a, b in zip(gradients, native[1:]):
      np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-5)


def test_by_frames_equals_a_numpy_loop():
  rng = np.random.default_rng(0)
  x, kernel = rng.normal(size=(1, 4, 3, 3, 2)), rng.normal(size=(2, 3, 3, 2, 3))
  expected = np.zeros((1, 3, 1, 1, 3))
  for t in range(3):
    for i in range(2):
      for r in range(3):
        for s in range(3):
          expected[0, t, 0, 0] += x[0, t + i, r, s] @ kernel[i, r, s]
  nothing = ((0, 0), (0, 0), (0, 0))
  y = convolve_by_frames(
    jnp.asarray(x, jnp.float32),
    jnp.asarray(kernel, jnp.float32),
    strides=(1, 1, 1),
    padding=nothing,
  )
  np.testing.assert_allclose(y, expected, atol=1e-5)


@pytest.mark.parametrize("kernel_size, strides", CASES)
def test_no_output_depends_on_a_later_frame(kernel_size, strides):
  layer, params, x = _layer(kernel_size, strides, frames=9)
  apply = jax.jit(lambda x: layer.apply({"params": params}, x))
  before = apply(x)
  for frame in range(1, 9):
    after = apply(x.at[:, frame:].set(7.0))
    seen_from = -(-frame // strides[0])
    np.testing.assert_array_equal(after[:, :seen_from], before[:, :seen_from])
    if seen_from < before.shape[1]:
      assert np.abs(after[:, seen_from] - before[:, seen_from]).max() > 1e-3


def test_a_still_video_gives_a_still_output():
  layer, params, x = _layer((3, 3, 3), (1, 1, 1), frames=1)
  y = layer.apply({"params": params}, jnp.repeat(x, 4, axis=1))
  np.testing.assert_allclose(y, jnp.repeat(y[:, :1], 4, axis=1), atol=1e-6)


def test_only_one_implementation_is_compiled_for_cpu():
  f = jax.grad(lambda x, k: jnp.sum(convolve(x, k) ** 2), (0, 1))
  text = jax.jit(f).lower(jnp.ones((1, 4, 4, 4, 2)), jnp.ones((3, 3, 3, 2, 2))).compile().as_text()
  assert " conditional(" not in text


def test_the_error_for_too_few_frames_names_both_counts():
  with pytest.raises(ValueError, match=r"got 2 frames, 2 after padding, expected at least .* 3"):
    convolve(jnp.ones((1, 2, 4, 4, 1)), jnp.ones((3, 3, 3, 1, 1)))
