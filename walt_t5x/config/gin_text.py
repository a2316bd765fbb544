"""What is wrong with gin files and bindings, found in their text before anything that they name is imported."""

import dataclasses
import glob
import os
import re
import shlex
import tokenize
from collections.abc import Iterator, Sequence
from typing import Any

from walt_t5x.config.usage import closest

# The folder that contains `gin/`. In a clone it is the root. setup.py copies the files into the wheel as
# `walt_t5x/_gin/gin/`, because a folder `gin/` in site-packages belongs to gin-config.
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_INSTALLED = os.path.join(_PACKAGE, "_gin")
FOLDER = _INSTALLED if os.path.isdir(_INSTALLED) else os.path.dirname(_PACKAGE)

_REQUIRED = "gin.REQUIRED"
# What gin's parser raises.
_UNPARSED = (SyntaxError, tokenize.TokenError, ValueError, IndexError, AttributeError)
# Files name the function of their program as an attribute of its script: `train_script.train`.
_PROGRAM_OF_SCRIPT = {
  "train": "`python -m walt_t5x.train` runs it, `python -m walt_t5x.plan` prints its cost",
  "generate": "`python -m walt_t5x.generate` runs it, `python -m walt_t5x.plan_sampling` prints its cost",
  "eval": "T5X's eval.py runs it (docs/t5x.md)",
  "infer": "T5X's infer.py runs it (docs/t5x.md)",
}
# How to choose the value of a required macro, where its name does not say it.
_REQUIRED_HINTS = {
  "PERCEPTUAL_WEIGHTS": (
    "It is a safetensors file of ResNet-50 (docs/vae.md); None trains without the perceptual term, which the published "
    "tokenizers have."
  ),
}
# Macros that have changed -> the name now; None for one that is no longer needed.
OLD_MACROS = {
  "DATASET": "MIXTURE_OR_TASK_NAME",
  "HARDWARE_RNG": "USE_HARDWARE_RNG",
  "FEATURE_LENGTHS": None,
}


class GinError(ValueError):
  """An unusable configuration, with a message for its author."""


@dataclasses.dataclass(frozen=True)
class Macro:
  """A macro where a value uses it."""

  name: str


@dataclasses.dataclass(frozen=True)
class _Reference:
  """A function or class where a value refers to it, such as `train/engine.DatasetConfig`."""

  name: str


def find(name: str, *, flag: str) -> str:
  """The path of a gin file: `name` itself if it exists, else the package's of that name, else FileNotFoundError."""
  if "://" in name:
    raise ValueError(f"{flag}: got {name}, expected a local path: copy the gin file to a disk")
  for path in (name, os.path.join(FOLDER, name)):
    if os.path.isfile(path):
      return path
  raise FileNotFoundError(f"{flag}: {not_found(name, [FOLDER])}")


def not_found(name: str, folders: Sequence[str]) -> str:
  """The message for a gin file that is neither in one of the folders nor in the current one."""
  looked = dict.fromkeys(os.path.abspath(os.path.join(folder, name)) for folder in ("", *folders))
  near = glob.glob(os.path.join(os.path.dirname(name), "*.gin"))
  for folder in folders:
    found = glob.glob(os.path.join(folder, "gin", "**", "*.gin"), recursive=True)
    near += [os.path.relpath(file, folder) for file in found]
  same = [file for file in near if os.path.basename(file) == os.path.basename(name)]
  hint = closest(name, same) or closest(name, near)
  return f"no file at {', nor at '.join(looked)}; " + (
    f"did you mean {hint}?"
    if hint
    else "expected a path that exists, or one of the package's own gin files, such as gin/tiny/base.gin"
  )


def macro_hint(name: str) -> str:
  """What to write instead of an old macro."""
  new = OLD_MACROS[name]
  return f"{name} is now {new}." if new else f"{name} is no longer needed: leave it out."


def flag_of(name: str, value: str) -> str:
  """A flag as a shell reads it: `--gin.NAME=value`, with the quotes of a string protected."""
  flag = f"--gin.{name}={value}"
  protected = flag.replace('"', r"\"")
  return protected if shlex.split(protected) == [flag] else shlex.quote(flag)


