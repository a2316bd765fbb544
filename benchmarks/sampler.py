"""Overhead of the sampler: 50 DDIM steps compared with 50 bare calls of the same network, and compilations.

  python -m benchmarks.sampler
  python -m benchmarks.sampler --cases=sr_guided        # measures this case again, keeps the others

Base and super-resolution stages (low-resolution latents with noise augmentation, conditioned on the first frames),
without guidance, with guidance, and with separate scales for text and frames. Both sides run the same batch: guidance
makes 2 B or 3 B of B. Pairs of runs alternate and change order, so that other load slows both; the result is the median
of the ratios. A ratio can be below 1: the chain is one program, which computes once what depends only on weights and
conditions, such as the bias of each window's relative positions, while 50 calls compute it 50 times. Writes
sampler.json and sampler.md next to this file.
"""

import argparse
import json
import time
from pathlib import Path

STEPS, ROWS, PAIRS = 50, 1, 5
WIDTH = 96
BAR = 1.03
BASE = {"shape": (5, 16, 16), "module": {"frame_prediction": True}}
SR = {
  "shape": (5, 32, 56),
  "module": {
    "frame_prediction": True,
    "patch_size": 2,
    "low_resolution_scale": 2,
    "pooled_text": False,
    "spatial_window": (1, 16, 28),
    "spatiotemporal_window": (5, 8, 14),
  },
}
# name -> (stage, scale of text or None, scale of frames or None)
CASES = {
  "base_alone": (BASE, None, None),
  "base_guided": (BASE, 7.5, None),
  "base_two_scales": (BASE, 7.5, 2.0),
  "sr_alone": (SR, None, None),
  "sr_guided": (SR, 7.5, None),
}
WHAT = {
  "base_alone": "base, no guidance",
  "base_guided": "base, guidance",
  "base_two_scales": "base, scales for text and frames",
  "sr_alone": "super-resolution, no guidance",
  "sr_guided": "super-resolution, guidance",
}


