"""Caching between sampling steps: calls that reuse what the blocks added, in the base stage of the quickstart.

  python -m benchmarks.sampling_cache FOLDER --quickstart=runs/quickstart     # about 20 minutes on two cores

Every sampler gets the same 64 prompts and the same noise. Accuracies are those of the captions' elements, the Frechet
distance compares with the held-out clips (protocol `shapes_fvd`), and PSNR with the clips of the same solver and steps
without a cache. The same solver with as few calls as the cache computes is what caching has to beat.

FOLDER gets the samples; a stopped command resumes. Writes benchmarks/sampling_cache.{md,json}.
"""

import argparse
import functools
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import results
from benchmarks.few_calls import ELEMENTS, Sampler, measures, stages_of, write_prompts
from data import schema
from scripts.stages import run_all
from walt_t5x.denoiser.transformer import Conditioning, time_embeddings
from walt_t5x.diffusion.samplers.caching import EmbeddingChange, EveryNth
from walt_t5x.diffusion.samplers.solvers import UniPC
from walt_t5x.engine.checkpoints import find_checkpoint, has_average, load_params
from walt_t5x.generation.sample_folder import SampleFolder
from walt_t5x.models import model_record
from walt_t5x.models.denoiser_model import DenoiserModel

HERE = Path(__file__).resolve().parent
PROMPTS, BATCH, ROUNDS = 64, 16, 5
BASE = {"base": "32x32"}
FLAGS = ("--stages=base", f"--batch_size={BATCH}")
SAMPLERS = {
  "50 calls": Sampler(num_steps=50),
  "50, every 2nd": Sampler(num_steps=50, cache=EveryNth(2)),
  "50, every 3rd": Sampler(num_steps=50, cache=EveryNth(3)),
  "50, every 5th": Sampler(num_steps=50, cache=EveryNth(5)),
  "50, every 5th from t = 0.8 to 0.1": Sampler(num_steps=50, cache=EveryNth(5, low=0.1, high=0.8)),
  "50, embedding change 0.3": Sampler(num_steps=50, cache=EmbeddingChange(0.3)),
  "50, embedding change 1": Sampler(num_steps=50, cache=EmbeddingChange(1.0)),
  "25 calls": Sampler(num_steps=25),
  "10 calls": Sampler(num_steps=10),
  "10 calls, UniPC": Sampler(solver=UniPC()),
  "10 calls, UniPC, every 2nd": Sampler(solver=UniPC(), cache=EveryNth(2)),
}
REFERENCE = next(iter(SAMPLERS))


def _costs(run: Path) -> dict[str, dict[str, Any]]:
  """By sampler: calls that compute the blocks, and seconds per clip, of the fastest of several runs in turn."""
  record = model_record.read(run)
  assert isinstance(record.model, DenoiserModel) and record.latents
  checkpoint = find_checkpoint(str(run))
  params = jax.tree.map(jnp.asarray, load_params(checkpoint, ema=has_average(checkpoint)))
  model, schedule, rng = record.model, record.model.schedule, np.random.default_rng(0)
  shape = (BATCH, *schema.latents_shape(record.latents), model.module.latent_channels)
  noise = jnp.asarray(rng.normal(size=shape), jnp.float32)
  length = record.text_length
  text = jnp.asarray(rng.normal(size=(BATCH, 1, length, model.module.text_dim)), jnp.float32)
  conditioning = Conditioning(text=text, text_mask=jnp.ones((BATCH, 1, length), bool))
  costs, programs = {}, {}
  for name, sampler in SAMPLERS.items():
    model.sampler = sampler.config
    embeddings = time_embeddings(
      model.module, params, jnp.asarray(model.sampler.call_steps(schedule))
    )
    reused = model.sampler.reused(schedule, branches=2, embeddings=embeddings)
    computed = sampler.num_steps - (0 if reused is None else int(np.asarray(reused).sum()))
    costs[name] = {"computed": computed, "seconds": math.inf}
    sample = functools.partial(model.sample, null_text=jnp.zeros_like(text[:, 0, :1]))
    programs[name] = jax.jit(sample).lower(params, noise, conditioning).compile()
  for _ in range(ROUNDS):
    for name, program in programs.items():
      started = time.perf_counter()
      program(params, noise, conditioning).block_until_ready()
      seconds = (time.perf_counter() - started) / BATCH
      costs[name]["seconds"] = min(costs[name]["seconds"], seconds)
  return costs


def _psnr(samples: Path, reference: Path) -> float | None:
  """PSNR of the mean squared error over all clips, dB; None for the same clips."""
  folders = [SampleFolder(path) for path in (samples, reference)]
  pairs = zip(*(folder.samples() for folder in folders), strict=True)
  error = np.mean(
    [
      np.mean((folders[0].read(ours, "base") - folders[1].read(theirs, "base")) ** 2)
      for ours, theirs in pairs
    ]
  )
  return -10 * math.log10(error) if error else None


def page_of(rows: Mapping[str, Any]) -> str:
  """The table."""
  reference = rows[REFERENCE]
  lines = [
    "# Caching between sampling steps",
    "",
    "Written by `python -m benchmarks.sampling_cache FOLDER`, which says what is measured: the base stage with two",
    f"branches of guidance, {PROMPTS} prompts, DDIM where no solver is named. Computed: calls that compute the blocks.",
    f"Seconds: of sampling per clip in batches of {BATCH}, the fastest of {ROUNDS} in turn. PSNR: with the clips of",
    f"{REFERENCE}.",
    "",
    "| sampler | computed | seconds per clip | color, direction, shape | Frechet distance | PSNR |",
    "| --- | --- | --- | --- | --- | --- |",
  ]
  for name, row in rows.items():
    accuracies = " ".join(f"{100 * row[one]:.1f}" for one in ELEMENTS)
    share = reference["seconds"] / row["seconds"]
    cells = [name, row["computed"], f"{row['seconds']:.3f} ({share:.1f} times as fast)", accuracies]
    cells.append(f"{row['frechet']:.2f} ({row['frechet'] / reference['frechet']:.2f})")
    cells.append("-" if row["psnr"] is None else f"{row['psnr']:.1f} dB")
    lines.append("| " + " | ".join(map(str, cells)) + " |")
  return "\n".join(lines) + "\n"


def main() -> None:
  """Samples, scores, writes."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("folder", type=Path)
  parser.add_argument("--quickstart", type=Path, required=True, help="folder of a finished one")
  args = parser.parse_args()
  folder, quickstart = args.folder.absolute(), args.quickstart.absolute()
  write_prompts(folder, quickstart, PROMPTS)
  todo = [
    stage
    for number, sampler in enumerate(SAMPLERS.values())
    for stage in stages_of(number, sampler, folder, quickstart, sizes=BASE, flags=FLAGS)
  ]
  _, printed = run_all(todo, folder / "finished.json", lambda _: 20)
  rows, costs = {}, _costs(quickstart / "base")
  for number, name in enumerate(SAMPLERS):
    samples = folder / f"{number:02d}" / "samples"
    rows[name] = {
      **costs[name],
      "psnr": _psnr(samples, folder / "00" / "samples"),
      **measures(number, printed, BASE)["base"],
    }
  figures = {"prompts": PROMPTS, "batch_size": BATCH, "rows": rows}
  results.write(HERE, "sampling_cache", page_of(rows), figures)


if __name__ == "__main__":
  main()