@dataclasses.dataclass
class Text:
  """The bindings of gin files.

  Attributes:
    values: the last value of every binding: (scope, name of the class or function, parameter), with macros as
      (name, "", "").
    names: the bindings as they are written.
    scripts: the programs that the files are for.
  """

  values: dict[tuple[str, str, str], Any] = dataclasses.field(default_factory=dict)
  names: dict[tuple[str, str, str], str] = dataclasses.field(default_factory=dict)
  scripts: set[str] = dataclasses.field(default_factory=set)

  def read_file(self, name: str, folders: Sequence[str]) -> None:
    """Adds a file and those that it includes.

    Raises:
      GinError: a file does not exist or cannot be parsed.
    """
    paths = (os.path.join(folder, name) for folder in ("", *folders))
    path = next(filter(os.path.isfile, paths), None)
    if path is None:
      raise GinError(f"{not_found(name, folders)} --gin_search_paths adds folders.")
    from gin import config_parser

    with open(path, encoding="utf-8") as file:
      try:
        for statement in _statements(file.read()):
          if isinstance(statement, config_parser.IncludeStatement):
            self.read_file(statement.filename, folders)
          elif isinstance(statement, config_parser.BindingStatement):
            key, name = _key(statement)
            self.values[key], self.names[key] = statement.value, name
          elif getattr(statement, "module", "") == "__main__" and statement.alias:
            self.scripts.add(statement.alias.removesuffix("_script"))
      except (SyntaxError, tokenize.TokenError) as error:
        what, location = error.args
        number, content = getattr(location, "line_num", location[0]), location[-1]
        line = content.strip() if isinstance(content, str) else ""
        raise GinError(f"{path}, line {number}: {what} {line}".strip()) from error

  def bind(self, binding: str) -> None:
    """Adds a binding of the command line, `NAME = value`.

    Raises:
      GinError: it cannot be parsed, or has no effect.
    """
    name, _, text = (part.strip() for part in binding.partition("="))
    try:
      (statement,) = _statements(f"{name} = {text}")
      key, name = _key(statement)
    except _UNPARSED as error:
      raise GinError(f"--gin.{name}={text}: {self._instead(name, text)}") from error
    if self.values:  # Else the bindings change a configuration that is already parsed.
      self._reject_unused(key, name)
    old, new = self._number(key), statement.value
    if old is not None and isinstance(new, str):
      right = flag_of(name, new if parses("A", new) else str(old))
      raise GinError(
        f"--gin.{name}={text}: got a string, expected a value like {old}, without quotes; write {right}"
      )
    self.values[key] = new
    self.names.setdefault(key, name)

  def _number(self, key: tuple[str, str, str]) -> int | float | None:
    """The value of a binding if it is a number, True or False, maybe of a macro."""
    value = self.values.get(key)
    for _ in self.values:  # As many macros, at most, refer to each other.
      if isinstance(value, Macro):
        value = self.values.get(("", value.name, ""))
    return value if isinstance(value, int | float) else None

  def _instead(self, name: str, value: str) -> str:
    """What to write instead of a binding that cannot be parsed."""
    if not parses(name, "1"):
      return "expected a name such as TRAIN_STEPS or train/engine.DatasetConfig.batch_size"
    word = {"true": "True", "false": "False", "none": "None", "null": "None"}.get(value.lower())
    if word:
      return f"write {flag_of(name, word)}"
    (statement,) = _statements(f"{name} = 1")
    number = self._number(_key(statement)[0])
    if number is not None:
      return f"expected a value like that of the gin files; write {flag_of(name, str(number))}"
    if value and value[0] not in "[({@%'\"" and '"' not in value:
      quoted = f'"{value}"'
      return f"a string needs quotes that reach the program; write {flag_of(name, quoted)}"
    return "expected a number, True, False, None, a string in quotes, a list, %MACRO or @function"

  def _reject_unused(self, key: tuple[str, str, str], name: str) -> None:
    """Raises GinError for a macro or a scope that no file uses; gin itself would ignore it."""
    scope, macro, parameter = key
    if not parameter:
      used = set(self.macros())
      if macro in used or self.values.get(key) == Macro(_REQUIRED):
        return
      if macro in OLD_MACROS:
        raise GinError(f"--gin.{macro}: {macro_hint(macro)}")
      close = closest(macro, used) or closest(macro.upper(), used)
      hint = (
        f"Did you mean --gin.{close}?"
        if close
        else f"Macros in use: {', '.join(sorted(used)) or 'none'}."
      )
      raise GinError(
        f"--gin.{macro}: no gin file uses %{macro}, so it would have no effect. {hint}"
      )
    named = [*self.names.values(), *(leaf.name for leaf in self._leaves(_Reference))]
    parts = [name.split("/")[:-1] for name in named]
    scopes = {"/".join(part[:end]) for part in parts for end in range(len(part) + 1)}
    if scope and scope not in scopes:
      close = closest(scope, scopes)
      hint = f"Did you mean --gin.{close}{name.removeprefix(scope)}?" if close else "Remove it."
      raise GinError(f"--gin.{name}: no gin file uses the scope {scope}. {hint}")

  def macros(self) -> list[str]:
    """The macros in use."""
    return [leaf.name for leaf in self._leaves(Macro) if leaf.name != _REQUIRED]

  def required(self) -> list[str]:
    """The bindings without a value: set to %gin.REQUIRED, or macros in use that nothing sets."""
    unset = [self.names[key] for key, value in self.values.items() if value == Macro(_REQUIRED)]
    return list(
      dict.fromkeys([*unset, *(m for m in self.macros() if ("", m, "") not in self.values)])
    )

  def _leaves(self, kind: type[Any]) -> Iterator[Any]:
    for value in self.values.values():
      yield from (leaf for leaf in _flat(value) if isinstance(leaf, kind))

  def closest(self, name: str) -> str | None:
    """The binding that is most like a name, if there is another than itself."""
    others = [other for other in self.names.values() if other != name and "." in other]
    return closest(name, others)


