"""Flips single bits in the files that programs exchange, and reads each file as its program does.

  python -m benchmarks.bit_flips --folder=/tmp/flips

Writes a small cache, a checkpoint, a run's JSON files, weights and samples to the folder. For each flip it draws a
file of the next kind, a byte and a bit, reads what the program would use, and restores the file. A flip is found if
the error, or the line of `beam_jobs.verify`, names the file or its checkpoint; it has no effect if the same values
are read. Then measures the price of the checks, as a ratio in one process. Flips are kept in the folder: a stopped
run resumes. Writes bit_flips.json and .md next to this file; exit code 1 if a flip went unnoticed.
"""

import argparse
import collections
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from benchmarks import results
from walt_t5x.files.damage import FIELD

HERE = Path(__file__).parent
FOUND, SAME, UNNAMED, UNNOTICED = "found", "no effect", "found without a name", "unnoticed"
MEBIBYTES, REPEATS = 64, 7
_SKIPPING = "skipping a complete shard"


def write_files(folder: Path) -> None:
  """Writes one small example of everything."""
  import gin
  from data.provenance import LatentStatistics, Provenance
  from tests import tiny_denoiser
  from tests.beam_jobs.shards import examples
  from tests.engine import runs, toy
  from walt_t5x.denoiser.transformer import WaltDenoiser
  from walt_t5x.engine import run_record, weights_file
  from walt_t5x.files import storage, tensors
  from walt_t5x.generation import run_identity
  from walt_t5x.generation.sample_folder import SampleFolder
  from walt_t5x.models import model_record
  from walt_t5x.models.denoiser_model import DenoiserModel
  from walt_t5x.text.config import PRESETS
  from walt_t5x.text.init_encoder import random_weights
  from walt_t5x.text.safetensors_files import save_weights

  random = np.random.default_rng(0)
  examples.job(folder / "cache")
  examples.finalize(folder / "cache")
  optimizer = runs.optimizers.adamw(0.1, weight_decay=0.01, ema_decay=0.9)
  runs.train(folder / "run", 1, model=toy.ToyModel(optimizer, width=512))
  gin.clear_config()
  moments = LatentStatistics(channels=4, mean=random.normal(size=4).tolist(), std=[1.5] * 4)
  provenance = Provenance(
    fps=8.0, num_frames=9, vae={"fingerprint": "v"}, latents={"latents/3x4x4": moments}
  )
  run_record.record(str(folder / "run"), json.loads(provenance.to_json()))
  model = DenoiserModel(module=WaltDenoiser(**tiny_denoiser.FIELDS), optimizer_def=None)
  described = model_record.described(model, latents="latents/3x4x4")
  storage.write_json(run_record.model_file(folder / "run"), described, seal=True)
  arrays = {f"layer_{i}": random.normal(size=(32, 16)).astype(np.float32) for i in range(4)}
  weights_file.write(folder / "preset" / "checkpoint_1", arrays, dtype="bfloat16")
  tensors.save(folder / "network.safetensors", arrays)
  config = PRESETS["tiny"]
  save_weights(folder / "text.safetensors", config, random_weights(config, 0))
  samples = SampleFolder(folder / "samples")
  samples.path.mkdir()
  run_identity.begin(samples.path, {"prompts": ["a red square"], "seed": 1})
  for index, format in enumerate(("mp4", "png", "gif")):
    samples.write(
      index,
      prompt="a red square",
      videos={"base": random.random((5, 32, 32, 3), np.float32)},
      fps=8.0,
      seed=1,
      steps={"base": 2},
      fingerprints={},
      formats=(format,),
    )


def _cache(folder: Path) -> Any:
  """What training takes from a cache, if `verify` finds nothing."""
  from beam_jobs import verify
  from walt_t5x.files import storage

  if problems := verify.problems(str(folder)):
    raise ValueError("\n".join(problems))
  read = {".json": storage.read_json, ".jsonl": _entries}
  return {f.name: read.get(f.suffix, Path.read_bytes)(f) for f in folder.iterdir()}


def _entries(file: Path) -> list[Any]:
  """A ledger without its messages."""
  return [{**json.loads(line), "error": ""} for line in file.read_text("utf-8").splitlines()]


