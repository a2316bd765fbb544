"""What the programs share: the parser, the end after an error, and the functions that gin files name."""

import argparse
import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

from walt_t5x.config.gin_config import GinError


def parser(module: str, doc: str | None, **options: Any) -> argparse.ArgumentParser:
  """Parser of `python -m <module>`, whose `--help` begins with the module's docstring."""
  return argparse.ArgumentParser(
    prog=f"python -m {module}",
    description=doc,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    **options,
  )


@contextlib.contextmanager
def user_errors(program: str) -> Iterator[None]:
  """Ends the program with the message of an error that its user can fix, and without a traceback."""
  try:
    yield
  except GinError as error:
    sys.exit(f"The gin configuration is invalid.\n{error}")
  except (ValueError, OSError, ImportError) as error:
    sys.exit(f"{program}: {error}")


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
  """Omits what TensorFlow's C++ libraries say on stderr while they are imported, before their log level applies.

  Only lines of level INFO, and the announcement that they come, are omitted.
  """
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  try:
    saved = os.dup(2)
  except OSError:  # stderr is closed
    yield
    return
  with tempfile.TemporaryFile() as said:
    os.dup2(said.fileno(), 2)
    try:
      yield
    finally:
      sys.stderr.flush()
      os.dup2(saved, 2)
      os.close(saved)
      said.seek(0)
      for line in said:
        if not re.match(rb"I0000 |WARNING: All log messages before absl::InitializeLog", line):
          os.write(2, line)


def register(**functions: Callable[..., Any]) -> None:
  """Adds functions to the main module, where gin files find them: `import __main__ as train_script`."""
  vars(sys.modules["__main__"]).update(functions)
