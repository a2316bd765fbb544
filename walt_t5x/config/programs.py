"""What the programs share: the parser, the end after an error, and the functions that gin files name."""

import contextlib
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from walt_t5x.config import usage
from walt_t5x.config.gin_config import LOCATION, GinError
from walt_t5x.config.waiting import PACE, redirected

_PACKAGES = ("walt_t5x", "data", "beam_jobs")
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
_USER_ERRORS = (ValueError, OSError, ImportError)
_SHOWN_LINES = 3
# Beginnings of libraries' warnings that say nothing new: waits are announced, and metrics have their seconds.
_MEANINGLESS = ("Waiting for previous save to complete took",)


def parser(module: str, doc: str | None, **options: Any) -> usage.Parser:
  """Parser of `python -m <module>`, whose `--help` begins with the module's docstring; see `report_errors`."""
  made = usage.Parser(module, doc, **options)
  report_errors(made.program)
  return made


def debug() -> bool:
  """Whether errors end the program with their traceback: the flag `--debug`."""
  return "--debug" in sys.argv[1:]


@contextlib.contextmanager
def user_errors(program: str, *, exit_code: int = 1) -> Iterator[None]:
  """Ends the program with the message of an error that its user can fix, and without a traceback."""
  try:
    yield
  except _USER_ERRORS as error:
    if debug():
      raise
    if isinstance(error, GinError):
      print(f"The gin configuration is invalid.\n{error}", file=sys.stderr)
      sys.exit(usage.EXIT_CODE)
    if exit_code == 1:
      sys.exit(f"{program}: {error}")
    print(f"{program}: {error}", file=sys.stderr)
    sys.exit(exit_code)


def report_errors(program: str) -> None:
  """From now on, an exception that nobody catches ends this process with a few lines instead of its traceback.

  An error that our own code raises is its message, and Ctrl-C a line. Any other exception may be a bug: its traceback
  goes to a file.
  """

  def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, KeyboardInterrupt) and not debug():
      print(f"\n{program}: interrupted", file=sys.stderr)
      return
    if debug() or not isinstance(error, Exception):
      sys.__excepthook__(kind, error, trace)
      return
    message = str(error).split(LOCATION)[0].strip()
    frames = traceback.extract_tb(trace)
    ours = [frame for frame in frames if _is_ours(frame.filename)]
    if isinstance(error, _USER_ERRORS) and ours and ours[-1] is frames[-1]:
      print(f"{program}: {message}", file=sys.stderr)
      return
    lines = [f"{program}: {kind.__name__}: {message}".splitlines()[:_SHOWN_LINES]]
    if ours:
      where = os.path.relpath(ours[-1].filename, _ROOT)
      lines.append([f"It was raised in or below {where}, line {ours[-1].lineno}."])
    with tempfile.NamedTemporaryFile(
      "w", prefix=f"walt_t5x-{program}-", suffix=".txt", delete=False, encoding="utf-8"
    ) as file:
      file.write(f"{sys.argv}\n{''.join(traceback.format_exception(kind, error, trace))}")
    lines.append([f"This may be a bug. Its traceback is in {file.name}; --debug prints it."])
    print(*(line for part in lines for line in part), sep="\n", file=sys.stderr)

  sys.excepthook = report


def _is_ours(file: str) -> bool:
  relative = os.path.relpath(file, _ROOT)
  return relative.split(os.sep)[0] in _PACKAGES


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
      with redirected(saved):
        yield
    finally:
      sys.stderr.flush()
      os.dup2(saved, 2)
      os.close(saved)
      said.seek(0)
      for line in said:
        if not re.match(rb"I0000 |WARNING: All log messages before absl::InitializeLog", line):
          os.write(2, line)


def quiet_logs() -> None:
  """Omits information that libraries log, and warnings without meaning; what our code and T5X log is kept."""
  from absl import logging
  from absl.logging import converter

  def shown(record: Any) -> bool:
    t5x = getattr(sys.modules.get("t5x"), "__path__", ["/"])[0]
    of_t5x = len(t5x) > 1 and record.pathname.startswith(t5x)
    warns = record.levelno > converter.STANDARD_INFO
    if warns and record.getMessage().startswith(_MEANINGLESS):
      return False
    kept = warns or _is_ours(record.pathname) or of_t5x
    if kept:
      PACE.count()
    return kept

  logging.get_absl_handler().addFilter(shown)


def register(**functions: Callable[..., Any]) -> None:
  """Adds functions to the main module, where gin files find them: `import __main__ as train_script`."""
  vars(sys.modules["__main__"]).update(functions)