def _samples(folder: Path) -> Any:
  from walt_t5x.files import storage
  from walt_t5x.generation.sample_folder import SampleFolder

  samples = SampleFolder(folder)
  read = [(s.sidecar, samples.read(s, "base")) for s in samples.samples()]
  return storage.read_json(folder / "run.json"), read


def _text_weights(path: Path) -> Any:
  from walt_t5x.text.safetensors_files import SafetensorsSource

  source = SafetensorsSource(path)
  return {name: source.read(name) for name in sorted(source.names)}


def kinds(folder: Path) -> dict[str, tuple[list[Path], Callable[[], Any]]]:
  """Kind -> its files, and what reads them."""
  from data.provenance import read_provenance
  from walt_t5x.engine import checkpoints, weights_file
  from walt_t5x.files import tensors
  from walt_t5x.models import model_record

  videos, run, samples = folder / "cache" / "toy_videos", folder / "run", folder / "samples"
  checkpoint, preset = run / "checkpoint_1", folder / "preset" / "checkpoint_1"

  def of_cache(pattern: str) -> list[Path]:
    return sorted(file for file in videos.glob(pattern) if file.stat().st_size)

  def array_files() -> list[Path]:
    # The position in the data has checksums of TensorFlow.
    return sorted(f for f in checkpoint.rglob("*") if f.is_file() and "dataset" not in f.parts)

  def preset_weights() -> Any:
    return weights_file.read(preset, weights_file.shapes(preset))

  def read_cache() -> Any:
    return _cache(videos)

  return {
    "shards": (of_cache("*.tfrecord-*-of-0000?"), read_cache),
    "ledgers of lost rows": (of_cache("*.jsonl"), read_cache),
    "sidecars": (of_cache("*.sidecar.json"), read_cache),
    "info and stats": (of_cache("info.*") + of_cache("stats.*"), read_cache),
    "provenance of a cache": ([videos / "provenance.json"], read_cache),
    "provenance of a run": (
      [run / "provenance.json"],
      lambda: json.loads(read_provenance(str(run)).to_json()),
    ),
    "model of a run": ([run / "model.json"], lambda: repr(model_record.read(run))),
    "checkpoints": (array_files(), lambda: checkpoints.load_state_dict(checkpoint)),
    "weights of a preset": (sorted(preset.iterdir()), preset_weights),
    "weights of scoring networks": (
      [folder / "network.safetensors"],
      lambda: tensors.load(folder / "network.safetensors"),
    ),
    "weights of text encoders": (
      [folder / "text.safetensors"],
      lambda: _text_weights(folder / "text.safetensors"),
    ),
    "samples": (
      sorted(f for f in samples.rglob("*") if f.is_file() and f.suffix != ".json"),
      lambda: _samples(samples),
    ),
    "sidecars of samples": (sorted(samples.glob("*.json")), lambda: _samples(samples)),
  }


def _is_the_digest(name: Any) -> bool:
  """Whether a field is that of a digest, whose name a flip may have changed; it is not a value."""
  return len(str(name)) == len(FIELD) and sum(a != b for a, b in zip(str(name), FIELD)) <= 1


def digest(value: Any) -> str:
  """sha256 of nested values and arrays."""
  found = hashlib.sha256()

  def add(value: Any) -> None:
    if isinstance(value, Mapping):
      for name in sorted(value, key=str):
        if _is_the_digest(name):
          continue
        found.update(f"{name}:".encode())
        add(value[name])
    elif isinstance(value, list | tuple):
      for item in value:
        add(item)
    elif isinstance(value, np.ndarray):
      found.update(f"{value.dtype} {value.shape}".encode() + np.ascontiguousarray(value).tobytes())
    else:
      found.update(repr(value).encode())

  add(value)
  return found.hexdigest()


