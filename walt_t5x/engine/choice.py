"""Which engine serves the names of `walt_t5x.engine`."""

import functools
import importlib
import importlib.util
import os

from absl import logging

_VARIABLE = "WALT_T5X_ENGINE"


@functools.cache
def use_t5x() -> bool:
  """True where T5X serves, decided once a process.

  The environment variable `WALT_T5X_ENGINE` forces the answer: `t5x`, `builtin`, or `auto` (the default: T5X if
  `import t5x` works). A T5X that is there but cannot be imported is reported, never passed over in silence.

  Raises:
    ImportError: T5X was asked for and is not importable.
    ValueError: the variable holds something else.
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
      "T5X is installed but does not import (%s); the built-in engine takes over. Set %s=builtin to say so "
      "on purpose, or %s=t5x to make this an error.",
      error,
      _VARIABLE,
      _VARIABLE,
    )
    return False
  return True
