"""Short programs whose inputs and outputs are in object stores, for benchmarks that disturb them.

  python -m benchmarks.store_programs MODULE ARGUMENT...    # a program that soon repeats a request without an answer
  python -m benchmarks.store_programs inputs FOLDER         # writes the inputs of all programs
  python -m benchmarks.store_programs contents OUTPUT       # prints the arrays of a training, as JSON

The first form sets the limits that `benchmarks.store_faults` uses, so that a fault costs seconds, and prints the stacks
of all threads at SIGUSR1.
"""

import argparse
import contextlib
import dataclasses
import faulthandler
import hashlib
import json
import multiprocessing
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks import engine_kills, generation_kills, preprocess_corpus
from tests import programs
from tests.stores import faults, operations, servers
from walt_t5x.files import damage, retries, storage
from walt_t5x.files.paths import as_path

HERE = Path(__file__).parent
# Shares of the requests that fail; a stall and a late answer cost seconds.
STORM = dict.fromkeys(faults.KINDS, 0.05) | {"stall": 0.005, "late": 0.005}
# Seconds: of a stall, after which a program repeats a request without an answer, and before it repeats a failed one.
STALL, SILENCE, PAUSE = 6.0, 2.0, 0.1
STEPS, SAVE_PERIOD = 10, 5
# For pages: what meets programs in stores.
STORES = (
  "SeaweedFS (S3) and fake-gcs-server (GCS) on the same machine, of whose requests 5% fail in each of 7 ways (of a "
  "training 6: TensorStore cannot tell half an answer with a header for that length) and 0.5% each stall or are "
  "answered late"
)
LOCAL = "local"
PIXELS, LATENTS, TRAIN, GENERATE = "preprocess pixels", "preprocess latents", "train", "generate"
LINEAR, EVALUATE, REPORT = "train, linear", "evaluate", "report"
TRAININGS = TRAIN, LINEAR
# Samples of `generate`, in batches of two.
SAMPLES = 8
_THIS = "benchmarks.store_programs"
_PRELOADED = ["tests.preloaded", "apache_beam", "gcsfs", "s3fs", "walt_t5x.engine"]


@dataclasses.dataclass(frozen=True)
class Place:
  """A local folder, or the bucket of a running store.

  Attributes:
    folder: path or address; has `inputs`.
    work: local folder.
    server: of an address.
  """

  folder: str
  work: Path
  server: servers.Server | None = None

  @contextlib.contextmanager
  def behind(self, found: faults.Faults) -> Iterator[dict[str, str]]:
    """Inside the block, programs with these variables meet the faults."""
    if self.server is None:
      yield {}
      return
    with faults.proxied(self.server, found) as proxy:
      yield dict(proxy.environment)


def storm(program: str, seed: int) -> faults.Faults:
  """The faults that a program meets.

  TensorStore, which writes checkpoints, takes half of an answer with a header for that length for the answer.
  """
  rates = STORM | ({"shortened": 0.0} if program in TRAININGS else {})
  return faults.Faults(rates, seed=seed, stall=STALL)


@contextlib.contextmanager
def places(kept: Path | None) -> Iterator[dict[str, Place]]:
  """A new local folder and both stores, each with the inputs of all programs.

  Sets the variables with which this process, and the programs that it starts, find the stores without faults.

  Args:
    kept: folder in which inputs and compiled programs are kept; a temporary one by default.
  """
  with contextlib.ExitStack() as opened:
    kept = (kept or Path(opened.enter_context(tempfile.TemporaryDirectory()))).absolute()
    kept.mkdir(parents=True, exist_ok=True)
    os.environ |= engine_kills.environment(kept)
    multiprocessing.get_context("forkserver").set_forkserver_preload(_PRELOADED)
    work = Path(opened.enter_context(tempfile.TemporaryDirectory(dir=kept)))
    found = {LOCAL: Place(str(work), work)}
    for name, started in servers.SERVERS.items():
      server = opened.enter_context(started())
      os.environ |= server.environment
      found[name] = Place(server.address, work, server)
    inputs = kept / "inputs"
    if not inputs.exists():
      must_end(programs.run(_THIS, "inputs", work / "new", timeout=600))
      (work / "new").rename(inputs)
    (work / "inputs").symlink_to(inputs)
    for name in servers.SERVERS:
      copy(inputs, f"{found[name].folder}/inputs")
    yield found


def write_inputs(folder: Path) -> None:
  """Writes media with a manifest, encoders, a cache of latents, and the weights of a cascade."""
  from benchmarks import engine_rows
  from data.samples import sample_corpus

  corpus = folder / "corpus"
  small = ["--num_clips=10", "--num_stills=6", "--num_prompts=2", "--size=32", "--no_real"]
  sample_corpus.main([f"--output={corpus}", *small])
  preprocess_corpus.make_encoders(folder, corpus / "manifest.jsonl")
  engine_rows.write_cache(folder / "cache", videos=24, images=24, shards=4)
  generation_kills.write_weights(folder / "cascade")


def copy(folder: Path, target: str) -> None:
  """Copies a local folder."""

  def put(file: Path) -> None:
    storage.write(f"{target}/{file.relative_to(folder)}", file.read_bytes())

  list(storage.for_each(put, [file for file in folder.rglob("*") if file.is_file()]))


