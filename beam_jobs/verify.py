"""Checks a cached task folder: every shard of the plan there, every byte, record and ledger line as its sidecar says.

python -m beam_jobs.verify OUTPUT/shapes_videos OUTPUT/shapes_images
"""

import argparse
import hashlib
import io
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any


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
      found += _ledger_problems(folder, name, sidecar)
    if examples != stated:
      found.append(f"{folder}: stats.{split}.json states {stated} examples, the shards {examples}")
  if not any(name.startswith("info.") for name in names):
    found.append(f"{folder}: no info.<split>.json; expected the folder of a cached task")
  return found


def _ledger_problems(folder: str, name: str, sidecar: Mapping[str, Any]) -> list[str]:
  """Rows of a shard that are not where its sidecar says."""
  from beam_jobs import shards, storage

  found = []
  for suffix, kind in ((shards.DEAD, "dead"), (shards.REJECTED, "rejected")):
    path = storage.join(folder, name + suffix)
    lines = storage.read(path).splitlines() if storage.exists(path) else []
    if len(lines) != sidecar[kind]:
      found.append(f"{path}: got {len(lines)} lines, the sidecar has {sidecar[kind]} rows {kind}")
  placed = sum(sidecar[kind] for kind in ("written", "rejected", "dead", "quarantined"))
  if placed != sidecar["rows"]:
    found.append(f"{folder}/{name}: {sidecar['rows']} rows, of which {placed} are accounted for")
  if sidecar["quarantined"]:
    path = storage.join(folder, shards.QUARANTINE + name)
    content = storage.read(path) if storage.exists(path) else b""
    if hashlib.sha256(content).hexdigest() != sidecar["quarantine"]["sha256"]:
      found.append(f"{path}: sha256 differs from the sidecar's, or the file is missing")
  return found


def plan_problems(folder: str) -> list[str]:
  """Shards and rows of the run's plan that a folder lacks; the plan stands beside the folder."""
  from beam_jobs import ledger, shards, storage
  from beam_jobs.settings import TASK_SUFFIXES

  folder = folder.rstrip("/")
  output, task = storage.parent(folder), folder.rpartition("/")[2]
  base = next((task.removesuffix(s) for s in TASK_SUFFIXES if task.endswith(s)), None)
  if base is None or not storage.exists(storage.join(output, f"{base}.plan.json")):
    return [f"{folder}: no <task>.plan.json beside it, so rows of the manifest cannot be counted"]
  found = []
  for shard, rows in ledger.read_plan(output, base).items():
    sidecar = shards.read_sidecar(output, shard) if shard.task == task else None
    if sidecar and sidecar["rows"] != rows:
      found.append(f"{shard}: the plan has {rows} rows, the sidecar {sidecar['rows']}")
    elif shard.task == task and sidecar is None:
      found.append(f"{shard}: {rows} rows of the plan, and no sidecar")
  return found


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the program; 1 if anything is wrong."""
  parser = argparse.ArgumentParser(
    prog="python -m beam_jobs.verify",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("folders", nargs="+", help="cached task folders")
  folders = parser.parse_args(argv).folders
  found = [line for folder in folders for line in (*problems(folder), *plan_problems(folder))]
  print("\n".join(found) if found else "every shard and record is as its sidecar says")
  return 1 if found else 0


if __name__ == "__main__":
  sys.exit(main())
