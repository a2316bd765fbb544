"""gin at the border: flags to bindings, files to a configuration, a record of it. The engine's only gin import."""

import copy
import difflib
import logging
import re
from collections.abc import Callable, Sequence
from typing import Any

from walt_t5x.config import gin_files, renamed

_MACRO_BINDING = re.compile(r"\s*([A-Za-z_]\w*)\s*=")
_NOT_FOUND = re.compile(r"Unable to open file: (.*)\. Searched config paths: .*\.")


class GinError(ValueError):
  """A configuration that cannot be used, with a message for the one who wrote it."""


def rewrite_gin_args(args: Sequence[str]) -> list[str]:
  """`--gin.NAME=value` as `--gin_bindings=NAME = value`; other arguments as they are.

  Raises:
    GinError: a `--gin.` argument without '='.
  """
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
  """Parses files, then bindings; later ones win. The configuration is final afterwards.

  Args:
    files: gin files, found in the search paths.
    bindings: such as `TRAIN_STEPS = 10` or `train/engine.DatasetConfig.batch_size = 8`.
    search_paths: folders; the first that has a file wins.
    finalize: refuse macros that are required and not given. False for programs that only look at a configuration.

  Raises:
    GinError: a file is not found, a name does not exist, a value does not parse, or a macro set on the command line
      is used by nothing (gin itself would take the typo in silence).
  """
  import gin

  for path in search_paths:
    gin.add_config_file_search_path(path)
  logging.getLogger().addFilter(_is_not_of_the_search)
  try:
    gin.parse_config_files_and_bindings(list(files), list(bindings), finalize_config=False)
    _reject_old_macros()
    if finalize:
      gin.finalize()
  except (
    OSError,
    ValueError,
    NameError,
    AttributeError,
    ImportError,
    SyntaxError,
    TypeError,
  ) as error:
    missing = _NOT_FOUND.match(str(error))
    if missing:
      raise GinError(
        f"{gin_files.not_found(missing[1], search_paths)}. --gin_search_paths adds folders."
      ) from error
    if isinstance(error, GinError):
      raise
    hint = renamed.module_hint(str(error)) if isinstance(error, ImportError) else None
    raise GinError(hint or f"{type(error).__name__}: {error}") from error
  config = gin.config_str()
  macros = sorted(set(re.findall(r"%([A-Za-z_]\w*)", config)))
  for binding in bindings:
    match = _MACRO_BINDING.match(binding)
    if match and match.group(1) not in macros:
      name = match.group(1)
      if old := renamed.macro_hint(name):
        raise GinError(f"--gin.{name}: {old}")
      close = difflib.get_close_matches(name, macros, n=1)
      hint = (
        f"Did you mean {close[0]}?" if close else f"Macros in use: {', '.join(macros) or 'none'}."
      )
      raise GinError(
        f"--gin.{name}: nothing in the gin files uses %{name}, so it would have no effect. {hint}"
      )


def _reject_old_macros() -> None:
  import gin

  config = gin.config_str()
  for name, new in renamed.MACROS.items():
    if new and re.search(rf"^{name} = ", config, re.MULTILINE):
      raise GinError(f"{renamed.macro_hint(name)} A gin file still sets the old name.")


def _is_not_of_the_search(record: logging.LogRecord) -> bool:
  """gin reports every folder in which it did not find a file, as an error and before it looks in the next one."""
  return record.module != "resource_reader"


def configured(function: Callable[..., Any], name: str) -> Callable[..., Any]:
  """The function with the arguments that the parsed files bind.

  It is registered by the files themselves, so that `config.gin` says `name` again and can be launched as it is.

  Args:
    function: what a program runs.
    name: how gin files call it, for the message.

  Raises:
    GinError: no file binds it.
  """
  import gin

  try:
    return gin.get_configurable(function)
  except ValueError as error:
    raise GinError(f"no gin file binds {name}; is a run file included?") from error


def bound(cls: type[Any]) -> Any:
  """An instance of a class with the arguments that the parsed files bind, or its defaults where none does.

  Raises:
    GinError: a bound value is refused.
  """
  import gin

  try:
    make = gin.get_configurable(cls)
  except ValueError:  # Dynamic registration registers what a file binds, nothing else.
    make = cls
  try:
    return make()
  except (TypeError, ValueError) as error:
    raise GinError(str(error)) from error


def summarize_gin_config(model_dir: str, summary_writer: Any, step: int) -> None:
  """Writes the configuration to `<model_dir>/config.gin`, what was used of it to `operative_config.gin`, and a text.

  Args:
    model_dir: the run's folder.
    summary_writer: a CLU metric writer, or None.
    step: where the run starts.
  """
  import jax
  from etils import epath

  import gin

  if jax.process_index() != 0:
    return
  folder = epath.Path(model_dir)
  folder.mkdir(parents=True, exist_ok=True)
  (folder / "config.gin").write_text(gin.config_str())
  (folder / "operative_config.gin").write_text(gin.operative_config_str())
  if summary_writer is not None:
    summary_writer.write_texts(step, {"config": gin.markdown(gin.config_str())})
    summary_writer.flush()


def macro_value(name: str, default: Any = None) -> Any:
  """What a macro of the parsed files stands for; configurables that it refers to are called.

  Args:
    name: of the macro, without '%'.
    default: where no file defines it.
  """
  import gin

  try:
    value = gin.query_parameter(f"{name}/gin.macro.value")
  except ValueError:
    return default
  # gin calls a reference when it is copied.
  return copy.deepcopy(value)


def binding(parameter: str) -> Any:
  """The value that the parsed files bind to a parameter such as `pixel_task.pixels`; None where they bind none."""
  import gin

  try:
    return copy.deepcopy(gin.query_parameter(parameter))
  except ValueError:
    return None


def name_of_binding(field: str, *, of: str) -> str:
  """How the parsed files call a field of a class, with scope and module: `base/transformer.WaltDenoiser.remat`.

  Args:
    field: of the class.
    of: name of the class.

  Returns:
    `<class>.<field>` where no file binds it.
  """
  import gin

  name = rf"^((?:[\w/.]*[/.])?{of}\.{field}) = "
  found = re.search(name, gin.config_str(), re.MULTILINE)
  return found[1] if found else f"{of}.{field}"
