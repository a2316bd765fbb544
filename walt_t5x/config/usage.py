"""How programs explain their flags: `--help` in groups with defaults, and wrong flags in a few lines."""

import argparse
import difflib
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

EXIT_CODE = 2
DEBUG_HELP = "print the tracebacks of errors"
_NUMBER = re.compile(r"argument --(\w+): invalid (?:int|float|positive) value: '(.*)'")
_CHOICE = re.compile(r"argument (--\w+): invalid choice: '(.*?)' \(choose from (.*)\)")


def closest(name: str, known: Iterable[str]) -> str | None:
  """The known name that is most like `name`, if any is like it."""
  found = difflib.get_close_matches(name, sorted(known), n=1)
  return found[0] if found else None


def reject(program: str, message: str) -> NoReturn:
  """Ends the program, whose command is wrong."""
  print(f"{program}: {message}\n--help lists the flags.", file=sys.stderr)
  sys.exit(EXIT_CODE)


def expected_number(name: str, default: float | None) -> str:
  """What a flag that is not a number should be."""
  return "expected a number" + ("" if default is None else f", such as --{name}={default:g}")


def unknown_flags(arguments: Iterable[str], known: Sequence[str]) -> str:
  """A sentence on each argument that is a flag like a known one, but not known."""
  found = []
  for argument in arguments:
    flag = argument.partition("=")[0]
    if flag.startswith("--") and flag not in known and (close := closest(flag, known)):
      found.append(f" {flag} is unknown: did you mean {close}?")
  return "".join(found)


class Parser(argparse.ArgumentParser):
  """An argument parser with a short usage, defaults in `--help`, and answers of a few lines to wrong flags."""

  def __init__(self, module: str, doc: str | None, *, add_debug: bool = True, **options: Any):
    super().__init__(
      prog=f"python -m {module}", description=doc, formatter_class=_Formatter, **options
    )
    self.program = module.rpartition(".")[2]
    self._given: Sequence[str] = ()
    if add_debug:
      self.add_argument("--debug", action=_Ignored, nargs=0, help=DEBUG_HELP)

  def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
    self._given = sys.argv[1:] if args is None else list(args)
    return super().parse_known_args(args, namespace)

  def known_flags(self) -> list[str]:
    """The names of all flags, with dashes."""
    return [name for action in self._actions for name in action.option_strings]

  def error(self, message: str) -> NoReturn:
    if choice := _CHOICE.search(message):
      flag, got, choices = choice.groups()
      values = [value.strip("'") for value in choices.split(", ")]
      if close := closest(got, values):
        reject(self.program, f"{flag}={got}: did you mean {flag}={close}?")
      message = f"{flag}={got}: expected one of {', '.join(values)}"
    if wrong := _NUMBER.search(message):
      name, got = wrong.groups()
      message = f"--{name}={got}: {expected_number(name, self.get_default(name))}"
    hints = unknown_flags(self._given, self.known_flags())
    reject(self.program, f"{message}.{hints}" if hints else message)


class _Ignored(argparse.Action):
  """A flag that is read elsewhere: `programs.debug`."""

  def __init__(self, **settings: Any):
    settings["dest"] = settings["default"] = argparse.SUPPRESS
    super().__init__(**settings)

  def __call__(self, *arguments: Any, **settings: Any) -> None:
    pass


class _Formatter(argparse.RawDescriptionHelpFormatter):
  """Names only what is required in the usage, and appends defaults that a help text does not state itself."""

  def _format_usage(self, usage: Any, actions: Any, groups: Any, prefix: Any) -> str:
    needed = [action for action in actions if action.required]
    return super()._format_usage(usage, needed, [], prefix).rstrip() + " [flags]\n\n"

  def _get_help_string(self, action: argparse.Action) -> str:
    text, default = action.help or "", action.default
    if action.required:
      return f"{text} (required)".strip()
    if default is None or default is False or default in ("", argparse.SUPPRESS) or default == []:
      return text
    if "default" in text:
      return text
    shown = ",".join(default) if isinstance(default, list) else str(default)
    shown = f"{default:g}" if isinstance(default, float) else shown
    if re.search(rf"\([^)]*{re.escape(shown)}", text):
      return text
    return f"{text} (default: {shown})".strip().replace("%", "%%")


def local_path(text: str) -> Path:
  """Type of flags of files that are read or written by libraries without object stores."""
  if "://" in text:
    raise argparse.ArgumentTypeError(
      f"got {text}, expected a local path: copy files to or from the store with its own tools"
    )
  return Path(text)
