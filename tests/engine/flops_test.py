"""FLOPs compared with closed forms and XLA's own count."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from walt_t5x.engine.flops import count_flops_of


def test_products_and_convolutions_count_two_per_multiplication():
  a, b = jnp.zeros((3, 5)), jnp.zeros((5, 7))
  assert count_flops_of(lambda x, y: x @ y, a, b) == 2 * 3 * 5 * 7
  x, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 4))

  def convolve(x, k):
    return lax.conv_general_dilated(
      x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  assert count_flops_of(convolve, x, kernel) == 2 * (2 * 8 * 8 * 4) * 3 * 3 * 3


def test_a_scan_counts_its_body_per_iteration_and_a_branch_its_most_expensive_side():
  w = jnp.zeros((4, 4))

  def scanned(x):
    return lax.scan(lambda c, _: (c @ w, None), x, None, length=6)[0]

  assert count_flops_of(scanned, w) == 6 * 2 * 4**3
  assert count_flops_of(lambda p, x: lax.cond(p, lambda y: y @ y, lambda y: y, x), True, w) == 128


def test_recomputation_by_a_checkpoint_is_excluded():
  w = jnp.zeros((8, 8))

  def loss(w, x):
    for _ in range(3):
      x = jnp.tanh(x @ w)
    return jnp.sum(x)

  plain = count_flops_of(jax.grad(loss), w, w)
  remat = count_flops_of(jax.grad(jax.checkpoint(loss)), w, w)
  assert plain == remat == (3 + 3 + 2) * 2 * 8**3


def test_a_gradient_equals_xlas_count():
  rng = np.random.default_rng(0)
  w1, w2 = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((64, 128), (128, 32)))
  x = jnp.asarray(rng.normal(size=(256, 64)), jnp.float32)

  def loss(w1, w2):
    return jnp.sum(jnp.square(jax.nn.relu(x @ w1) @ w2))

  gradient = jax.grad(loss, argnums=(0, 1))
  counted = count_flops_of(gradient, w1, w2)
  assert counted == 2 * 256 * (64 * 128 * 2 + 128 * 32 * 3)  # no product for the gradient of x
  cost = jax.jit(gradient).lower(w1, w2).compile().cost_analysis()
  np.testing.assert_allclose(counted, cost["flops"], rtol=0.05)


def test_a_transposed_strided_convolution_counts_no_holes():
  x, kernel = jnp.zeros((1, 16, 16, 4)), jnp.zeros((4, 4, 4, 8))

  def convolve(x, k):
    return lax.conv_general_dilated(
      x, k, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  forward = count_flops_of(convolve, x, kernel)
  backward = count_flops_of(
    lambda x: jax.vjp(lambda a: convolve(a, kernel), x)[1](convolve(x, kernel)), x
  )
  # Two forward passes are traced, and the backward pass costs as much as one.
  np.testing.assert_allclose(backward, 3 * forward)
