"""Records what determines the samples of a folder, so that a command resumes only its own samples."""

import contextlib
import difflib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from walt_t5x.files import storage
from walt_t5x.files.mismatch import Mismatch
from walt_t5x.files.paths import AnyPath, as_path

RUN = "run.json"
# The sidecars of `SampleFolder`.
_FINISHED = "[0-9]*.json"


def begin(folder: AnyPath, identity: Mapping[str, Any], *, finished: str = _FINISHED) -> None:
  """Writes `run.json`, or checks that the folder was started by the same command.

  A start that finished no sample, such as one that failed or was killed early, does not bind the next command.

  Args:
    folder: folder of the samples.
    identity: JSON values by name; strings of several lines are compared line by line.
    finished: pattern of the files that finished samples have.

  Raises:
    Mismatch: the command differs; names the differences with both values.
    OSError: the folder cannot be written.
  """
  file = folder / RUN
  changes = _changes(file, identity)
  if file.exists() and not changes:
    return
  if any(folder.glob(finished)):
    if not file.exists():
      raise Mismatch(
        f"{folder} has samples but no {RUN}: they are of an earlier version or another program; set another --output"
      )
    raise Mismatch(
      f"{folder} was started by another command; its samples would be mixed:\n  "
      + "\n  ".join(changes[:10])
      + "\nRun the original command to finish it, or set another --output."
    )
  try:
    storage.write_json(file, identity, seal=True)
  except OSError as error:
    raise OSError(f"--output={folder} cannot be written: {error.strerror}") from error


def begin_free(name: str, identity: Mapping[str, Any]) -> AnyPath:
  """`begin` in the first of the folders `name`, `name_2` and so on that is not another command's; returns it."""
  for number in itertools.count(1):
    folder = as_path(name if number == 1 else f"{name}_{number}")
    # Another command may be about to finish its first sample.
    if _changes(folder / RUN, identity):
      continue
    try:
      begin(folder, identity)
    except Mismatch:
      continue
    return folder
  raise AssertionError("the loop has no end")


@contextlib.contextmanager
def begun(
  folder: AnyPath, identity: Mapping[str, Any], *, finished: str = _FINISHED
) -> Iterator[Callable[[], None]]:
  """Yields a function to call before samples are written; `run.json` is removed if the block fails without a sample.

  The function raises `Mismatch` if another command began the folder since.
  """
  file = folder / RUN

  def confirm() -> None:
    if changes := _changes(file, identity):
      raise Mismatch(
        f"another command began {folder} before this one finished a sample: {changes[0]}; set another --output"
      )
    # Another shard of the same command may have failed.
    begin(folder, identity, finished=finished)

  try:
    yield confirm
  except BaseException:
    if not any(folder.glob(finished)) and not _changes(file, identity):
      storage.delete(file)
    raise


def _changes(file: AnyPath, identity: Mapping[str, Any]) -> list[str]:
  """The differences between a `run.json` and this command; empty without a file."""
  if not file.exists():
    return []
  found, identity = _read(file), json.loads(json.dumps(identity))
  return [
    change
    for name in sorted(found.keys() | identity.keys())
    if found.get(name) != identity.get(name)
    for change in _differences(name, found.get(name), identity.get(name))
  ]


def _read(file: AnyPath) -> dict[str, Any]:
  """The content of a `run.json`, with two settings that earlier versions wrote in the names of the flags now."""
  found = storage.read_json(file)
  if "rounds" in found:
    found["extensions"] = found.pop("rounds") - 1
  if "decoded_given" in found:
    found["decoded_conditioning"] = found.pop("decoded_given")
  return found


def _differences(name: str, before: Any, now: Any) -> list[str]:
  """What differs, by its path in JSON: of the record of a model, the setting, not the record."""
  if isinstance(before, str) and isinstance(now, str):
    records = _parsed(before), _parsed(now)
    if all(isinstance(record, dict) for record in records):
      return _differences(name, *records)
    if "\n" in before + now:
      lines = difflib.ndiff(before.splitlines(), now.splitlines())
      return [f"{name}: {'was' if x[0] == '-' else 'is'} {x[2:]}" for x in lines if x[0] in "-+"]
  if isinstance(before, dict) and isinstance(now, dict):
    return [
      change
      for key in sorted(before.keys() | now.keys())
      if before.get(key) != now.get(key)
      for change in _differences(f"{name}.{key}", before.get(key), now.get(key))
    ]
  if isinstance(before, list) and isinstance(now, list):
    if len(before) != len(now):
      return [f"{name}: were {len(before)}, are {len(now)}"]
    return [
      change
      for i, pair in enumerate(zip(before, now))
      if pair[0] != pair[1]
      for change in _differences(f"{name}[{i}]", *pair)
    ]
  return [f"{name}: was {before!r}, is {now!r}"]


def _parsed(text: str) -> Any:
  """The JSON in a string; None if it has none."""
  try:
    return json.loads(text)
  except ValueError:
    return None
