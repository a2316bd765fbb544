"""Checks a cached task folder: every shard of the plan exists, and its bytes, records and ledgers match its sidecar.

python -m beam_jobs.verify OUTPUT/shapes_videos OUTPUT/shapes_images
"""

import concurrent.futures
import contextlib
import functools
import hashlib
import io
import itertools
import multiprocessing
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from beam_jobs.runners import running
from beam_jobs.shards import ledger, shard_files
from beam_jobs.shards.settings import TASK_SUFFIXES
from data import schema, tfrecord
from data.provenance import read_provenance
from walt_t5x.config import programs
from walt_t5x.config.waiting import waiting
from walt_t5x.files import storage
from walt_t5x.files.damage import Damaged, is_sealed

# Folders with fewer bytes are read faster in this process than in new ones.
_WORTH_PROCESSES = 2**26


def problems(folder: str, *, workers: int = 1) -> list[str]:
  """Problems of the folder of a cached task; empty if it is complete and valid.

  Args:
    folder: path without a final slash.
    workers: number of processes that read shards; 1 reads them in this process.
  """
  output, task = storage.parent(folder), folder.rpartition("/")[2]
  found: list[str] = []
  names = set(storage.names(folder))
  if "COMPLETED" not in names:
    found.append(f"{folder}: no COMPLETED; the job has not finished")
  splits = sorted(name.split(".")[1] for name in names if name.startswith("info."))
  if not splits:
    found.append(f"{folder}: no info.<split>.json; expected the folder of a cached task")
  shards = []
  if "COMPLETED" in names:
    try:
      read_provenance(folder)
    except (ValueError, FileNotFoundError) as error:
      found.append(str(error))
  for split in splits:
    try:
      info, stats = (
        storage.read_json(storage.join(folder, f"{kind}.{split}.json"))
        for kind in ("info", "stats")
      )
    except (Damaged, FileNotFoundError) as error:
      found.append(str(error))
      continue
    # Folders of before there were several clips do not name their number.
    count, clips = info["num_shards"], info.get("clips_per_video", 1)
    wanted = {
      shard_files.ShardName(task=task, split=split, index=i, count=count, clip=clip)
      for i, clip in itertools.product(range(count), range(clips))
    }
    # A replay's shard of which only the sidecar or only the records exist counts too, and so do clips of no run.
    named = {
      shard_files.parse_shard(f"{task}/{name.removesuffix(shard_files.SIDECAR)}") for name in names
    }
    wanted |= {
      shard
      for shard in named
      if shard and (shard.replay or shard.clip >= clips) and shard.split == split
    }
    mine = []
    for shard, sidecar in _sidecars(output, sorted(wanted)):
      if not {shard.file_name, shard.file_name + shard_files.SIDECAR} <= names:
        found.append(f"{folder}/{shard.file_name}: the shard or its sidecar is missing")
      elif sidecar is None:
        found.append(f"{folder}/{shard.file_name}: the sidecar is damaged; run the job again")
      else:
        mine.append((shard, sidecar))
    examples = sum(sidecar["written"] for _, sidecar in mine)
    if examples != stats["examples"]:
      found.append(
        f"{folder}: stats.{split}.json states {stats['examples']} examples, the shards {examples}"
      )
    shards += mine
  return found + _in_processes(folder, shards, workers) + _plan_problems(folder, output, task)


def unsealed(folder: str) -> list[str]:
  """A line if JSON files of the folder have no digest, so that a change in them is not found."""
  names = [name for name in storage.names(folder) if name.endswith(".json")]
  paths = [storage.join(folder, name) for name in names]
  sealed = storage.for_each(lambda path: is_sealed(storage.read(path)), paths)
  without = [name for name, has in zip(names, sealed, strict=True) if not has]
  if not without:
    return []
  return [
    f"{folder}: {len(without)} of {len(names)} JSON files, such as {without[0]}, have no digest, because an earlier "
    "version wrote them: changes in them are not found"
  ]


def _sidecars(output: str, shards: Sequence[shard_files.ShardName]) -> Iterator[tuple[Any, Any]]:
  """Shards, each with its sidecar, or None if it has none that can be read."""
  read = storage.for_each(lambda shard: shard_files.read_sidecar(output, shard), shards)
  return zip(shards, read, strict=True)


def _in_processes(
  folder: str, shards: Sequence[tuple[shard_files.ShardName, Mapping[str, Any]]], workers: int
) -> list[str]:
  """Differences between each shard and its sidecar, with a progress bar on a terminal."""
  from tqdm import tqdm

  check = functools.partial(_shard_problems, folder)
  with contextlib.ExitStack() as stack:
    run: Any = map
    if workers > 1 and sum(sidecar["bytes"] for _, sidecar in shards) >= _WORTH_PROCESSES:
      context = multiprocessing.get_context("spawn")
      pool = concurrent.futures.ProcessPoolExecutor(min(workers, len(shards)), context)
      run = stack.enter_context(pool).map
    checked = run(check, shards)
    bar = tqdm(checked, folder, len(shards), unit="shard", file=sys.stderr, disable=None)
    return [line for lines in bar for line in lines]


