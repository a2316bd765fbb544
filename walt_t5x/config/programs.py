"""What the programs share: the parser, the end after an error, and the functions that gin files name."""

import argparse
import contextlib
import sys
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


def register(**functions: Callable[..., Any]) -> None:
  """Adds functions to the main module, where gin files find them: `import __main__ as train_script`."""
  vars(sys.modules["__main__"]).update(functions)
