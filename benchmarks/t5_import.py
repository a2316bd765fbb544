"""Memory of the import of a T5 v1.1 XL encoder.

  python -m benchmarks.t5_import                # prints and writes benchmarks/t5_import.{md,json}
  python -m benchmarks.t5_import --size=small   # quicker

Writes random float32 weights of the real sizes as Hugging Face saves them (safetensors in shards of 2 GB with an index,
kernels transposed, config.json, spiece.model), 4.9 GB of them for XL, and runs `python -m walt_t5x.text.import_encoder`
on them in a separate process. Its peak is the kernel's (`ru_maxrss`), which includes pages of the mapped source; the
anonymous part, which cannot be dropped, is sampled.

Held: XL has 1,223,527,424 parameters; the peak is below 8 GiB; the printed fingerprint equals that of the same random
weights, generated again and hashed in the Flax layout.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import results

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SHARD_BYTES = 2 * 10**9
XL_PARAMETERS = 1_223_527_424
LIMIT_GIB = 8.0


class Drawn(Mapping[str, np.ndarray]):
  """Random weights in Flax layout by flat name; the same name always gives the same values."""

  def __init__(self, shapes: Mapping[str, tuple[int, ...]]):
    self._shapes = shapes

  def __getitem__(self, name: str) -> np.ndarray:
    draw = np.random.default_rng(zlib.crc32(name.encode()))
    return draw.standard_normal(self._shapes[name], np.float32)

  def __iter__(self) -> Iterator[str]:
    return iter(self._shapes)

  def __len__(self) -> int:
    return len(self._shapes)


def write_source(folder: Path, drawn: Drawn, config: Any) -> int:
  """Writes the shards and their index; returns the number of shards."""
  from walt_t5x.text.model import parameter_shapes
  from walt_t5x.text.safetensors_files import save_weights, torch_name

  shards: list[list[str]] = [[]]
  room = SHARD_BYTES
  for name, shape in parameter_shapes(config).items():
    size = 4 * int(np.prod(shape))
    if size > room and shards[-1]:
      shards.append([])
      room = SHARD_BYTES
    shards[-1].append(name)
    room -= size
  weight_map = {}
  for number, names in enumerate(shards, start=1):
    file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
    save_weights(folder / file, config, drawn, names)
    weight_map |= {torch_name(name)[0]: file for name in names}
  index = {"metadata": {}, "weight_map": weight_map}
  (folder / "model.safetensors.index.json").write_text(json.dumps(index))
  return len(shards)


def anonymous_mebibytes(pid: int) -> float:
  """RssAnon of a process; 0 after it has exited."""
  try:
    status = Path(f"/proc/{pid}/status").read_text()
  except FileNotFoundError:
    return 0.0
  lines = [line for line in status.splitlines() if line.startswith("RssAnon")]
  return int(lines[0].split()[1]) / 1024 if lines else 0.0


def measure(size: str, work: Path) -> dict[str, Any]:
  from walt_t5x.text.config import PRESETS
  from walt_t5x.text.encoder import encoder_fingerprint
  from walt_t5x.text.model import parameter_shapes
  from walt_t5x.text.vocabulary import train_vocabulary

  config = PRESETS[size]
  shapes = parameter_shapes(config)
  drawn = Drawn(shapes)
  source, output = work / "source", work / "encoder"
  source.mkdir()
  vocabulary = train_vocabulary([f"a red circle number {i} moves left" for i in range(20)])
  (source / "spiece.model").write_bytes(vocabulary.model)
  (source / "config.json").write_text(config.to_json())
  shards = write_source(source, drawn, config)
  command = ["-m", "walt_t5x.text.import_encoder", f"--source={source}", f"--output={output}"]
  started, anonymous = time.monotonic(), 0.0
  with subprocess.Popen(
    [sys.executable, *command], cwd=ROOT, stdout=subprocess.PIPE, text=True
  ) as process:
    while process.poll() is None:
      anonymous = max(anonymous, anonymous_mebibytes(process.pid))
      time.sleep(0.05)
    printed = process.stdout.read()
  if process.returncode:
    raise RuntimeError(f"import_encoder exited with {process.returncode}")
  seconds = time.monotonic() - started
  peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
  words = dict(line.split(None, 1) for line in printed.splitlines() if " " in line)
  parameters = int(words["parameters"].replace(",", ""))
  same = words["fingerprint"] == encoder_fingerprint(config, drawn, vocabulary)
  return {
    "size": size,
    "parameters": parameters,
    "source_gigabytes": sum(p.stat().st_size for p in source.iterdir()) / 1e9,
    "source_shards": shards,
    "seconds": round(seconds, 1),
    "peak_gibibytes": round(peak, 2),
    "anonymous_gibibytes": round(anonymous / 1024, 2),
    "fingerprint_is_that_of_the_weights": same,
    "held": peak < LIMIT_GIB and same and (size != "xl" or parameters == XL_PARAMETERS),
  }


def table(found: Mapping[str, Any]) -> str:
  lines = ["| | |", "| --- | --- |"]
  rows = {
    "parameters": f"{found['parameters']:,}",
    "source": f"{found['source_gigabytes']:.2f} GB in {found['source_shards']} shards",
    "seconds": found["seconds"],
    "peak resident memory": f"{found['peak_gibibytes']} GiB (bar {LIMIT_GIB:g})",
    "anonymous part": f"{found['anonymous_gibibytes']} GiB",
    "fingerprint": "that of the weights"
    if found["fingerprint_is_that_of_the_weights"]
    else "WRONG",
  }
  lines += [f"| {name} | {value} |" for name, value in rows.items()]
  return "\n".join([*lines, "", "held" if found["held"] else "NOT HELD"]) + "\n"


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--size", default="xl", choices=("small", "base", "large", "xl", "xxl"))
  parser.add_argument(
    "--work", help="folder with room for twice the weights; a temporary one by default"
  )
  parser.add_argument("--output", default=str(HERE), help="folder of t5_import.{md,json}")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory(dir=args.work) as work:
    found = measure(args.size, Path(work))
  page = f"# Import of T5 v1.1 {args.size.upper()}\n\n" + table(found)
  results.write(args.output, "t5_import", page, found)
  return 0 if found["held"] else 1


if __name__ == "__main__":
  raise SystemExit(main())
