"""Step time of window attention compared with full attention at the paper's token count (Table 3b).

  python benchmarks/windows.py                # prints the table, writes benchmarks/windows.{md,json}
  python benchmarks/windows.py --layers 24    # the full model; needs about 10 GiB

A training step (loss and gradient, including the self-conditioning pass) of W.A.L.T-L's layers on 5 x 16 x 16 latents,
one example, all windows in one process in turns. Layers of one kind cost the same, so four layers represent the 24; the
cost of embeddings and loss, which does not grow with depth, is included in every figure.
"""

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
# Table 3b: spatiotemporal window -> published steps per second.
WINDOWS = {
  "5x4x4": ((1, 16, 16), (5, 4, 4), 2.24),
  "5x8x8": ((1, 16, 16), (5, 8, 8), 2.00),
  "5x16x16": ((1, 16, 16), (5, 16, 16), 1.75),
  "full": ((5, 16, 16), (5, 16, 16), 1.20),
}


def make_step(spatial: tuple, spatiotemporal: tuple, *, layers: int, width: int, dtype: str):
  """A compiled training step and its operations."""
  import jax
  import jax.numpy as jnp

  from walt_t5x.denoiser.transformer import WaltDenoiser
  from walt_t5x.engine.flops import count_flops_of
  from walt_t5x.models.denoiser_model import DenoiserModel

  module = WaltDenoiser(
    num_layers=layers,
    width=width,
    num_heads=16,
    mlp_dim=4 * width,
    num_classes=101,
    spatial_window=spatial,
    spatiotemporal_window=spatiotemporal,
    scan_layers=True,
    dtype=jnp.dtype(dtype),
  )
  model = DenoiserModel(module=module, optimizer_def=None, rows="videos")
  batch = {
    "latents": jax.random.normal(jax.random.key(0), (1, 5, 16, 16, 8)),
    "label": jnp.zeros((1, 1), jnp.int32),
  }
  shapes = {name: value.shape for name, value in batch.items()}
  types = {name: value.dtype for name, value in batch.items()}
  params = model.get_initial_variables(jax.random.key(0), shapes, types)["params"]
  gradient = jax.value_and_grad(lambda p, k: model.loss_fn(p, batch, k)[0])
  key = jax.random.key(1)
  compiled = jax.jit(gradient).lower(params, key).compile()
  flops = count_flops_of(gradient, params, key)

  def step() -> float:
    started = time.perf_counter()
    jax.block_until_ready(compiled(params, key))
    return time.perf_counter() - started

  return step, flops


def main() -> None:
  """Measures and writes the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--layers", type=int, default=4)
  parser.add_argument("--width", type=int, default=1024)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument(
    "--dtype", default="float32", help="bfloat16 is emulated, hence slow, on most CPUs"
  )
  args = parser.parse_args()
  steps, flops = {}, {}
  for name, (spatial, spatiotemporal, _) in WINDOWS.items():
    steps[name], flops[name] = make_step(
      spatial, spatiotemporal, layers=args.layers, width=args.width, dtype=args.dtype
    )
    steps[name]()
  seconds: dict[str, list[float]] = {name: [] for name in steps}
  for _ in range(args.repeats):
    for name, step in steps.items():
      seconds[name].append(step())
  rows = []
  for name, values in seconds.items():
    # Ratios of consecutive runs, so that other load affects both.
    ratios = [full / mine for full, mine in zip(seconds["full"], values)]
    rows.append(
      {
        "window": name,
        "seconds_median": statistics.median(values),
        "seconds_min": min(values),
        "seconds_max": max(values),
        "speed_over_full": statistics.median(ratios),
        "operations_over_full": flops[name] / flops["full"],
        "published_steps_per_second": WINDOWS[name][2],
        "published_speed_over_full": WINDOWS[name][2] / WINDOWS["full"][2],
      }
    )
  lines = [
    "# Window attention compared with full attention",
    "",
    f"`python benchmarks/windows.py --layers {args.layers} --width {args.width} --dtype {args.dtype}`: one example of "
    f"1280 tokens, loss and gradient,",
    f"median (min to max) of {args.repeats} in one process on {os.cpu_count()} CPU cores ({platform.machine()}). The "
    "paper's figures are on TPU with the full model.",
    "",
    "| st window | s per step | speed / full | operations / full | paper: steps/s | paper: speed / full |",
    "| --- | --- | --- | --- | --- | --- |",
  ]
  for row in rows:
    spread = f"{row['seconds_median']:.2f} ({row['seconds_min']:.2f} to {row['seconds_max']:.2f})"
    lines.append(
      f"| {row['window']} | {spread} | {row['speed_over_full']:.2f} | {row['operations_over_full']:.2f} | "
      f"{row['published_steps_per_second']:.2f} | {row['published_speed_over_full']:.2f} |"
    )
  print("\n".join(lines[5:]))
  (HERE / "windows.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
  settings = {"arguments": vars(args), "cpu_count": os.cpu_count(), "machine": platform.machine()}
  (HERE / "windows.json").write_text(json.dumps(settings | {"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
  main()