def build(name: str):
  """(sample, bare, number of compiled chains): the sampler and 50 calls of its network, functions of a key."""
  import jax
  import jax.numpy as jnp

  from tests.generation.random_cascade import random_params
  from walt_t5x.denoiser.transformer import Conditioning, WaltDenoiser
  from walt_t5x.diffusion.guidance import ConstantGuidance
  from walt_t5x.generation.stage import StageConfig
  from walt_t5x.generation.stage_sampler import StageSampler
  from walt_t5x.models.denoiser_model import DenoiserModel
  from walt_t5x.models.sampling import SamplerConfig

  stage, text_scale, frame_scale = CASES[name]
  t, h, w = stage["shape"]
  scale = stage["module"].get("low_resolution_scale", 0)
  module = WaltDenoiser(
    num_layers=2,
    width=WIDTH,
    num_heads=4,
    mlp_dim=4 * WIDTH,
    text_dim=64,
    dtype=jnp.float32,
    **stage["module"],
  )
  model = DenoiserModel(
    module=module,
    optimizer_def=None,
    sampler=SamplerConfig(
      num_steps=STEPS,
      guidance=None if text_scale is None else ConstantGuidance(text_scale),
      frame_guidance=None if frame_scale is None else ConstantGuidance(frame_scale),
    ),
  )
  config = StageConfig(
    name=name,
    model=model,
    checkpoint="",
    latents=f"latents/{t}x{h}x{w}",
    low_resolution=f"latents/{t}x{h // scale}x{w // scale}" if scale else None,
  )
  sampler = StageSampler(config)
  params = sampler.place(random_params(config, text_length=64, seed=0, spread=0.05))

  def given(rows: int, key: int) -> Conditioning:
    normal = jax.random.normal(jax.random.key(key), (rows, t, h, w, 8))
    fields = {
      "text": jax.random.normal(jax.random.key(key + 1), (rows, 1, 64, 64)),
      "text_mask": jnp.ones((rows, 1, 64), bool),
      "frames": normal,
      "frame_mask": jnp.zeros((rows, t)).at[:, 0].set(1),
    }
    if scale:
      fields["low_resolution"] = normal[:, :, : h // scale, : w // scale]
    return Conditioning(**fields)

  def inputs(key: int):
    noise = jax.random.normal(jax.random.key(key), (ROWS, t, h, w, 8))
    return jax.block_until_ready((noise, given(ROWS, key), jnp.ones((ROWS, 1, 64))))

  def sample(arguments):
    noise, conditioning, null = arguments
    low_noise = conditioning.low_resolution
    return sampler(params, noise, conditioning, low_noise=low_noise, null_text=null)

  branches = 1 if text_scale is None else 2 if frame_scale is None else 3
  rows = branches * ROWS
  noise = jax.random.normal(jax.random.key(0), (rows, t, h, w, 8))
  steps = jnp.full((rows,), 500, jnp.int32)
  # The low resolution is noised once per sample; the bare network gets it noised.
  conditioning = model.low_resolution_noised(
    given(rows, 5),
    given(rows, 6).low_resolution,
    time=jnp.full((rows,), model.sampling_low_resolution_noise),
  )
  apply = jax.jit(lambda p, x, k, s, c: module.apply({"params": p}, x, k, s, c))

  def bare(calls: int = STEPS):
    x = noise
    for _ in range(calls):
      # Each call depends on the previous one, as in the chain.
      x = apply(params, x, steps, noise, conditioning)
    return x

  return inputs, sample, bare, sampler._sample._cache_size


def measure(name: str, pairs: int) -> dict:
  """Medians, ratio and number of compilations of one case."""
  import jax
  import numpy as np

  inputs, sample, bare, chains = build(name)
  compiled = []

  def listen(event: str, seconds: float, **kwargs) -> None:
    if "backend_compile" in event:
      compiled.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  jax.block_until_ready(sample(inputs(0)))
  first = len(compiled)
  jax.block_until_ready(sample(inputs(1)))
  again = len(compiled) - first
  jax.block_until_ready(bare(2))
  arguments = inputs(4)

  def seconds(function, *values) -> float:
    started = time.perf_counter()
    jax.block_until_ready(function(*values))
    return time.perf_counter() - started

  found = []
  for pair in range(pairs):
    if pair % 2:
      called = seconds(bare)
      found.append((seconds(sample, arguments), called))
    else:
      found.append((seconds(sample, arguments), seconds(bare)))
  sampled, called = np.array(found).T
  return {
    "case": name,
    "steps": STEPS,
    "samples": ROWS,
    "pairs": pairs,
    "sampler_seconds": float(np.median(sampled)),
    "bare_seconds": float(np.median(called)),
    "ratio": float(np.median(sampled / called)),
    "ratios": [round(float(r), 4) for r in sampled / called],
    "compiled_chains": chains(),
    "compilations_after_the_first_sample": again,
  }


def report(results: dict[str, dict], output: Path) -> str:
  """Writes all measurements so far; returns the table."""
  rows = [results[name] for name in CASES if name in results]
  lines = [
    "# The sampler compared with its network",
    "",
    "`python -m benchmarks.sampler`: 50 DDIM steps with self-conditioning compared with 50 calls of the same network",
    f"at the same batch size, medians of alternating pairs, one sample, 2 CPU cores, two layers of width {WIDTH};",
    "5 x 16 x 16 latents, super-resolution 5 x 32 x 56; conditioned on the first frame, noised low resolution. Bar:",
    "1.03. Below 1: the chain computes once what depends only on weights and conditions, 50 calls 50 times. Other load",
    "of lower priority ran at the same time.",
    "",
    "| stage | sampler, s | 50 bare calls, s | ratio | of pairs | chains | compiled after the first sample |",
    "| --- | --- | --- | --- | --- | --- | --- |",
    *(
      f"| {WHAT[r['case']]} | {r['sampler_seconds']:.2f} | {r['bare_seconds']:.2f} | {r['ratio']:.3f} | "
      f"{min(r['ratios']):.3f} to {max(r['ratios']):.3f} | {r['compiled_chains']} | "
      f"{r['compilations_after_the_first_sample']} |"
      for r in rows
    ),
  ]
  text = "\n".join(lines) + "\n"
  (output / "sampler.md").write_text(text, encoding="utf-8")
  (output / "sampler.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
  return text


def main() -> None:
  """Measures, prints and writes."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--pairs", type=int, default=PAIRS)
  parser.add_argument("--cases", default=",".join(CASES), help="of " + ", ".join(CASES))
  parser.add_argument("--output", type=Path, default=Path(__file__).parent)
  args = parser.parse_args()
  names = args.cases.split(",")
  unknown = [name for name in names if name not in CASES]
  if unknown:
    parser.error(f"--cases: got {unknown}, expected some of {list(CASES)}")
  file = args.output / "sampler.json"
  kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
  results = {row["case"]: row for row in kept if row.get("case") in CASES}
  text = ""
  for name in names:
    results[name] = measure(name, args.pairs)
    print(json.dumps(results[name]), flush=True)
    text = report(results, args.output)
  print(text)
  verdict = "reached" if all(r["ratio"] <= BAR for r in results.values()) else "NOT REACHED"
  print(f"at most {BAR}: {verdict}")


if __name__ == "__main__":
  main()
