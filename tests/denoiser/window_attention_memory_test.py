"""The fused kernel on a model of the TPU's memory: uninitialized blocks, two cores, steps in any order.

Plain interpretation initializes the block of a result with zeros, so it does not detect a sum that is never cleared.
Here a block of the core's memory contains what the previous step left there, or NaN.
"""

import functools

import pytest
from jax.experimental.pallas import tpu as pltpu

from tests.denoiser.window_attention_test import error, expected, make, run
from walt_t5x.denoiser.kernels import window_attention_kernel

# Cores; grid, window, cell, optional inputs. Two groups of heads; windows share a text along height, time or width.
CASES = {
  "spatial, a text each": (1, ((2, 8, 4), (1, 4, 4), (2, 2), {"table", "text"})),
  "spatiotemporal, a text a row, image rows": (
    2, ((4, 4, 4), (2, 4, 2), (2, 2), {"table", "one text", "images"}),
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_sums_are_cleared_before_the_first_step(name, monkeypatch):
  cores, (grid, window, cell, asked) = CASES[name]
  memory = pltpu.InterpretParams(
    num_cores_or_threads=cores, random_seed=0, uninitialized_memory="nan"
  )
  kernel = window_attention_kernel.fused_window_attention

  @functools.wraps(kernel)
  def on_the_model(*arrays, interpret, **given):
    assert interpret is True
    return kernel(*arrays, interpret=memory, **given)

  monkeypatch.setattr(window_attention_kernel, "fused_window_attention", on_the_model)
  given = make(grid, window, cell, 2, 12, asked)
  got = run(*given, window=window, cell=cell, dtype="float32")
  want = expected(*given, window=window, dtype="float32")
  assert got.keys() == want.keys()
  errors = {key: error(got[key], want[key]) for key in want}
  assert max(errors.values()) < 1e-5, errors