def flip(
  file: Path, byte: int, bit: int, *, intact: str, read: Callable[[], Any]
) -> tuple[str, str]:
  """The outcome of one flip, and the error."""
  content = file.read_bytes()
  changed = bytearray(content)
  changed[byte] ^= 1 << bit
  file.write_bytes(changed)
  # A shard is named also by its sidecar and ledgers; a checkpoint by its folder; a frame by its clip.
  names = {file.name, file.name.split(".sidecar")[0], file.stem.split("_")[0] + "_base"}
  names |= {part for part in file.parts if part.startswith("checkpoint_")}
  if file.parent.name.endswith("_frames"):
    names.add(file.parent.name)
  try:
    return (SAME if digest(read()) == intact else UNNOTICED), ""
  except Exception as error:  # Whatever a reader raises.
    text = f"{type(error).__name__}: {error}"
    return (FOUND if any(name in text for name in names) else UNNAMED), text[:300]
  finally:
    file.write_bytes(content)


def run_flips(folder: Path, count: int, seed: int) -> list[dict[str, Any]]:
  """The flips, those of an earlier run from its file."""
  kept = folder / f"flips_{seed}.jsonl"
  rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
  subjects = kinds(folder)
  intact = {kind: digest(read()) for kind, (_, read) in subjects.items()}
  order = list(subjects)
  with kept.open("a") as stream:
    for number in range(len(rows), count):
      kind = order[number % len(order)]
      random = np.random.default_rng([seed, number])
      files, read = subjects[kind]
      # Every byte of a kind is as likely.
      sizes = np.array([file.stat().st_size for file in files])
      file = files[random.choice(len(files), p=sizes / sizes.sum())]
      byte, bit = int(random.integers(file.stat().st_size)), int(random.integers(8))
      outcome, error = flip(file, byte, bit, intact=intact[kind], read=read)
      row = {"kind": kind, "file": str(file.relative_to(folder)), "byte": byte, "bit": bit}
      rows.append(row | {"outcome": outcome, "error": error})
      stream.write(json.dumps(rows[-1]) + "\n")
      stream.flush()
  return rows[:count]


