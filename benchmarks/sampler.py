"""What the sampler adds to its network: 50 DDIM steps against 50 bare calls of the same network, and compilations.

  python -m benchmarks.sampler

Both run the same rows: guidance makes 2 B of B. Pairs of runs alternate, so that a busy machine slows both; the median
of the ratios counts. Writes sampler.json and sampler.md beside this file.
"""

import argparse
import json
import time
from pathlib import Path

STEPS, ROWS, PAIRS = 50, 1, 3
WIDTH = 96
BAR = 1.03


def build(kind: str):
  """(model, parameters, sampler, its arguments, bare network, its arguments)."""
  import jax
  import jax.numpy as jnp

  from walt_t5x.denoiser.transformer import Conditioning, WaltDenoiser
  from walt_t5x.diffusion.guidance import ConstantGuidance
  from walt_t5x.generation.random_cascade import random_params
  from walt_t5x.generation.stage import StageConfig
  from walt_t5x.generation.stage_sampler import StageSampler
  from walt_t5x.models.denoiser_model import DenoiserModel
  from walt_t5x.models.sampling import SamplerConfig

  shapes = {"base": (5, 16, 16), "sr": (5, 32, 56)}
  t, h, w = shapes[kind]
  extra = {
    "base": {"frame_prediction": True},
    "sr": {
      "patch_size": 2,
      "low_resolution_scale": 2,
      "pooled_text": False,
      "spatial_window": (1, 16, 28),
      "spatiotemporal_window": (5, 8, 14),
    },
  }[kind]
  module = WaltDenoiser(
    num_layers=2,
    width=WIDTH,
    num_heads=4,
    mlp_dim=4 * WIDTH,
    text_dim=64,
    dtype=jnp.float32,
    **extra,
  )
  model = DenoiserModel(
    module=module,
    optimizer_def=None,
    sampler=SamplerConfig(num_steps=STEPS, guidance=ConstantGuidance(7.5)),
  )
  low = f"latents/{t}x{h // 2}x{w // 2}" if kind == "sr" else None
  config = StageConfig(
    name=kind, model=model, checkpoint="", latents=f"latents/{t}x{h}x{w}", low_resolution=low
  )
  params = random_params(config, text_length=64, seed=0, spread=0.05)
  sampler = StageSampler(config)
  params = sampler.place(params)

  def given(rows: int, key: int) -> Conditioning:
    latents = (rows, t, h, w, 8)
    normal = jax.random.normal(jax.random.key(key), latents)
    fields = {
      "text": jax.random.normal(jax.random.key(key + 1), (rows, 1, 64, 64)),
      "text_mask": jnp.ones((rows, 1, 64), bool),
    }
    if kind == "base":
      fields |= {"frames": normal, "frame_mask": jnp.zeros((rows, t)).at[:, 0].set(1)}
    else:
      fields |= {"low_resolution": normal[:, :, : h // 2, : w // 2]}
    return Conditioning(**fields)

  def sample(key: int):
    noise = jax.random.normal(jax.random.key(key), (ROWS, t, h, w, 8))
    return sampler(
      params,
      noise,
      given(ROWS, key),
      low_noise=noise if kind == "sr" else None,
      null_text=jnp.ones((ROWS, 1, 64)),
    )

  both = 2 * ROWS
  noise = jax.random.normal(jax.random.key(0), (both, t, h, w, 8))
  steps = jnp.full((both,), 500, jnp.int32)
  conditioning = model.low_resolution_noised(
    given(both, 5), noise, time=jnp.full((both,), model.sampling_low_resolution_noise)
  )
  apply = jax.jit(lambda p, x, k, s, c: module.apply({"params": p}, x, k, s, c))

  def bare(calls: int = STEPS):
    x = noise
    for _ in range(calls):
      # Each call waits for the one before, as in the chain.
      x = apply(params, x, steps, noise, conditioning)
    return x

  return sample, bare


def measure(kind: str, pairs: int) -> dict:
  """Medians, ratio and number of compilations of one stage."""
  import jax
  import numpy as np

  sample, bare = build(kind)
  compiled = []

  def listen(event: str, seconds: float, **kwargs) -> None:
    if "backend_compile" in event:
      compiled.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  jax.block_until_ready(sample(0))
  first = len(compiled)
  jax.block_until_ready(sample(1))
  again = len(compiled) - first
  jax.block_until_ready(bare(1))

  def seconds(function, *arguments) -> float:
    started = time.perf_counter()
    jax.block_until_ready(function(*arguments))
    return time.perf_counter() - started

  found = [(seconds(sample, 4), seconds(bare)) for _ in range(pairs)]
  sampled, called = np.array(found).T
  return {
    "stage": kind,
    "steps": STEPS,
    "rows": ROWS,
    "sampler_seconds": float(np.median(sampled)),
    "bare_seconds": float(np.median(called)),
    "ratio": float(np.median(sampled / called)),
    "ratios": [round(float(r), 4) for r in sampled / called],
    "compilations_after_the_first_sample": again,
  }


def report(results: list[dict], output: Path, *, pairs: int) -> str:
  """Writes what has been measured so far; returns the table."""
  lines = [
    "# The sampler against its network",
    "",
    "`python -m benchmarks.sampler`: 50 DDIM steps with guidance and self-conditioning against 50 calls of the same",
    f"network on as many rows, medians of {pairs} alternating pairs, 2 CPU cores, two layers of width {WIDTH}.",
    "",
    "| stage | sampler, s | 50 bare calls, s | ratio (bar 1.03) | compilations after the first sample |",
    "| --- | --- | --- | --- | --- |",
    *(
      f"| {r['stage']} | {r['sampler_seconds']:.2f} | {r['bare_seconds']:.2f} | {r['ratio']:.3f} | "
      f"{r['compilations_after_the_first_sample']} |"
      for r in results
    ),
  ]
  text = "\n".join(lines) + "\n"
  (output / "sampler.md").write_text(text, encoding="utf-8")
  (output / "sampler.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
  return text


def main() -> None:
  """Measures, prints and writes."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--pairs", type=int, default=PAIRS)
  parser.add_argument("--stages", default="base,sr")
  parser.add_argument("--output", type=Path, default=Path(__file__).parent)
  args = parser.parse_args()
  results: list[dict] = []
  text = ""
  for kind in args.stages.split(","):
    results.append(measure(kind, args.pairs))
    print(json.dumps(results[-1]), flush=True)
    text = report(results, args.output, pairs=args.pairs)
  print(text)
  verdict = "reached" if all(r["ratio"] <= BAR for r in results) else "NOT REACHED"
  print(f"at most {BAR}: {verdict}")


if __name__ == "__main__":
  main()
