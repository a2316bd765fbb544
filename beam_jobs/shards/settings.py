"""The settings that shards were made with, and the check that one folder has a single set of settings."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from beam_jobs.shards.shard_files import SIDECAR
from data import schema
from walt_t5x.files import storage

TASK_SUFFIXES = ("_images", "_videos")


class SettingsMismatch(ValueError):
  """An output folder with shards made with other settings."""


def settings_of(
  origin: Mapping[str, Any],
  clip: Any,
  filtering: Any,
  *,
  num_shards: Mapping[str, int],
  batch_sizes: Mapping[str, int],
) -> dict[str, Any]:
  """Everything that decides the contents of a shard, without the locations of files.

  Args:
    origin: provenance of the encoders.
    clip: which clip to extract from the media.
    filtering: filters that rows must pass.
    num_shards: number of shards per split.
    batch_sizes: batch sizes of the encoders; with another batch size, latents may round differently.
  """
  return {
    "schema_version": schema.SCHEMA_VERSION,
    "vae": {name: v for name, v in origin.get("vae", {}).items() if name != "checkpoint"},
    "text_encoder": {
      name: v for name, v in origin.get("text_encoder", {}).items() if name != "folder"
    },
    "clip": dataclasses.asdict(clip),
    "filters": dataclasses.asdict(filtering),
    "num_shards": dict(num_shards),
    "batch_sizes": dict(batch_sizes),
  }


def settings_digest(settings: Mapping[str, Any]) -> str:
  """sha256 of the settings."""
  return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def guard(output: str, task: str, settings: Mapping[str, Any]) -> None:
  """Writes the settings of a run, or rejects a folder whose shards were made with other settings.

  Args:
    output: folder of the cached tasks.
    task: common name of the task folders.
    settings: plain values; everything that decides the contents of a shard.

  Raises:
    SettingsMismatch: naming each field with both values.
  """
  path = storage.join(output, f"{task}.settings.json")
  settings = json.loads(json.dumps(settings))
  if storage.exists(path) and _holds_shards(output, task):
    lines = differences(json.loads(storage.read(path)), settings)
    if lines:
      raise SettingsMismatch(
        "\n".join(
          (
            f"{output} holds shards of task {task!r} made with other settings:",
            *lines,
            "set another --output or --task, or delete the folder to make it again",
          )
        )
      )
  storage.write(path, (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode())


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
  """A line for each field in which two settings differ, compared as JSON values."""
  flat_before, flat_now = _flatten(before), _flatten(json.loads(json.dumps(now)))
  return [
    f"  {name}: the folder has {flat_before.get(name)!r}, this run {flat_now.get(name)!r}"
    for name in sorted(set(flat_before) | set(flat_now))
    if flat_before.get(name) != flat_now.get(name)
  ]


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
  return json.loads(storage.read(path))


def _holds_shards(output: str, task: str) -> bool:
  folders = (storage.join(output, task + suffix) for suffix in TASK_SUFFIXES)
  return any(name.endswith(SIDECAR) for folder in folders for name in storage.names(folder))


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
  if not isinstance(tree, Mapping):
    return {prefix: tree}
  flat = {}
  for key, value in tree.items():
    flat |= _flatten(value, f"{prefix}.{key}" if prefix else key)
  return flat
