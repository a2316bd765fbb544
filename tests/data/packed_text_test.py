"""Packed text: error per token, smallest step, size in bytes; unpacking in models against a loop."""

import math
import struct

import jax
import ml_dtypes
import numpy as np
import pytest

from data import packed_text
from walt_t5x.models.denoiser_inputs import unpacked_text


def _draw(name, shape):
  random = np.random.default_rng(0)
  values = {"normal": random.normal, "laplace": random.laplace}[name.split("+")[0]](size=shape)
  if "+" in name:  # a few channels of a trained T5 are many times larger than the rest
    outliers, size = (int(part) for part in name.split("+")[1].split("x"))
    values[:, :: shape[1] // outliers] *= size
  return values.astype(np.float32)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize(
  "draw", ["normal", "laplace", "normal+4x40", "normal+1x80", "normal+1x300"]
)
def test_no_token_is_off_by_more_than_a_percent(draw, scale):
  embedding = np.float32(scale) * _draw(draw, (300, 2048))
  packed = packed_text.pack(embedding)
  assert packed.shape == (300, 4 + 256 + 2048) and packed.dtype == np.uint8
  error = packed_text.unpack(packed).astype(np.float64) - embedding
  relative = np.linalg.norm(error, axis=-1) / np.linalg.norm(embedding.astype(np.float64), axis=-1)
  assert relative.max() < 0.01
  largest = np.abs(embedding).reshape(300, 256, 8).max(axis=-1, keepdims=True)
  # Half a step, which is the block's largest value / 127, possibly rounded up by 2^(1/16).
  bound = largest / 127 / 2 * 2 ** (1 / 16) * (1 + 1e-5)
  assert (np.abs(error).reshape(300, 256, 8) <= bound).all()


def _loop(raw, width):
  """Tokens read byte by byte, in float64."""
  blocks = math.ceil(width / 8)
  size = 4 + blocks + width
  tokens = np.zeros((len(raw) // size, width))
  for n in range(len(tokens)):
    token = raw[n * size : (n + 1) * size]
    (scale,) = struct.unpack("<f", token[:4])
    for channel in range(width):
      (value,) = struct.unpack("b", token[4 + blocks + channel :][:1])
      tokens[n, channel] = value * scale * 2.0 ** (-token[4 + channel // 8] / 16)
  return tokens


@pytest.mark.parametrize("width", [1, 7, 8, 9, 48])
def test_every_reader_agrees_with_a_loop_over_the_bytes(width):
  text = np.random.default_rng(width).laplace(size=(6, width)).astype(np.float32)
  packed = packed_text.pack(text)
  expected = _loop(packed.tobytes(), width)
  np.testing.assert_allclose(packed_text.unpack(packed), expected, rtol=1e-6)
  np.testing.assert_allclose(expected, text, atol=np.abs(text).max() * 0.0042)
  padded = np.pad(packed, ((0, 3), (0, 0)))
  unpacked = np.asarray(jax.jit(unpacked_text)(padded[None]))
  assert unpacked.dtype == ml_dtypes.bfloat16 and unpacked.shape == (1, 9, width)
  np.testing.assert_allclose(unpacked[0, :6].astype(np.float64), expected, rtol=2**-8)
  assert not unpacked[0, 6:].any()


def test_the_step_of_a_block_is_the_least_that_holds_its_largest_value():
  text = np.float32([[127.0] * 8 + [127 * 0.999 * 2 ** (-3 / 16)] * 8 + [0.01] * 8 + [0.0] * 8])
  (token,) = packed_text.pack(text).view(packed_text.token_layout(32))[:, 0]
  assert token["scale"] == 1.0
  assert list(token["halvings"]) == [0, 3, math.floor(16 * math.log2(127 / 0.01)), 255]
  np.testing.assert_array_equal(token["values"][24:], 0)
  tiny = packed_text.unpack(packed_text.pack(np.float32([[1.0] * 8 + [1e-9] * 8])))
  np.testing.assert_allclose(tiny, [[1.0] * 8 + [0.0] * 8], atol=1e-7)


def test_tokens_of_zeros_stay_zero_and_no_token_is_no_bytes():
  with np.errstate(all="raise"):
    assert not packed_text.unpack(packed_text.pack(np.zeros((2, 4)))).any()
  assert packed_text.pack(np.zeros((0, 4))).shape == (0, 9)


def test_a_value_beyond_the_steps_of_a_subnormal_token_saturates_with_its_sign():
  # The smallest float32, e: 190 e / 127 rounds to e, so that the value does not fit in int8.
  least = np.nextafter(np.float32(0), np.float32(1))
  packed = packed_text.pack(least * np.float32([[190.0], [-190.0]]))
  np.testing.assert_array_equal(packed_text.unpack(packed), least * np.float32([[127.0], [-127.0]]))


def test_widths_and_sizes_are_inverse_and_a_wrong_size_is_rejected():
  for width in range(1, 300):
    assert packed_text.width_of(packed_text.token_bytes(width)) == width
  for size in (4, 14):  # 4 bytes are a token without a channel
    with pytest.raises(ValueError, match=f"tokens of {size} bytes"):
      packed_text.width_of(size)
  with pytest.raises(ValueError, match="not finite"):
    packed_text.pack(np.float32([[1.0, np.nan]]))
