"""The worker process of a job on several local processes, and its log: warnings, without those that mean nothing here.

Beam's worker logs every connection, and every warning twice: on its stderr, which is the job's, and through the job.
"""

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

_BEAMS = "apache_beam.runners.worker.sdk_worker_main"
_MEANINGLESS = (
  "No semi_persistent_directory found",  # Only containers have one.
  "Worker: severity",  # The worker has printed it.
)


def log_warnings() -> None:
  """Logs warnings on stderr. To be called before Beam is imported, which would log everything."""
  handler = logging.StreamHandler()
  handler.setLevel(logging.WARNING)
  handler.setFormatter(logging.Formatter("%(levelname)s:%(name)s:%(message)s"))
  handler.addFilter(lambda record: not record.getMessage().startswith(_MEANINGLESS))
  logging.getLogger().addHandler(handler)


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
  log_warnings()
  from apache_beam.runners.worker import sdk_worker_main

  sdk_worker_main.main(sys.argv)


if __name__ == "__main__":
  main()
