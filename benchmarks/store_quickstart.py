"""Runs the smallest quickstart on the local disk and on stores with faults, and compares what it wrote.

  python -m benchmarks.store_quickstart              # on both; writes benchmarks/store_quickstart.{md,json}
  python -m benchmarks.store_quickstart --store=gs   # on one; figures of the other one are kept

In front of a store (SeaweedFS for S3, fake-gcs-server for GCS) is a proxy, where each of five kinds of faults
hits a share of the requests (`tests.stores.faults`). Only the environment and temporary files are on the local disk.
Compared are the bytes of all files of the caches, the arrays of the newest checkpoint of each training, and the bytes
of all files of the samples, except that JSON files may name the folder of the run, and when and how fast it was.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
STORES = {"gs": "fake-gcs-server", "s3": "SeaweedFS"}


def quickstart(folder: str, environment: dict[str, str]) -> int:
  """Runs the quickstart in a folder; returns its exit code."""
  command = [sys.executable, "-m", "scripts.quickstart", "--smallest", folder]
  return subprocess.run(
    command, cwd=HERE.parent, env=os.environ | environment, check=False
  ).returncode


def files(folder: str) -> dict[str, bytes]:
  """The content of all files below a folder by relative path."""
  from walt_t5x.files.paths import as_path

  root = as_path(folder)
  return {
    str(path)[len(str(root)) + 1 :]: path.read_bytes() for path in root.rglob("*") if path.is_file()
  }


def without_run(content: bytes, folder: str) -> Any:
  """The content of a file; of JSON without what differs between two runs in different folders."""
  try:
    found = json.loads(content)
  except ValueError:
    return content

  def kept(value: Any) -> Any:
    if isinstance(value, dict):
      left = value.keys() - {"content_sha256", "batch_seconds"}
      return {name: kept(value[name]) for name in left}
    if isinstance(value, list):
      return [kept(one) for one in value]
    # A checkpoint is identified by its path and time.
    return (
      re.sub(r", written \d+", "", value.replace(folder, "")) if isinstance(value, str) else value
    )

  return kept(found)


def different(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
  """Names that are in one only, or whose contents differ."""
  return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def arrays(folder: str) -> dict[str, bytes]:
  """The arrays of the newest checkpoints of all trainings."""
  import numpy as np
  from flax import traverse_util

  from walt_t5x.engine import checkpoints

  found = {}
  for run in ("vae", "base", "sr1"):
    state = traverse_util.flatten_dict(checkpoints.load_state_dict(f"{folder}/{run}"), sep="/")
    found |= {f"{run}/{name}": np.asarray(array).tobytes() for name, array in state.items()}
  return found


def compared(folder: str, local: str) -> dict[str, Any]:
  """How many files and arrays there are, and which of them differ."""
  result = {}
  for what, read in (
    ("cache files", lambda where: files(f"{where}/cache")),
    ("arrays", arrays),
    ("sample files", lambda where: files(f"{where}/samples")),
  ):
    here, there = (
      {name: without_run(content, where) for name, content in read(where).items()}
      for where in (local, folder)
    )
    result[what] = {"count": len(here), "different": different(here, there)}
  return result


def on_store(store: str, local: str, rate: float, seed: int) -> dict[str, Any]:
  """Runs it on a store with faults."""
  from scripts.quickstart import FAULTS
  from tests.stores import faults, servers

  with servers.SERVERS[store]() as server:
    injected = faults.Faults(dict.fromkeys(FAULTS, rate), seed=seed)
    with faults.proxied(server, injected) as proxied:
      began = time.monotonic()
      code = quickstart(f"{server.address}/quickstart", dict(proxied.environment))
      seconds = time.monotonic() - began
    result = {
      "exit code": code,
      "seconds": round(seconds),
      "requests": injected.requests(),
      "failed": injected.injected(),
      "by request": injected.report(),
    }
    if code == 0:
      os.environ.update(server.environment)
      result |= compared(f"{server.address}/quickstart", local)
  return result


def table(results: dict[str, Any]) -> str:
  """The results in Markdown."""
  lines = [
    "# The smallest quickstart on stores with faults",
    "",
    f"`python -m benchmarks.store_quickstart --rate={results['rate']}`: each of five kinds of faults hits",
    f"{results['rate']:.0%} of the requests. *Different*: from the same run on the local disk.",
    "",
    "| store | exit code | seconds | requests | failed | cache files, different | arrays, different | "
    "sample files, different |",
    "| --- " * 8 + "|",
  ]
  for store, name in STORES.items():
    if (r := results.get(store)) is not None:
      parts = [
        f"{r[what]['count']}, {len(r[what]['different'])}" if what in r else ""
        for what in ("cache files", "arrays", "sample files")
      ]
      lines.append(
        f"| {name} | {r['exit code']} | {r['seconds']} | {r['requests']:,} | {r['failed']:,} | {' | '.join(parts)} |"
      )
  return "\n".join(lines) + "\n"


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--store", choices=sorted(STORES), help="only this store")
  parser.add_argument("--rate", type=float, default=0.05, help="share of requests, per kind")
  parser.add_argument("--seed", type=int, default=0, help="of the faults")
  parser.add_argument(
    "--local", help="folder of a finished run on the local disk, to skip that one"
  )
  parser.add_argument("--output", default=str(HERE), help="folder of store_quickstart.{md,json}")
  args = parser.parse_args()
  file = Path(args.output) / "store_quickstart.json"
  results = json.loads(file.read_text()) if file.exists() else {}
  results["rate"] = args.rate
  with tempfile.TemporaryDirectory() as temporary:
    local = args.local or f"{temporary}/local"
    if not args.local and (code := quickstart(local, {})):
      sys.exit(f"the run on the local disk exited with {code}")
    for store in [args.store] if args.store else list(STORES):
      results[store] = on_store(store, local, args.rate, args.seed)
      file.write_text(json.dumps(results, indent=1) + "\n")
      (Path(args.output) / "store_quickstart.md").write_text(table(results))
  print(table(results))
  held = all(
    r["exit code"] == 0
    and not any(r[w]["different"] for w in ("cache files", "arrays", "sample files"))
    for store, r in results.items()
    if store in STORES
  )
  print("held" if held else "NOT HELD")
  return 0 if held else 1


if __name__ == "__main__":
  sys.exit(main())
