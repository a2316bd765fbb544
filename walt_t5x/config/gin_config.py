"""Interface to gin: where its files are, flags to bindings, files to a configuration, and its record.

The engine's only gin import.
"""

import copy
import difflib
import logging
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from walt_t5x.files import storage

# The folder that contains `gin/`. In a clone it is the root. setup.py copies the files into the wheel as
# `walt_t5x/_gin/gin/`, because a folder `gin/` in site-packages belongs to gin-config.
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_INSTALLED = os.path.join(_PACKAGE, "_gin")
FOLDER = _INSTALLED if os.path.isdir(_INSTALLED) else os.path.dirname(_PACKAGE)

# What gin appends to an error in a configured function: the Python location of its call.
LOCATION = "\n  In call to configurable"
_MACRO_BINDING = re.compile(r"\s*([A-Za-z_]\w*)\s*=")
_NOT_FOUND = re.compile(r"Unable to open file: (.*)\. Searched config paths: .*\.")

# Files name the function of their program as an attribute of its script: `train_script.train`.
_OF_A_SCRIPT = re.compile(r"Couldn't resolve selector (train|generate|eval)_script\.")
_PROGRAM_OF_SCRIPT = {
  "train": "`python -m walt_t5x.train` runs it, `python -m walt_t5x.plan` prints its cost",
  "generate": "`python -m walt_t5x.generate` runs it, `python -m walt_t5x.plan_sampling` prints its cost",
  "eval": "T5X's eval.py runs it (docs/t5x.md)",
}

# How to choose the value of a required macro, where its name does not say it.
_REQUIRED_HINTS = {
  "PERCEPTUAL_WEIGHTS": (
    "It is a safetensors file of ResNet-50 (docs/vae.md); None trains without the perceptual term, which the published "
    "tokenizers have."
  ),
}

# Names that have changed, so that an old file is answered with the new one.
# Macro -> its name now; None for one that is no longer needed.
OLD_MACROS = {
  "DATASET": "MIXTURE_OR_TASK_NAME",
  "HARDWARE_RNG": "USE_HARDWARE_RNG",
  "FEATURE_LENGTHS": None,
}
# What the message of a failed binding or import contains -> the answer.
_OLD_NAMES = {
  r"'normalise_latents'": "normalise_latents is now normalize_latents.",
  r"walt_t5x\.partitioning|'partitioning' from 'walt_t5x'": (
    "walt_t5x.partitioning is now walt_t5x.sharding.partitioning: write "
    "`from walt_t5x.sharding import partitioning`."
  ),
}


class GinError(ValueError):
  """An unusable configuration, with a message for its author."""


def find(name: str, *, flag: str) -> str:
  """The path of a gin file: `name` itself if it exists, else the package's of that name, else FileNotFoundError."""
  for path in (name, os.path.join(FOLDER, name)):
    if os.path.isfile(path):
      return path
  raise FileNotFoundError(f"{flag}: {not_found(name, [FOLDER])}")


def not_found(name: str, folders: Sequence[str]) -> str:
  """The message for a gin file that is neither in one of the folders nor in the current one."""
  looked = dict.fromkeys(os.path.abspath(os.path.join(folder, name)) for folder in ("", *folders))
  return (
    f"no file at {', nor at '.join(looked)}; expected a path that exists, or one of the package's own gin files, "
    "such as gin/tiny/base.gin"
  )


def rewrite_gin_args(args: Sequence[str]) -> list[str]:
  """Rewrites `--gin.NAME=value` as `--gin_bindings=NAME = value`; other arguments are unchanged."""
  rewritten = []
  for arg in args:
    if arg.startswith("--gin."):
      name, equals, value = arg.removeprefix("--gin.").partition("=")
      if not equals:
        raise GinError(f"{arg}: expected --gin.NAME=value.")
      arg = f"--gin_bindings={name} = {value}"
    rewritten.append(arg)
  return rewritten


