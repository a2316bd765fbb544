"""Selects the engine that serves the names of `walt_t5x.engine`."""

import functools
import importlib
import importlib.util
import os

from absl import logging

_VARIABLE = "WALT_T5X_ENGINE"


@functools.cache
def use_t5x() -> bool:
  """Whether T5X serves the names; decided once per process.

  The environment variable `WALT_T5X_ENGINE` selects the engine: `t5x`, `builtin`, or `auto` (the default: T5X if
  `import t5x` works). If T5X is installed but cannot be imported, a warning is logged.

  Raises:
    ImportError: T5X is selected and cannot be imported.
    ValueError: the variable has another value.
  """
  wish = os.environ.get(_VARIABLE, "auto")
  if wish == "builtin":
    return False
  if wish == "t5x":
    importlib.import_module("t5x")
    return True
  if wish != "auto":
    raise ValueError(f"{_VARIABLE}={wish!r}: expected 'auto', 't5x' or 'builtin'.")
  if importlib.util.find_spec("t5x") is None:
    return False
  try:
    importlib.import_module("t5x")
  except ImportError as error:
    logging.warning(
      "T5X is installed but cannot be imported (%s); using the built-in engine. Set %s=builtin to select it "
      "explicitly, or %s=t5x to make this an error.",
      error,
      _VARIABLE,
      _VARIABLE,
    )
    return False
  return True
