"""A job's flags in a TOML file, `--config=data.toml`, as `walt_t5x.init` writes it."""

import argparse
import difflib
import tomllib
from collections.abc import Sequence
from typing import Any

from walt_t5x.files import storage


def expanded(argv: Sequence[str], parser: argparse.ArgumentParser) -> list[str]:
  """The arguments with those of `--config=FILE` in front of the others, so that these count.

  A key is the name of a flag of `parser`; a list repeats a flag that may be repeated, and `false` leaves a flag out.

  Raises:
    FileNotFoundError: the file does not exist.
    ValueError: it is not TOML, or a key is not a flag; names the nearest.
  """
  path, rest = _split(list(argv))
  if path is None:
    return rest
  if not storage.exists(path):
    raise FileNotFoundError(f"--config: no file at {path}")
  try:
    settings = tomllib.loads(storage.read(path).decode())
  except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
    raise ValueError(f"--config: {path} is not TOML: {error}") from error
  flags = {
    option.removeprefix("--"): action
    for action in parser._actions
    for option in action.option_strings
    if option.startswith("--")
  }
  found: list[str] = []
  for name, value in settings.items():
    if name not in flags:
      near = difflib.get_close_matches(name, flags, n=1)
      hint = f"; did you mean {near[0]}?" if near else ": the keys are the flags of --help"
      raise ValueError(f"--config: {path} sets {name}, which is not a flag{hint}")
    found += _arguments(name, value, flags[name])
  return found + rest


def _split(argv: list[str]) -> tuple[str | None, list[str]]:
  """(the file of --config, the other arguments)."""
  for index, argument in enumerate(argv):
    if argument.startswith("--config="):
      return argument.partition("=")[2], argv[:index] + argv[index + 1 :]
    if argument == "--config" and index + 1 < len(argv):
      return argv[index + 1], argv[:index] + argv[index + 2 :]
  return None, argv


def _arguments(name: str, value: Any, action: argparse.Action) -> list[str]:
  if isinstance(value, bool):
    return [f"--{name}"] if value else []
  if not isinstance(value, list):
    return [f"--{name}={value}"]
  if action.nargs is not None:
    return [f"--{name}", *map(str, value)]
  return [f"--{name}={item}" for item in value]