def parse(
  files: Sequence[str],
  bindings: Sequence[str],
  search_paths: Sequence[str],
  *,
  finalize: bool = True,
) -> None:
  """Parses files, then bindings; later values win. The configuration is final afterwards.

  Args:
    files: gin files, found in the search paths.
    bindings: for example `TRAIN_STEPS = 10` or `train/engine.DatasetConfig.batch_size = 8`.
    search_paths: folders; the first one that has the file wins.
    finalize: raise on required macros that are not set. Programs that only inspect a configuration pass False: such a
      macro is then None.

  Raises:
    GinError: a file is not found, a name does not exist, a value cannot be parsed, a required macro is not set, or a
      macro set on the command line is not used (gin itself would ignore the typo).
  """
  import gin

  for path in search_paths:
    gin.add_config_file_search_path(path)
  logging.getLogger().addFilter(_is_not_of_the_search)
  try:
    gin.parse_config_files_and_bindings(list(files), list(bindings), finalize_config=False)
    _reject_old_macros()
    _settle_required_macros(reject=finalize)
    if finalize:
      gin.finalize()
  except GinError:
    raise
  except Exception as error:  # The files call functions, which may raise anything.
    if missing := _NOT_FOUND.match(str(error)):
      raise GinError(
        f"{not_found(missing[1], search_paths)}. --gin_search_paths adds folders."
      ) from error
    if script := _OF_A_SCRIPT.search(str(error)):
      raise GinError(
        f"{', '.join(files)}: a configuration for another program. {_PROGRAM_OF_SCRIPT[script[1]]}."
      ) from error
    hints = (hint for old, hint in _OLD_NAMES.items() if re.search(old, str(error)))
    raise GinError(next(hints, f"{type(error).__name__}: {error}")) from error
  config = gin.config_str()
  macros = sorted(set(re.findall(r"%([A-Za-z_]\w*)", config)))
  for binding in bindings:
    match = _MACRO_BINDING.match(binding)
    if match and match.group(1) not in macros:
      name = match.group(1)
      if name in OLD_MACROS:
        raise GinError(f"--gin.{name}: {macro_hint(name)}")
      close = difflib.get_close_matches(name, macros, n=1)
      hint = (
        f"Did you mean {close[0]}?" if close else f"Macros in use: {', '.join(macros) or 'none'}."
      )
      raise GinError(f"--gin.{name}: no gin file uses %{name}, so it would have no effect. {hint}")


def macro_hint(name: str) -> str:
  """What to write instead of an old macro."""
  new = OLD_MACROS[name]
  return f"{name} is now {new}." if new else f"{name} is no longer needed: leave it out."


def _reject_old_macros() -> None:
  import gin

  config = gin.config_str()
  for name, new in OLD_MACROS.items():
    if new and re.search(rf"^{name} = ", config, re.MULTILINE):
      raise GinError(f"{macro_hint(name)} A gin file still sets the old name.")


def _settle_required_macros(*, reject: bool) -> None:
  import gin

  missing = re.findall(r"^(\w+) = %gin\.REQUIRED$", gin.config_str(), re.MULTILINE)
  if missing and reject:
    flags = " ".join(f"--gin.{name}=VALUE" for name in missing)
    hints = "".join(f" {_REQUIRED_HINTS[name]}" for name in missing if name in _REQUIRED_HINTS)
    raise GinError(
      f"the gin files require {' and '.join(missing)}, and no value is given: add {flags}.{hints}"
    )
  for name in missing:
    gin.bind_parameter(f"{name}/macro.value", None)


def _is_not_of_the_search(record: logging.LogRecord) -> bool:
  """Filters out the error that gin logs for each folder without the file, before it searches the next one."""
  return record.module != "resource_reader"


def configured(function: Callable[..., Any], name: str) -> Callable[..., Any]:
  """The function with the arguments that the parsed files bind to it, as `name`.

  The files themselves register it, so that `config.gin` uses the same name and can be launched unchanged.

  Raises:
    GinError: no file binds it.
  """
  import gin

  try:
    return gin.get_configurable(function)
  except ValueError as error:
    raise GinError(f"no gin file binds {name}; is a run file included?") from error


def bound(cls: type[Any]) -> Any:
  """An instance of a class with the arguments that the parsed files bind, or with defaults if none does.

  Raises:
    GinError: a bound value is rejected.
  """
  import gin

  try:
    make = gin.get_configurable(cls)
  except ValueError:  # Dynamic registration registers only what a file binds.
    make = cls
  try:
    return make()
  except (TypeError, ValueError) as error:
    raise GinError(without_location(error)) from error


def without_location(error: BaseException) -> str:
  """The message of an error, without the calls that gin appends."""
  return str(error).split(LOCATION)[0]


def summarize_gin_config(model_dir: str, summary_writer: Any, step: int) -> None:
  """Writes the configuration to `<model_dir>/config.gin`, its used part to `operative_config.gin`, and a summary."""
  import jax

  import gin

  if jax.process_index() != 0:
    return
  storage.write(storage.join(model_dir, "config.gin"), gin.config_str())
  storage.write(storage.join(model_dir, "operative_config.gin"), gin.operative_config_str())
  if summary_writer is not None:
    summary_writer.write_texts(step, {"config": gin.markdown(gin.config_str())})
    summary_writer.flush()


def macro_value(name: str, default: Any = None) -> Any:
  """The value of the macro %name in the parsed files; configurables that it references are called."""
  return binding(f"{name}/gin.macro.value", default)


def binding(parameter: str, default: Any = None) -> Any:
  """The value that the parsed files bind to a parameter such as `pixel_task.pixels`, or the default."""
  import gin

  try:
    value = gin.query_parameter(parameter)
  except ValueError:
    return default
  # gin calls a reference when it is copied.
  return copy.deepcopy(value)


def name_of_binding(field: str, *, of: str) -> str:
  """The name of a field of the class `of` in the parsed files, with scope and module.

  For example `base/transformer.WaltDenoiser.remat`; `<class>.<field>` if no file binds it.
  """
  import gin

  name = rf"^((?:[\w/.]*[/.])?{of}\.{field}) = "
  found = re.search(name, gin.config_str(), re.MULTILINE)
  return found[1] if found else f"{of}.{field}"