def command(program: str, place: Place, output: str) -> list[str]:
  """Module and arguments of a program that reads the inputs of a place, and writes to `output`."""
  inputs, local = as_path(place.folder) / "inputs", place.work / "inputs"
  if program in (PIXELS, LATENTS):
    flags = ["--decode_isolation=thread", "--num_shards=4"]
    if program == PIXELS:
      flags += ["--content=pixels", "--num_shards=2", "--qa_samples=0"]
    else:
      flags += [f"--vae_checkpoint={inputs / 'vae'}", f"--text_encoder={inputs / 'text'}"]
      flags += [f"--vae_gin_file={local / 'vae.gin'}"]
    return preprocess_corpus.command(inputs / "corpus", output, flags)[2:]
  if program == TRAIN:
    found = engine_kills.command(output, inputs / "cache", STEPS)[2:]
    rows = rows_folder(place, output)
    rows.mkdir(parents=True, exist_ok=True)
    found += [f"--gin.SAVE_PERIOD={SAVE_PERIOD}", f"--gin.KEEP_CHECKPOINTS={STEPS}"]
    return [*found, f'--gin.engine_rows.RecordingTrainer.rows_folder="{rows}"']
  if program == LINEAR:
    found = ["walt_t5x.train", "--gin_file=tests/engine/toy.gin", f'--gin.MODEL_DIR="{output}"']
    return [*found, f"--gin.TRAIN_STEPS={STEPS}", "--verbosity=-1"]
  if program == GENERATE:
    return generation_kills.command(inputs / "cascade", output, samples=SAMPLES // 2)
  if program == EVALUATE:
    flags = ["--protocol=motion", f"--samples={inputs / 'samples'}", "--frames=9", "--count=4"]
    return ["walt_t5x.evaluate", *flags, f"--output={output}/scores.json"]
  assert program == REPORT
  flags = [f"--run={inputs / 'run'}", f"--samples={inputs / 'samples'}"]
  return ["walt_t5x.report", *flags, f"--output={output}/report.html"]


def rows_folder(place: Place, output: str) -> Path:
  """Local folder in which a training logs its examples."""
  return place.work / "rows" / output.replace("/", "_")


def add_flags(parser: argparse.ArgumentParser, name: str) -> None:
  """The flags of all benchmarks of these programs."""
  parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
  parser.add_argument("--output", type=Path, default=HERE, help=f"folder of {name}.{{md,json}}")
  parser.add_argument(
    "--work",
    type=Path,
    help="folder in which inputs and compiled programs are kept for the next call",
  )


def start(
  program: str, place: Place, output: str, environment: dict[str, str], *more: str
) -> programs.Program:
  """Starts a program, with more arguments."""
  return programs.start(_THIS, *command(program, place, output), *more, environment=environment)


def wait(program: programs.Program, limit: float, done: Callable[[], bool]) -> None:
  """Waits until a program ends or `done()`.

  Raises:
    TimeoutError: it did neither within so many seconds, and was killed; the stacks of its threads are printed.
  """
  end = time.monotonic() + limit
  while program.running() and not done():
    if time.monotonic() > end:
      os.kill(program.process.pid or 0, signal.SIGUSR1)
      time.sleep(2)
      print(Path(program.files[1]).read_text(errors="replace")[-30_000:], flush=True)
      program.wait(0)
    time.sleep(0.002)


def run(program: str, place: Place, output: str) -> dict[str, str]:
  """What a program writes without faults."""
  must_end(start(program, place, output, {}).wait(600))
  return contents(program, output)


def must_end(ended: subprocess.CompletedProcess) -> str:
  """Output of a program; RuntimeError if it failed."""
  if ended.returncode:
    raise RuntimeError(f"exit code {ended.returncode}:\n{ended.stderr[-4000:]}")
  return ended.stdout


def contents(program: str, output: str) -> dict[str, str]:
  """Name -> digest of the files of an output, of a training of the arrays of its complete checkpoints."""
  if (
    program in TRAININGS
  ):  # Their libraries keep the settings with which a process first used them.
    return json.loads(must_end(programs.run(_THIS, "contents", output)).splitlines()[-1])
  found = operations.contents(output)
  return {n: hashlib.sha256(_plain(n, c, output)).hexdigest() for n, c in found.items()}


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
  """Names that only one of two outputs has, or that differ."""
  return sorted(n for n in found.keys() | expected if found.get(n) != expected.get(n))


def _plain(name: str, content: bytes, output: str) -> bytes:
  """The content of a file without the path of the output, of a sample's sidecar without times and seal too."""
  if re.fullmatch(r"\d{5}\.json", name):
    tree = damage.parsed(content, name=name)
    content = json.dumps({**tree, "batch_seconds": None}).encode()
  return content.replace(output.encode(), b"OUTPUT")


def _arrays(output: str) -> dict[str, str]:
  """Digests of the arrays of complete checkpoints; in place of them, the error of one that cannot be read."""
  from walt_t5x.engine import checkpoints

  found = {}
  for step in checkpoints.complete_steps(output):
    name = f"checkpoint_{step}"
    try:
      arrays = engine_kills.state_of(f"{output}/{name}")
    except Exception as error:  # Whatever a reader raises: it is not complete.
      found[name] = f"{type(error).__name__}: {error}"
      continue
    for part, array in arrays.items():
      found[f"{name}/{part}"] = hashlib.sha256(array.tobytes()).hexdigest()
  return found


def main() -> None:
  """Runs one of the forms."""
  kind, *rest = sys.argv[1:]
  if kind == "inputs":
    write_inputs(Path(rest[0]))
  elif kind == "contents":
    print(json.dumps(_arrays(*rest)))
  else:
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    retries.SILENCE = retries.CONNECT = SILENCE
    retries.FIRST_PAUSE = PAUSE
    sys.argv = [kind, *rest]
    runpy.run_module(kind, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
  main()
