"""The fused window attention: errors compared with float64 numpy, and compilation of the stages' shapes for TPU.

  JAX_PLATFORMS=cpu python benchmarks/window_attention.py --laws       # interpreted; about ten minutes on two cores
  JAX_PLATFORMS=cpu python benchmarks/window_attention.py --compile    # needs the extra [tpu]; minutes
  JAX_PLATFORMS=cpu python benchmarks/window_attention.py --compile --slice=v5e:2x2
  JAX_PLATFORMS=cpu python benchmarks/window_attention.py              # writes the tables again

Each case is written to benchmarks/window_attention.json immediately, so a stopped command resumes; delete an entry to
compute it again. The tables are in benchmarks/window_attention.md. It has not run on a TPU.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "window_attention.json"
# (grid, window, cell), each with all head sizes.
WINDOWS = (
  ((1, 16, 16), (1, 16, 16), (8, 8)),
  ((5, 8, 8), (5, 8, 8), (8, 8)),
  ((1, 16, 28), (1, 16, 28), (8, 14)),
  ((5, 8, 14), (5, 8, 14), (8, 14)),
)
HEAD_SIZES = (64, 72, 88, 108, 128)
# Self-attention; self-attention with images; cross-attention with text keys; all combined.
ASKED = (("table",), ("images", "table"), ("text",), ("images", "table", "text"))
DTYPES = ("float32", "bfloat16")
# Stage: heads, head size, cells per frame, tokens per cell; examples per chip at batch size 512 on 64 chips.
STAGES = {
  "L": (16, 64, (2, 2), 64),
  "base 3B": (16, 108, (2, 2), 64),
  "base 3B mxu": (14, 128, (2, 2), 64),
  "base 9:16": (16, 108, (2, 2), 112),
  "SR1": (16, 88, (2, 2), 112),
  "SR2": (16, 64, (4, 4), 112),
}
# Kind of layer: window in cells, with the bias, with one text per frame, with images.
LAYERS = {
  "spatial": ((1, 2, 2), True, False, False),
  "spatiotemporal": ((5, 1, 1), True, False, True),
  "cross": ((1, 2, 2), False, True, False),
}


def laws(results: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
  """Relative errors of the value and of every gradient, for each missing case."""
  from tests.denoiser.window_attention_test import BOUNDS, error, expected, make, run

  for grid, window, cell in WINDOWS:
    for head_size in HEAD_SIZES:
      for asked in ASKED:
        given = make(grid, window, cell, 128 // head_size, head_size, set(asked))
        for dtype in DTYPES:
          name = f"{'x'.join(map(str, window))} of {head_size}, {' and '.join(asked)}, {dtype}"
          if name in results:
            continue
          got = run(*given, window=window, cell=cell, dtype=dtype)
          want = expected(*given, window=window, dtype=dtype)
          errors = {key: float(error(got[key], want[key])) for key in want}
          yield (
            name,
            {
              "window": window, "head_size": head_size, "asked": asked, "dtype": dtype,
              "bound": BOUNDS[dtype], "errors": errors,
            },
          )  # fmt: skip


def compile_stages(
  slice_name: str, results: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
  """Compiles forward and backward of each layer of each stage for one chip of a slice, if it is missing."""
  import jax
  import jax.numpy as jnp

  from walt_t5x.denoiser.kernels.window_attention_kernel import fused_window_attention
  from walt_t5x.denoiser.kernels.window_attention_shape import heads_in_lanes
  from walt_t5x.planning import tpu_compile

  device = tpu_compile.topology_devices(slice_name)[0]
  sharding = jax.sharding.SingleDeviceSharding(device)

  def array(*shape: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  rows = 8
  for stage, (heads, head_size, cells, cell_tokens) in STAGES.items():
    for layer, (window, bias, text, images) in LAYERS.items():
      name = f"{stage}, {layer}"
      if name in results:
        continue
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
      yield (
        name,
        {
          "stage": stage,
          "layer": layer,
          "tokens": tokens,
          "head_size": head_size,
          "kernels": compiled.as_text().count('custom_call_target="tpu_custom_call"'),
          "estimated_seconds": tpu_compile.estimated_seconds(compiled),
          "seconds_to_compile": round(time.monotonic() - started, 1),
        },
      )


def _seconds(value: float | None) -> str:
  return "-" if value is None else f"{value:.5f}"


def lines(results: dict[str, Any]) -> list[str]:
  """The tables."""
  found = [
    "# The fused window attention",
    "",
    "Written by `benchmarks/window_attention.py` from `benchmarks/window_attention.json`. It has not run on a TPU.",
    "",
    "## Compared with float64 numpy, interpreted",
    "",
    "Norm of the error / norm of the expected value, the worst of head sizes 64, 72, 88, 108 and 128. Two examples, of",
    "which the first is a stack of images; texts of 3 to 11 of 12 tokens.",
    "",
  ]
  laws = results.get("laws", {}).values()
  names = list(dict.fromkeys(name for r in laws for name in r["errors"]))
  found.append("| window | what | dtype | bound | " + " | ".join(names) + " |")
  found.append("| --- | --- | --- | --- |" + " --- |" * len(names))
  groups: dict[tuple, list[dict[str, float]]] = {}
  for r in laws:
    key = ("x".join(map(str, r["window"])), " and ".join(r["asked"]), r["dtype"], r["bound"])
    groups.setdefault(key, []).append(r["errors"])
  for (window, what, dtype, bound), errors in groups.items():
    cells = []
    for name in names:
      values = [e[name] for e in errors if name in e]
      cells.append(f"{max(values):.1e}" if values else "-")
    found.append(f"| {window} | {what} | {dtype} | {bound:.0e} | " + " | ".join(cells) + " |")
  inside = [max(r["errors"].values()) < r["bound"] for r in laws]
  found += ["", f"{sum(inside)} of {len(inside)} cases are within their bounds.", ""]
  for part, entries in results.items():
    if not part.startswith("compiled for"):
      continue
    found += [
      f"## {part[0].upper()}{part[1:]} by the TPU compiler (libtpu {entries['libtpu']})",
      "",
      "Forward and backward of one layer's attention, 8 examples of 5 latent frames on one chip, bfloat16.",
      "",
      "| stage | layer | tokens per window | head | kernels in the program | estimated seconds | seconds to compile |",
      "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in entries["layers"].values():
      found.append(
        f"| {r['stage']} | {r['layer']} | {r['tokens']} | {r['head_size']} | {r['kernels']} | "
        f"{_seconds(r['estimated_seconds'])} | {r['seconds_to_compile']} |"
      )
    found.append("")
  return found


def main() -> None:
  """Runs the requested parts."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--laws", action="store_true")
  parser.add_argument("--compile", action="store_true")
  parser.add_argument("--slice", default="v5p:2x2x1")
  arguments = parser.parse_args()
  sys.path.insert(0, str(ROOT))
  results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}

  def keep(part: dict[str, Any], made: Iterator[tuple[str, dict[str, Any]]]) -> None:
    for name, result in made:
      part[name] = result
      RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
      worst = max(result["errors"].values()) if "errors" in result else result["kernels"]
      print(f"{name}: {worst:.2g}", flush=True)

  if arguments.laws:
    part = results.setdefault("laws", {})
    keep(part, laws(part))
  if arguments.compile:
    from importlib import metadata

    part = results.setdefault(
      f"compiled for {arguments.slice}", {"libtpu": metadata.version("libtpu"), "layers": {}}
    )
    keep(part["layers"], compile_stages(arguments.slice, part["layers"]))
  (HERE / "window_attention.md").write_text("\n".join(lines(results)).rstrip() + "\n")


if __name__ == "__main__":
  main()