def check(
  files: Sequence[str],
  bindings: Sequence[str],
  search_paths: Sequence[str],
  *,
  complete: bool,
  scripts: Sequence[str] = (),
) -> Text:
  """The text of files and bindings. Raises GinError if they cannot be used; see `gin_config.parse`.

  Args:
    files, bindings, search_paths: as in `gin_config.parse`.
    complete: raise if required bindings have no value.
    scripts: the scripts that this program has, such as "train", and last the one that it runs: files for others
      are rejected. Empty for any.
  """
  text = Text()
  for file in files:
    text.read_file(file, search_paths)
  for name, new in OLD_MACROS.items():
    if new and ("", name, "") in text.values:
      raise GinError(f"{macro_hint(name)} A gin file still sets the old name.")
  wrong = text.scripts.difference(scripts)
  if scripts and (wrong or scripts[-1] not in text.scripts):
    hints = [_PROGRAM_OF_SCRIPT[script] for script in wrong or text.scripts]
    hint = hints[0] if hints else "It is a part of one, which a file that includes it completes"
    raise GinError(f"{', '.join(files)}: a configuration for another program. {hint}.")
  for binding in bindings:
    text.bind(binding)
  missing = text.required()
  if missing and complete:
    paths = {name for name in missing if re.search("(DIR|CHECKPOINT|ENCODER|WEIGHTS)$", name)}
    flags = " ".join(flag_of(name, '"PATH"' if name in paths else "VALUE") for name in missing)
    hints = "".join(f" {_REQUIRED_HINTS[name]}" for name in missing if name in _REQUIRED_HINTS)
    raise GinError(
      f"the gin files require {_listed(missing)}, and no value is given: add {flags}.{hints}"
    )
  return text


def recorded_sizes(config: str) -> dict[str, int]:
  """Macros with integer values in the text of a recorded configuration, such as BATCH_SIZE; executes nothing."""
  found = re.findall(r"^([A-Z][A-Z0-9_]*) = (\d+)$", config, re.MULTILINE)
  return {name: int(value) for name, value in found}


def _listed(names: Sequence[str]) -> str:
  return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _statements(text: str) -> Iterator[Any]:
  from gin import config_parser

  class Names(config_parser.ParserDelegate):
    """Keeps the names of macros, functions and classes."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> _Reference:
      return _Reference(scoped_configurable_name)

    def macro(self, macro_name: str) -> Macro:
      return Macro(macro_name)

  yield from config_parser.ConfigParser(text, Names())


def _key(statement: Any) -> tuple[tuple[str, str, str], str]:
  """The key of a binding in `Text.values`, and its name as in `--gin.NAME`."""
  scope, selector, parameter = statement.scope, statement.selector, statement.arg_name or ""
  full = f"{scope}/{selector}" if scope else selector
  if not parameter:
    return ("", full, ""), full
  if parameter == "value" and selector in ("macro", "gin.macro"):
    return ("", scope, ""), scope
  return (scope, selector.rpartition(".")[2], parameter), f"{full}.{parameter}"


def _flat(value: Any) -> Iterator[Any]:
  if isinstance(value, dict):
    value = [*value, *value.values()]
  if isinstance(value, list | tuple):
    for item in value:
      yield from _flat(item)
  else:
    yield value


def parses(name: str, value: str) -> bool:
  """Whether this is one binding."""
  try:
    return len(list(_statements(f"{name} = {value}"))) == 1
  except _UNPARSED:
    return False
