"""The settings that a set of shards was made with, and the guard that keeps two settings out of one folder."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from beam_jobs import storage
from beam_jobs.shards import SIDECAR

TASK_SUFFIXES = ("_images", "_videos")


class SettingsMismatch(ValueError):
  """An output folder that holds shards made with other settings."""


def settings_digest(settings: Mapping[str, Any]) -> str:
  """sha256 over the settings."""
  return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def guard(output: str, task: str, settings: Mapping[str, Any]) -> None:
  """Note the settings of a run, or refuse a folder whose shards were made with others.

  Args:
    output: folder of the cached tasks.
    task: name that the task folders share.
    settings: plain values; everything that decides what a shard holds.

  Raises:
    SettingsMismatch: names each field with both values.
  """
  path = storage.join(output, f"{task}.settings.json")
  settings = json.loads(json.dumps(settings))
  if storage.exists(path) and _holds_shards(output, task):
    before, now = _flatten(json.loads(storage.read(path))), _flatten(settings)
    lines = [
      f"  {name}: the folder has {before.get(name)!r}, this run {now.get(name)!r}"
      for name in sorted(set(before) | set(now))
      if before.get(name) != now.get(name)
    ]
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
