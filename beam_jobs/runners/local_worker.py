"""The worker process of a job on several local processes, and its log: warnings, without those that mean nothing here.

Beam's worker logs every connection, and every warning twice: on its stderr, which is the job's, and through the job.
Several of its parts print errors that a user can fix with tracebacks; the launcher prints their message instead.
"""

import contextlib
import logging
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO, cast

from walt_t5x.files.mismatch import Mismatch
from walt_t5x.files.store_errors import CannotWrite

_BEAMS = "apache_beam.runners.worker.sdk_worker_main"
_MEANINGLESS = (
  "No semi_persistent_directory found",  # Only containers have one.
  "Worker: severity",  # The worker has printed it.
)
# Such an error in what Beam says: its class, and its message.
FIXABLE = re.compile(
  rf"\b({CannotWrite.__name__}|{Mismatch.__name__}): (.*?)"
  r"(?:\s*\[while running |\n\n(?:During handling|The above exception)|\nTraceback|\Z)",
  re.DOTALL,
)


def log_warnings() -> None:
  """Logs warnings on stderr. To be called before Beam is imported, which would log everything."""
  handler = logging.StreamHandler()
  handler.setLevel(logging.WARNING)
  handler.setFormatter(logging.Formatter("%(levelname)s:%(name)s:%(message)s"))
  handler.addFilter(lambda record: not record.getMessage().startswith(_MEANINGLESS))
  handler.addFilter(lambda record: not _is_fixable(record))
  logging.getLogger().addHandler(handler)


def _is_fixable(record: logging.LogRecord) -> bool:
  """Whether Beam logs an error that the launcher explains."""
  if not record.name.startswith("apache_beam") or record.levelno < logging.ERROR:
    return False
  return FIXABLE.search(logging.Formatter().format(record)) is not None


class _Stderr:
  """Stderr of a worker, without tracebacks of errors that the launcher explains."""

  def __init__(self, stream: TextIO):
    self._stream = stream

  def write(self, text: str) -> int:
    if text.startswith("Traceback ") and FIXABLE.search(text):
      return len(text)
    return self._stream.write(text)

  def __getattr__(self, name: str) -> Any:
    return getattr(self._stream, name)


@contextlib.contextmanager
def started_by_beam() -> Iterator[None]:
  """Inside the block, `--direct_running_mode=multi_processing` starts this module in place of Beam's worker."""
  from apache_beam.transforms import environments

  kind = environments.SubprocessSDKEnvironment
  original = kind.from_command_string

  def ours(command_string: str) -> Any:
    return original(command_string.replace(_BEAMS, __name__))

  kind.from_command_string = ours
  try:
    yield
  finally:
    kind.from_command_string = original


def main() -> None:
  """Runs Beam's worker."""
  sys.stderr = cast("TextIO", _Stderr(sys.stderr))
  log_warnings()
  from apache_beam.runners.worker import sdk_worker_main

  sdk_worker_main.main(sys.argv)


if __name__ == "__main__":
  main()
