"""Interface to gin: flags to bindings, files to a configuration, and its record.

The engine's only gin import.
"""

import copy
import logging
import re
from collections.abc import Callable, Sequence
from typing import Any

from walt_t5x.config import gin_text
from walt_t5x.config.gin_text import GinError
from walt_t5x.files import storage

# What gin appends to an error in a configured function: the Python location of its call.
LOCATION = "\n  In call to configurable"
_IN_BINDINGS = "\n  In bindings string"
# What the message of a failed binding or import contains -> the answer.
_OLD_NAMES = {
  r"'normalise_latents'": "normalise_latents is now normalize_latents.",
  r"walt_t5x\.partitioning|'partitioning' from 'walt_t5x'": (
    "walt_t5x.partitioning is now walt_t5x.sharding.partitioning: write "
    "`from walt_t5x.sharding import partitioning`."
  ),
}


def rewrite_gin_args(args: Sequence[str]) -> list[str]:
  """Rewrites `--gin.NAME=value` as `--gin_bindings=NAME = value`; other arguments are unchanged."""
  rewritten = []
  for arg, following in zip(args, [*args[1:], ""], strict=True):
    if arg.startswith("--gin."):
      name, equals, value = arg.removeprefix("--gin.").partition("=")
      if not equals:
        given = "" if following.startswith("-") else following
        value = given if gin_text.parses(name, given) else f'"{given}"'
        raise GinError(
          f"{arg} {given}: write {gin_text.flag_of(name, value if given else 'VALUE')}"
        )
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
  text = gin_text.check(files, bindings, search_paths, complete=finalize)

  import gin

  for path in search_paths:
    gin.add_config_file_search_path(path)
  logging.getLogger().addFilter(_is_not_of_the_search)
  try:
    gin.parse_config_files_and_bindings(list(files), list(bindings), finalize_config=False)
    _unset_required_macros()
    if finalize:
      gin.finalize()
  except Exception as error:  # The files call functions, which may raise anything.
    message = str(error).strip()
    hints = [hint for old, hint in _OLD_NAMES.items() if re.search(old, message)]
    with_flag = _with_flag(message, text, bindings) or f"{type(error).__name__}: {message}"
    raise GinError(hints[0] if hints else with_flag) from error


def _with_flag(message: str, text: gin_text.Text, bindings: Sequence[str]) -> str:
  """The message of gin with the binding of the command line that it is about, and one that may be meant; or ""."""
  for name in (binding.partition("=")[0].strip() for binding in bindings):
    parts = re.split(r"[./]", name)
    if len(parts) > 1 and any(part in message for part in parts[-2:]):
      close = text.closest(name)
      hint = f" Did you mean --gin.{close}?" if close else ""
      return f"--gin.{name}: {message.partition(_IN_BINDINGS)[0]}{hint}"
  return ""


def _unset_required_macros() -> None:
  """Sets the required macros that have no value to None."""
  import gin

  for name in re.findall(r"^(\w+) = %gin\.REQUIRED$", gin.config_str(), re.MULTILINE):
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