def _shard_problems(
  folder: str, checked: tuple[shard_files.ShardName, Mapping[str, Any]]
) -> list[str]:
  """Differences between a shard, its ledgers and its sidecar."""
  shard, sidecar = checked
  name = shard.file_name
  content = storage.read(storage.join(folder, name))
  if hashlib.sha256(content).hexdigest() != sidecar["sha256"]:
    return [f"{folder}/{name}: sha256 differs from the sidecar's"]
  found = []
  records = sum(1 for _ in map(schema.decode, tfrecord.read_records(io.BytesIO(content))))
  if records != sidecar["written"]:
    found.append(f"{folder}/{name}: got {records} records, expected {sidecar['written']}")
  for suffix, kind in ((shard_files.DEAD, "dead"), (shard_files.REJECTED, "rejected")):
    path = storage.join(folder, name + suffix)
    lines = storage.read(path).splitlines() if storage.exists(path) else []
    if len(lines) != sidecar[kind]:
      found.append(f"{path}: got {len(lines)} lines, the sidecar has {sidecar[kind]} rows {kind}")
  placed = sum(sidecar[kind] for kind in ("written", "rejected", "dead", "quarantined"))
  if placed != sidecar["rows"]:
    found.append(f"{folder}/{name}: {sidecar['rows']} rows, of which {placed} are accounted for")
  return found + shard_files.damaged_files(storage.parent(folder), shard, sidecar, records=False)


def _plan_problems(folder: str, output: str, task: str) -> list[str]:
  """Shards and rows in the plans of the job and its replays that a folder lacks; plans are next to the folder."""
  from beam_jobs.shards import replays

  base = next((task.removesuffix(s) for s in TASK_SUFFIXES if task.endswith(s)), None)
  if base is None or not storage.exists(storage.join(output, f"{base}.plan.json")):
    return [f"{folder}: no <task>.plan.json next to it, so rows of the manifest cannot be counted"]
  found = []
  try:
    found = _missing(output, task, ledger.read_plan(output, base))
    history = replays.read_all(output, base)
    for replay in history:
      if not replay.finished:
        number = f"{replay.number:02d}"
        return [*found, f"{folder}: replay {number} has not finished; run the same command again"]
      found += _missing(output, task, ledger.read_plan(output, base, replay.number))
    # A folder that was copied without its settings is checked only against its sidecars.
    if not found and storage.exists(storage.join(output, f"{base}.settings.json")):
      summary = replays.account(output, base, history, folder=task)
      found += _account_problems(folder, summary, history)
  except (ledger.LedgerError, Damaged, FileNotFoundError) as error:
    found.append(str(error))
  return found


def _missing(output: str, task: str, plan: Mapping[Any, int]) -> list[str]:
  found = []
  for shard, sidecar in _sidecars(output, [shard for shard in plan if shard.task == task]):
    if sidecar is None:
      found.append(f"{shard}: {plan[shard]} rows in the plan, but no sidecar")
    elif sidecar["rows"] != plan[shard]:
      found.append(f"{shard}: the plan has {plan[shard]} rows, the sidecar {sidecar['rows']}")
  return found


def _account_problems(folder: str, summary: Any, history: Sequence[Any]) -> list[str]:
  """Differences between the stats and shards of a folder and the totals of the job and its replays."""
  found = []
  numbers = {0, *(replay.number for replay in history)}
  for name in storage.names(folder):
    shard = shard_files.parse_shard(f"-/{name}")
    if shard and shard.replay not in numbers:
      number = f"{shard.replay:02d}"
      found.append(f"{folder}/{name} belongs to replay {number}, which has no JSON file; delete it")
  for task, split in summary.splits:
    path = storage.join(folder, f"stats.{split}.json")
    if task == folder.rpartition("/")[2] and storage.exists(path):
      stated, expected = storage.read_json(path), summary.splits[task, split].to_json()
      found += [
        f"{path}: {name}: got {stated.get(name)}, the shards add up to {expected[name]}"
        for name in ("rows", "written", "rejected_by_reason", "dead_by_reason", "quarantined")
        if stated.get(name) != expected[name]
      ]
  return found


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the program; 1 if anything is wrong."""
  parser = programs.parser("beam_jobs.verify", __doc__, allow_abbrev=False)
  parser.add_argument("folders", nargs="+", help="cached task folders")
  parser.add_argument(
    "--workers",
    type=running.positive,
    default=os.cpu_count() or 1,
    help="processes, each with one shard in memory (default: one per CPU)",
  )
  arguments = parser.parse_args(argv)
  found = []
  for folder in arguments.folders:
    with waiting("verify", f"checking {folder}"):
      found += problems(folder.rstrip("/"), workers=arguments.workers)
      for line in unsealed(folder.rstrip("/")):
        print(line)
  print("\n".join(found) if found else "every shard and record matches its sidecar")
  return 1 if found else 0


if __name__ == "__main__":
  sys.exit(main())
