"""Workers of pytest-xdist that are forked from one process, which has imported the tests."""

import atexit
import json
import multiprocessing.connection
import multiprocessing.forkserver
import os
import shlex
import sys
from collections.abc import Sequence

from tests import programs

_SERVER = multiprocessing.forkserver.ForkServer()
_SERVER.set_forkserver_preload(["tests.preloaded_tests"])
ARGUMENTS = "WALT_T5X_TEST_ARGUMENTS"


def command(arguments: Sequence[str]) -> str:
  """Starts the process with the tests that these arguments of pytest select.

  Returns:
    The command that pytest-xdist starts for a worker, instead of a Python interpreter.
  """
  os.environ[ARGUMENTS] = json.dumps(list(arguments))
  _SERVER.ensure_running()
  del os.environ[ARGUMENTS]
  call = f"from tests import workers; workers.start({_SERVER._forkserver_address!r})"
  return shlex.join([sys.executable, "-B", "-c", call])


def start(address: str) -> None:
  """Forks a worker that reads and writes the streams of this process, and waits for it."""
  programs.share(address)
  # Of a connection, the descriptor is passed to the worker.
  streams = [
    multiprocessing.connection.Connection(
      os.dup(number), readable=not number, writable=bool(number)
    )
    for number in (0, 1)
  ]
  worker = multiprocessing.get_context("forkserver").Process(target=_work, args=streams)
  worker.start()
  for stream in streams:
    stream.close()
  os.close(0)
  os.close(1)
  worker.join()
  sys.exit(worker.exitcode)


def _work(*streams: multiprocessing.connection.Connection) -> None:
  for number, stream in enumerate(streams):
    os.dup2(stream.fileno(), number)
    stream.close()
  sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)
  # What execnet has an interpreter do: the line is a string with the source of its server.
  exec(eval(sys.stdin.readline()), {"__name__": "__main__"})
  # The shutdown of an interpreter, which a forked process would skip.
  atexit._run_exitfuncs()
