"""The fused window attention: its errors against float64 numpy, and whether the TPU compiler takes the stages' shapes.

  JAX_PLATFORMS=cpu python benchmarks/window_attention.py --laws       # interpreted; minutes
  JAX_PLATFORMS=cpu python benchmarks/window_attention.py --compile    # needs the extra [tpu]; minutes
  JAX_PLATFORMS=cpu python benchmarks/window_attention.py --compile --slice=v5e:2x2

Writes benchmarks/window_attention.json, one part a switch. It has not run on a TPU.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "window_attention.json"
# (grid, window, cell); each at all head sizes, with table or text or both, with and without image rows.
WINDOWS = (
  ((1, 16, 16), (1, 16, 16), (8, 8)),
  ((5, 8, 8), (5, 8, 8), (8, 8)),
  ((1, 16, 28), (1, 16, 28), (8, 14)),
  ((5, 8, 14), (5, 8, 14), (8, 14)),
)
HEAD_SIZES = (64, 72, 88, 108, 128)
# Stage: heads, head size, cells of a frame, tokens of a cell; rows a chip at batch 512 on 64 chips.
STAGES = {
  "L": (16, 64, (2, 2), 64),
  "base 3B": (16, 108, (2, 2), 64),
  "base 3B mxu": (14, 128, (2, 2), 64),
  "base 9:16": (16, 108, (2, 2), 112),
  "SR1": (16, 88, (2, 2), 112),
  "SR2": (16, 64, (4, 4), 112),
}
# Kind of layer: window in cells, with the bias, with a text for each frame, with image rows.
LAYERS = {
  "spatial": ((1, 2, 2), True, False, False),
  "spatiotemporal": ((5, 1, 1), True, False, True),
  "cross": ((1, 2, 2), False, True, False),
}


def laws() -> list[dict[str, Any]]:
  """Relative errors of the value and of every gradient, one entry a case."""
  from tests.denoiser.window_attention_test import compiled, error, expected, make, run

  found = []
  for grid, window, cell in WINDOWS:
    for head_size in HEAD_SIZES:
      for asked in ({"table"}, {"table", "text"}, {"table", "images"}):
        for dtype in ("float32", "bfloat16"):
          given = make(grid, window, cell, 128 // head_size, head_size, asked)
          got = compiled(*run(*given, window=window, cell=cell, dtype=dtype))
          want = expected(*given, window=window, dtype=dtype)
          errors = {name: float(error(got[name], want[name])) for name in want}
          case = {"window": window, "head_size": head_size, "asked": sorted(asked), "dtype": dtype}
          found.append(case | {"errors": errors})
          print(case, f"worst {max(errors.values()):.1e}", flush=True)
  return found


def compile_stages(slice_name: str) -> list[dict[str, Any]]:
  """Forward and backward of each layer of each stage for one chip of a slice."""
  import jax
  import jax.numpy as jnp

  from walt_t5x import tpu_compile
  from walt_t5x.denoiser.window_attention_kernel import fused_window_attention, heads_in_lanes

  device = tpu_compile.topology_devices(slice_name)[0]
  sharding = jax.sharding.SingleDeviceSharding(device)

  def array(*shape: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  found, rows = [], 8
  for stage, (heads, head_size, cells, cell_tokens) in STAGES.items():
    for layer, (window, bias, text, images) in LAYERS.items():
      group = heads_in_lanes(heads, head_size)
      tokens = window[0] * window[1] * window[2] * cell_tokens
      lanes = (heads // group, group * head_size)
      x = array(rows, lanes[0], *cells, 5, cell_tokens, lanes[1])
      arrays = {name: array(head_size, dtype=jnp.float32) for name in ("query_scale", "key_scale")}
      masks = {}
      if bias:
        arrays["bias"] = array(heads, tokens, tokens, dtype=jnp.float32)
      if text:
        arrays |= {
          name: array(rows, 5, lanes[0], 64, lanes[1]) for name in ("text_key", "text_value")
        }
        masks["text_mask"] = array(rows, 5, 64, dtype=jnp.bool_)
      if images:
        masks["is_image"] = array(rows, dtype=jnp.bool_)

      def step(q, k, v, arrays, masks, cotangent, window=window, group=group):
        def attend(q, k, v, arrays):
          return fused_window_attention(q, k, v, window=window, group=group, **arrays, **masks)

        out, pull = jax.vjp(attend, q, k, v, arrays)
        return out, pull(cotangent)

      started = time.monotonic()
      compiled = jax.jit(step).lower(x, x, x, arrays, masks, x).compile()
      found.append(
        {
          "stage": stage,
          "layer": layer,
          "slice": slice_name,
          "kernels": compiled.as_text().count('custom_call_target="tpu_custom_call"'),
          "estimated_seconds": compiled.cost_analysis()["optimal_seconds"],
          "seconds_to_compile": round(time.monotonic() - started, 1),
        }
      )
      print(found[-1], flush=True)
  return found


def main() -> None:
  """Runs the parts that are asked for."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--laws", action="store_true")
  parser.add_argument("--compile", action="store_true")
  parser.add_argument("--slice", default="v5p:2x2x1")
  arguments = parser.parse_args()
  sys.path.insert(0, str(ROOT))
  results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
  if arguments.laws:
    results["laws"] = laws()
  if arguments.compile:
    results[f"compiled for {arguments.slice}"] = compile_stages(arguments.slice)
  RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
  main()
