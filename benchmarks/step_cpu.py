"""Our training step compared with PyTorch video diffusion transformers of `diffusers`, on the CPU.

  python benchmarks/step_cpu.py                       # prints the table, writes benchmarks/step_cpu.{md,json}
  python benchmarks/step_cpu.py --width 1024 --layers 2

All networks have the same width, depth, MLP width, heads, latents (5 x 16 x 16 x 8, hence 1,280 tokens), text tokens
and batch size, in float32; one step is loss, gradient and AdamW on all cores. They take turns in one process, once with
each of three allocators; the ratio is the median over the turns. Ours runs without its self-conditioning pass, which
the others lack; it includes caption dropout and frame conditioning. Other parts of the networks differ, and the table
lists the operations of each (ours counted from its program, theirs by torch's counter).
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
FRAMES, SIDE, CHANNELS, TEXT, TEXT_DIM = 5, 16, 8, 64, 2048
HEAD = 64
Step = Callable[[], float]


def ours(args: argparse.Namespace) -> tuple[Step, float, int]:
  """Seconds per step, operations, parameters."""
  import jax
  import jax.numpy as jnp
  import optax

  from walt_t5x.denoiser.transformer import WaltDenoiser
  from walt_t5x.engine import optimizers
  from walt_t5x.engine.flops import count_flops_of
  from walt_t5x.models.denoiser_model import DenoiserModel
  from walt_t5x.models.input_shapes import input_shapes, without_data

  module = WaltDenoiser(
    num_layers=args.layers,
    width=args.width,
    num_heads=args.width // HEAD,
    mlp_dim=4 * args.width,
    latent_channels=CHANNELS,
    text_dim=TEXT_DIM,
    frame_prediction=True,
    spatial_window=(1, SIDE, SIDE),
    spatiotemporal_window=(FRAMES, SIDE // 2, SIDE // 2),
    dtype=jnp.float32,
  )
  optimizer = optimizers.adamw(1e-4, ema_decay=None)
  model = without_data(
    DenoiserModel(
      module=module, optimizer_def=optimizer, rows="videos", self_conditioning_probability=0.0
    )
  )
  keys = iter(jax.random.split(jax.random.key(0), 8))
  specs = input_shapes(model, rows=args.rows, field=f"latents/{FRAMES}x{SIDE}x{SIDE}")
  batch = {
    name: jax.random.normal(next(keys), spec.shape)
    if spec.dtype == jnp.float32
    else jnp.ones(spec.shape, spec.dtype)
    for name, spec in specs.items()
  }
  shapes = {name: spec.shape for name, spec in specs.items()}
  types = {name: spec.dtype for name, spec in specs.items()}
  params = model.get_initial_variables(next(keys), shapes, types)["params"]
  chain = optimizer.optax_optimizer

  def step(params, state, key):
    loss, grads = jax.value_and_grad(lambda p: model.loss_fn(p, batch, key)[0])(params)
    updates, state = chain.update(grads, state, params)
    return optax.apply_updates(params, updates), state, jax.random.split(key)[0], loss

  held = (params, chain.init(params), next(keys))
  gradient = jax.grad(lambda p, k: model.loss_fn(p, batch, k)[0])
  flops = count_flops_of(gradient, params, held[2])
  count = sum(leaf.size for leaf in jax.tree.leaves(params))
  compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*held).compile()

  def run() -> float:
    nonlocal held
    started = time.perf_counter()
    *held, loss = compiled(*held)
    jax.block_until_ready(loss)
    return time.perf_counter() - started

  return run, flops, count


def peer(name: str, args: argparse.Namespace) -> tuple[Step, float, int]:
  """Seconds per step, operations, parameters of a network of `diffusers`."""
  import torch
  from diffusers import CogVideoXTransformer3DModel, WanTransformer3DModel
  from torch.utils.flop_counter import FlopCounterMode

  torch.manual_seed(0)
  heads = {"num_attention_heads": args.width // HEAD, "attention_head_dim": HEAD}
  sizes = {"in_channels": CHANNELS, "out_channels": CHANNELS, "num_layers": args.layers}
  times = torch.full((args.rows,), 500)
  text = torch.randn(args.rows, TEXT, TEXT_DIM)
  if name == "Wan":
    model = WanTransformer3DModel(
      patch_size=(1, 1, 1), text_dim=TEXT_DIM, ffn_dim=4 * args.width, **heads, **sizes
    )
    x = torch.randn(args.rows, CHANNELS, FRAMES, SIDE, SIDE)
  else:
    model = CogVideoXTransformer3DModel(
      patch_size=1,
      sample_width=SIDE,
      sample_height=SIDE,
      sample_frames=4 * (FRAMES - 1) + 1,
      text_embed_dim=TEXT_DIM,
      max_text_seq_length=TEXT,
      **heads,
      **sizes,
    )
    x = torch.randn(args.rows, FRAMES, CHANNELS, SIDE, SIDE)
  target = torch.randn_like(x)
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

  def step() -> None:
    optimizer.zero_grad(set_to_none=True)
    out = model(hidden_states=x, timestep=times, encoder_hidden_states=text, return_dict=False)[0]
    torch.nn.functional.mse_loss(out, target).backward()
    optimizer.step()

  with FlopCounterMode(display=False) as counter:
    step()

  def run() -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started

  return run, counter.get_total_flops(), sum(p.numel() for p in model.parameters())


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
  """Measures a table row for each network in this process."""
  import torch

  from walt_t5x.engine.host_memory import keep_freed_memory

  keep_freed_memory()  # As in `walt_t5x.train` on a CPU; it applies to all networks.
  torch.set_num_threads(os.cpu_count() or 1)
  steps, flops, sizes = {}, {}, {}
  for name in ("ours", "Wan", "CogVideoX"):
    build = ours if name == "ours" else lambda args, name=name: peer(name, args)
    steps[name], flops[name], sizes[name] = build(args)
    steps[name]()
  seconds: dict[str, list[float]] = {name: [] for name in steps}
  for _ in range(args.repeats):
    for name, step in steps.items():
      seconds[name].append(step())
  rows = []
  for name, values in seconds.items():
    # Ratios of consecutive runs, so that other load affects both.
    ratios = [theirs / mine for theirs, mine in zip(values, seconds["ours"])]
    rows.append(
      {
        "network": name,
        "parameters": sizes[name],
        "operations": flops[name],
        "seconds_median": statistics.median(values),
        "seconds_min": min(values),
        "operations_per_second": flops[name] / statistics.median(values),
        "our_speed_over_it": statistics.median(ratios),
      }
    )
  return rows


def main() -> None:
  """Measures and writes the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--width", type=int, default=512)
  parser.add_argument("--layers", type=int, default=4)
  parser.add_argument("--rows", type=int, default=1)
  parser.add_argument("--repeats", type=int, default=9)
  parser.add_argument("--here", action="store_true", help="only this process; prints JSON")
  args = parser.parse_args()
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  if args.here:
    print(json.dumps(measure(args)))
    return
  from benchmarks.allocators import ALLOCATORS, environment

  measured = {}
  for allocator in ALLOCATORS:
    command = [sys.executable, __file__, "--here", *sys.argv[1:]]
    done = subprocess.run(
      command, env=environment(allocator), stdout=subprocess.PIPE, text=True, check=True
    )
    measured[allocator] = json.loads(done.stdout.splitlines()[-1])
  packages = ("jax", "torch", "diffusers")
  versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
  lines = [
    "# Our training step compared with PyTorch's, on the CPU",
    "",
    f"`python benchmarks/step_cpu.py --width {args.width} --layers {args.layers} --rows {args.rows}`: loss, gradient,",
    f"AdamW in float32, median of {args.repeats} in one process per allocator in turns on {os.cpu_count()} CPU cores "
    f"({platform.machine()}); {versions}.",
    "The allocators are those of `scripts/allocator.sh`; in each process glibc keeps freed memory, as in",
    "`walt_t5x.train`. torch's counter omits the products of fused attention, so the others have more operations than",
    "listed.",
    "",
    "| allocator | network | parameters | operations per step | s per step | operations/s | our speed / its |",
    "| --- | --- | --- | --- | --- | --- | --- |",
  ]
  for allocator, rows in measured.items():
    for row in rows:
      lines.append(
        f"| {allocator} | {row['network']} | {row['parameters']:,} | {row['operations']:.3g} | "
        f"{row['seconds_median']:.2f} | {row['operations_per_second']:.3g} | {row['our_speed_over_it']:.2f} |"
      )
  print("\n".join(lines[8:]))
  (HERE / "step_cpu.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
  settings = {"arguments": vars(args), "cpu_count": os.cpu_count(), "machine": platform.machine()}
  settings["versions"] = versions
  (HERE / "step_cpu.json").write_text(json.dumps(settings | {"rows": measured}, indent=2) + "\n")


if __name__ == "__main__":
  main()
