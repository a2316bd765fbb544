"""The fused kernel on a model of the TPU's memory: blocks that hold nothing at first, two cores, steps in any order.

Plain interpretation gives a result's block back as the array holds it, zeros at first, so a sum that is never cleared
looks right. Here a block of the core's memory keeps what the step before it left there, or is not a number.
"""

import functools

import pytest
from jax.experimental.pallas import tpu as pltpu

from tests.denoiser.window_attention_test import compiled, error, expected, make, run
from walt_t5x.denoiser import window_attention_kernel

# Cores; grid, window, cell, what is asked for. Two groups of heads; windows that share a text in height, time or width.
CASES = {
  "spatial, a text each": (1, ((2, 8, 4), (1, 4, 4), (2, 2), {"table", "text"})),
  "spatiotemporal, a text a row, image rows": (
    2, ((4, 4, 4), (2, 4, 2), (2, 2), {"table", "one text", "images"}),
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_sums_start_at_zero_whatever_the_memory_holds(name, monkeypatch):
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
  got = compiled(*run(*given, window=window, cell=cell, dtype="float32"))
  want = expected(*given, window=window, dtype="float32")
  assert got.keys() == want.keys()
  errors = {key: error(got[key], want[key]) for key in want}
  assert max(errors.values()) < 1e-5, errors
