"""Checks a cached task folder against its sidecars: every shard there, every byte and every record as noted.

python -m beam_jobs.verify OUTPUT/shapes_videos OUTPUT/shapes_images
"""

import argparse
import hashlib
import io
import json
import sys
from collections.abc import Sequence


def problems(folder: str) -> list[str]:
  """What is wrong with a folder; empty for a whole one."""
  from beam_jobs import storage
  from data import schema, tfrecord

  found = []
  names = set(storage.names(folder))
  if "COMPLETED" not in names:
    found.append(f"{folder}: no COMPLETED; the job has not finished")
  for info_name in sorted(name for name in names if name.startswith("info.")):
    split = info_name.split(".")[1]
    count = json.loads(storage.read(storage.join(folder, info_name)))["num_shards"]
    stated = json.loads(storage.read(storage.join(folder, f"stats.{split}.json")))["examples"]
    examples = 0
    for index in range(count):
      name = f"{split}.tfrecord-{index:05d}-of-{count:05d}"
      if not {name, f"{name}.sidecar.json"} <= names:
        found.append(f"{folder}/{name}: the shard or its sidecar is missing")
        continue
      sidecar = json.loads(storage.read(storage.join(folder, f"{name}.sidecar.json")))
      content = storage.read(storage.join(folder, name))
      examples += sidecar["written"]
      if hashlib.sha256(content).hexdigest() != sidecar["sha256"]:
        found.append(f"{folder}/{name}: sha256 differs from the sidecar's")
        continue
      records = sum(1 for _ in map(schema.decode, tfrecord.read_records(io.BytesIO(content))))
      if records != sidecar["written"]:
        found.append(f"{folder}/{name}: got {records} records, expected {sidecar['written']}")
    if examples != stated:
      found.append(f"{folder}: stats.{split}.json states {stated} examples, the shards {examples}")
  if not any(name.startswith("info.") for name in names):
    found.append(f"{folder}: no info.<split>.json; expected the folder of a cached task")
  return found


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the program; 1 if anything is wrong."""
  parser = argparse.ArgumentParser(
    prog="python -m beam_jobs.verify",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("folders", nargs="+", help="cached task folders")
  found = [problem for folder in parser.parse_args(argv).folders for problem in problems(folder)]
  print("\n".join(found) if found else "every shard and record is as its sidecar says")
  return 1 if found else 0


if __name__ == "__main__":
  sys.exit(main())