def price(folder: Path) -> list[dict[str, Any]]:
  """Seconds with and without the check: medians of alternating calls in this process, files in the page cache."""
  import orbax.checkpoint as ocp

  from beam_jobs.shards import shard_files
  from data.provenance import read_provenance
  from tests.beam_jobs.shards import examples
  from walt_t5x.engine import array_digests, checkpoints
  from walt_t5x.files import damage, tensors
  from walt_t5x.generation import sample_files
  from walt_t5x.generation.sample_folder import SampleFolder

  random, size = np.random.default_rng(0), MEBIBYTES * 2**20
  arrays = {f"a{i}": random.normal(size=(size // 16 // 1024, 1024)).astype("f4") for i in range(4)}
  large = folder / "large"
  if not (large / "done").exists():
    tensors.save(large / "w.safetensors", arrays)
    with ocp.CheckpointManager(
      large.absolute(),
      options=ocp.CheckpointManagerOptions(step_prefix="checkpoint"),
      item_handlers={"state": ocp.PyTreeCheckpointHandler(use_ocdbt=True)},
    ) as manager:
      named = {f"target/{name}": array for name, array in arrays.items()}
      digests = {checkpoints.DIGESTS: array_digests.digests(named)}
      state = ocp.args.PyTreeSave({"target": arrays})
      manager.save(1, args=ocp.args.Composite(state=state), custom_metadata=digests)
    shard = examples.shard(0, 1)
    with shard_files.ShardWriter(
      str(large / "cache"), shard, settings_digest="s", rows_digest="r"
    ) as writer:
      record = examples.record(1, "latents/64x32x32")
      for _ in range(size // record.latents["latents/64x32x32"].nbytes * 2):
        writer.write(record)
    (large / "done").touch()
  samples = SampleFolder(folder / "samples")
  sample = next(samples.samples())

  def skip_shard() -> Any:
    return shard_files.complete_sidecar(
      str(large / "cache"), examples.shard(0, 1), settings_digest="s", rows_digest="r"
    )

  nothing = mock.MagicMock(return_value=[])
  known = sample.sidecar["stages"]["base"]["sha256"]
  rows = (
    ("reading a checkpoint", lambda: checkpoints.load_params(large), checkpoints, "_check_digests", nothing),
    ("reading safetensors", lambda: tensors.load(large / "w.safetensors"), tensors, "check", nothing),
    (_SKIPPING, skip_shard, shard_files, "damaged_files", nothing),
    ("reading a sample", lambda: samples.read(sample, "base"), sample_files, "clip_sha256",
     mock.MagicMock(return_value=known)),
    ("reading provenance.json", lambda: read_provenance(str(folder / "run")), damage, "sealed",
     lambda tree: tree),
  )  # fmt: skip
  found = []
  for what, call, owner, name, without in rows:
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for repeat in range(2 * REPEATS + 2):
      checked = repeat % 2 == 0
      began = time.perf_counter()
      if checked:
        call()
      else:
        with mock.patch.object(owner, name, without):
          call()
      if repeat > 1:
        seconds[checked].append(time.perf_counter() - began)
    on, off = (statistics.median(seconds[checked]) for checked in (True, False))
    found.append({"what": what, "seconds": on, "without": off, "ratio": on / off})
  began = time.perf_counter()
  array_digests.digests({f"target/{k}": v for k, v in arrays.items()})
  passed = time.perf_counter() - began
  found.append({"what": "digests of a checkpoint on a CPU, GB/s", "rate": size / passed / 1e9})
  return found


def page(rows: list[dict[str, Any]], prices: list[dict[str, Any]], seed: int) -> str:
  """The results as a page."""
  counts = collections.defaultdict[str, collections.Counter](collections.Counter)
  for row in rows:
    counts[row["kind"]][row["outcome"]] += 1
    counts["all"][row["outcome"]] += 1
  (skipped,) = (p for p in prices if p["what"] == _SKIPPING)
  columns = (FOUND, SAME, UNNAMED, UNNOTICED)
  lines = [
    "# Flipped bits",
    "",
    f"`python -m benchmarks.bit_flips --seed={seed}`: {len(rows)} flips of one bit, each in a file of a small",
    "cache, run or sample folder, which is then read as its program reads it. *Found*: an error that names the",
    "file. *No effect*: the same values are read.",
    "",
    f"| flips in | {' | '.join(columns)} |",
    f"| --- |{' --- |' * len(columns)}",
    *(f"| {kind} | {' | '.join(str(n[c]) for c in columns)} |" for kind, n in counts.items()
      if kind != "all"),
    f"| all | {' | '.join(str(counts['all'][c]) for c in columns)} |",
    "",
    f"The price of the checks, {MEBIBYTES} MiB per checkpoint, weights file and shard, medians of {REPEATS}",
    "alternating calls in one process, files in the page cache:",
    "",
    "| reading | seconds | without the check | ratio |",
    "| --- | --- | --- | --- |",
    *(f"| {p['what']} | {p['seconds']:.4f} | {p['without']:.4f} | {p['ratio']:.2f} |"
      for p in prices if "ratio" in p),
    "",
    f"A complete shard is skipped at {MEBIBYTES * 2**20 / skipped['seconds'] / 1e9:.1f} GB/s per process; without",
    "the check, only its size is compared. The digests of a checkpoint's arrays take a CPU core",
    f"1 second per {prices[-1]['rate']:.1f} GB; on an accelerator, a compiled program reads the arrays where they are.",
  ]  # fmt: skip
  return "\n".join(lines) + "\n"


def main() -> int:
  """Flips, measures, and writes the results; 1 if a flip was unnoticed or unnamed."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--folder", type=Path, required=True, help="folder for the files and flips")
  parser.add_argument("--flips", type=int, default=390)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--output", type=Path, default=HERE, help="folder of bit_flips.{md,json}")
  args = parser.parse_args()
  args.folder.mkdir(parents=True, exist_ok=True)
  if not (args.folder / "written").exists():
    write_files(args.folder)
    (args.folder / "written").touch()
  rows = run_flips(args.folder, args.flips, args.seed)
  prices = price(args.folder)
  # Errors name paths of this machine.
  flips = [{name: value for name, value in row.items() if name != "error"} for row in rows]
  figures = {"seed": args.seed, "flips": flips, "price": prices}
  results.write(args.output, "bit_flips", page(rows, prices, args.seed), figures)
  return int(any(row["outcome"] in (UNNAMED, UNNOTICED) for row in rows))


if __name__ == "__main__":
  sys.exit(main())
