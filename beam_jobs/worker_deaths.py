"""Ends a launcher whose worker process died.

Beam's local runner only logs the death of a worker process (out of memory, SIGKILL) and waits for its answer for ever.
A cluster's runner gives its work to another worker; here the launcher ends with a message and an exit code that
`scripts/keep_training.sh` starts again. Shards that are closed are kept.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any

# EX_TEMPFAIL: the same command goes on where this one was.
EXIT_CODE = 75


@contextlib.contextmanager
def end_with_workers() -> Iterator[None]:
  """Inside the block the process ends at once with `EXIT_CODE` when a local worker process dies."""
  before = threading.excepthook

  def hook(args: Any) -> None:
    before(args)
    if "Worker subprocess exited" in str(args.exc_value):
      print(
        f"preprocess: a worker process died ({args.exc_value}; 137 and -9 are SIGKILL, mostly for want of memory); "
        f"run the same command again: shards that are closed are kept. Exit code {EXIT_CODE}",
        file=sys.stderr,
        flush=True,
      )
      # Beam's threads wait for the worker and cannot be asked to stop.
      os._exit(EXIT_CODE)

  threading.excepthook = hook
  try:
    yield
  finally:
    threading.excepthook = before
