"""The settings that shards were made with, and the check that one folder has a single set of settings."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from beam_jobs.shards.shard_files import SIDECAR, parse_shard, read_sidecar, update
from data import schema
from walt_t5x.files import damage, storage
from walt_t5x.files.mismatch import Mismatch

TASK_SUFFIXES = ("_images", "_videos")


def settings_of(origin: Mapping[str, Any], job: Any) -> dict[str, Any]:
  """Everything that decides the contents of a shard of a `plan.Job`, without the locations of files.

  Latents of another batch size may round differently, so batch sizes are included.
  """
  vae, text_encoder = origin.get("vae", {}), origin.get("text_encoder", {})
  return {
    "schema_version": schema.SCHEMA_VERSION,
    "vae": {name: value for name, value in vae.items() if name != "checkpoint"},
    "text_encoder": {name: value for name, value in text_encoder.items() if name != "folder"},
    "clip": _clip_settings(job.clip),
    "filters": dataclasses.asdict(job.filtering),
    "num_shards": dict(job.num_shards),
    "batch_sizes": job.encoders.batch_sizes,
  }


def _clip_settings(clip: Any) -> dict[str, Any]:
  """The fields of a `clips.ClipSpec`; without those that older caches lack while they have no effect."""
  added = {
    field.name: field.default for field in dataclasses.fields(clip) if "added" in field.metadata
  }
  return {
    name: value
    for name, value in dataclasses.asdict(clip).items()
    if name not in added or value != added[name]
  }


def settings_digest(settings: Mapping[str, Any]) -> str:
  """sha256 of the settings."""
  return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def discard_unwritten(output: str, task: str) -> None:
  """Deletes the shards of a job that wrote no record, because all its rows were dead letters or rejected.

  A corrected command would otherwise skip them as complete, or be rejected for its other settings.
  """
  folders = [task + suffix for suffix in TASK_SUFFIXES]
  if any(storage.exists(storage.join(output, folder, "COMPLETED")) for folder in folders):
    return
  files = [
    f"{folder}/{n}" for folder in folders for n in storage.names(storage.join(output, folder))
  ]
  shards = filter(None, (parse_shard(n.removesuffix(SIDECAR)) for n in files if SIDECAR in n))
  made = [*filter(None, storage.for_each(lambda shard: read_sidecar(output, shard), shards))]
  written = any(one["written"] + one["quarantined"] for one in made)
  # Shards without rows say nothing about the job.
  if not written and any(one["rows"] for one in made):
    for name in files:
      if ".tfrecord-" in name:
        storage.delete(storage.join(output, name))


def guard(output: str, task: str, settings: Mapping[str, Any]) -> None:
  """Writes the settings of a run, or rejects a folder whose shards were made with other settings.

  Raises:
    Mismatch: naming each field with both values.
  """
  path = storage.join(output, f"{task}.settings.json")
  folders = (storage.join(output, task + suffix) for suffix in TASK_SUFFIXES)
  shards = (name for folder in folders for name in storage.names(folder) if name.endswith(SIDECAR))
  if storage.exists(path) and any(shards):
    reject_differences(
      storage.read_json(path),
      settings,
      f"{output} holds shards of task {task!r} made with other settings:",
      "set another --output or --task, or delete the folder to make it again",
    )
  update(path, damage.sealed_json(settings))


def reject_fewer_clips(output: str, task: str, clips_per_video: int) -> None:
  """Rejects a folder with more clips of each video than this run makes.

  Raises:
    Mismatch: naming both numbers.
  """
  found = storage.names(storage.join(output, f"{task}_videos"))
  shards = (parse_shard(f"{task}_videos/{name}") for name in found)
  before = 1 + max((shard.clip for shard in shards if shard), default=0)
  if before > clips_per_video:
    raise Mismatch(
      f"{output} holds {before} clips per video of task {task!r}: set --clips_per_video to at least {before}, or "
      "delete the shards of the clips that are not wanted (*.tfrecord-clip*)"
    )


def reject_differences(
  before: Mapping[str, Any], now: Mapping[str, Any], problem: str, remedy: str
) -> None:
  """Compares the settings of a folder with those of this run, as JSON values.

  Raises:
    Mismatch: if they differ; its message is `problem`, a line for each field, and `remedy`.
  """
  from flax.traverse_util import flatten_dict

  flat_before, flat_now = (
    flatten_dict(json.loads(json.dumps(tree)), sep=".") for tree in (before, now)
  )
  lines = [
    f"  {name}: the folder has {flat_before.get(name)!r}, this run {flat_now.get(name)!r}"
    for name in sorted(set(flat_before) | set(flat_now))
    if flat_before.get(name) != flat_now.get(name)
  ]
  if lines:
    raise Mismatch("\n".join((problem, *lines, remedy)))


def read(output: str, task: str) -> dict[str, Any]:
  """The settings of a finished or unfinished job.

  Raises:
    FileNotFoundError: if there are none.
  """
  path = storage.join(output, f"{task}.settings.json")
  if not storage.exists(path):
    raise FileNotFoundError(
      f"no {path}: expected the --output and --task of a run of `python -m beam_jobs.preprocess`"
    )
  return storage.read_json(path)
