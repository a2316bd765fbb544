"""Ends a job whose worker process died, and the launcher that Ctrl-C interrupts.

Beam's local runner only logs the death of a worker (out of memory, SIGKILL) and waits for its answer indefinitely, in
the launcher as well as in Beam's job service. A cluster's runner reassigns the work to another worker; here the
launcher exits with a message and an exit code that `scripts/keep_training.sh` restarts. After Ctrl-C, Beam's threads
would continue with their shards; the launcher kills its workers and exits. Finished shards are kept.
"""

import contextlib
import functools
import logging
import os
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from walt_t5x.files import locks

# EX_TEMPFAIL: the same command resumes the job.
EXIT_CODE = 75
# A worker that has not connected by then is assumed dead.
CONNECT_SECONDS = 600.0
INTERRUPTED = "interrupted; run the same command again: what is finished is kept"


class WorkerDied(RuntimeError):
  """A worker that died during its work."""


@contextlib.contextmanager
def end_with_workers(
  interrupted: Callable[[], str], *, program: str = "preprocess"
) -> Iterator[None]:
  """Inside the block, the process exits immediately: with `EXIT_CODE` when a worker dies, with 130 after Ctrl-C.

  Detects the death of local worker processes, of workers in a pool whose job service is this process
  (`--job_endpoint=embed`) or `beam_jobs.job_service`, and of workers that a job service reports as `WorkerDied`.
  `interrupted()` is what Ctrl-C says. Messages begin with `program`.
  """
  before = threading.excepthook

  def hook(args: Any) -> None:
    before(args)
    if "Worker subprocess exited" in str(args.exc_value):
      _end(
        program, f"{args.exc_value}; 137 and -9 are SIGKILL, usually because of too little memory"
      )

  threading.excepthook = hook
  try:
    with notice_deaths(), _exit_on_interrupt(interrupted, program):
      yield
  except Exception as error:
    # A job service reports it in the text of its error.
    if WorkerDied.__name__ not in f"{type(error).__name__}: {error}":
      raise
    _end(program, str(error).strip().rpartition(f"{WorkerDied.__name__}: ")[2])
  finally:
    threading.excepthook = before


@contextlib.contextmanager
def _exit_on_interrupt(interrupted: Callable[[], str], program: str) -> Iterator[None]:
  """Inside the block, Ctrl-C prints a line, kills the local workers and exits the process."""
  from apache_beam.runners.portability import local_job_service

  workers: list[subprocess.Popen] = []

  def popen(*args: Any, **options: Any) -> subprocess.Popen:
    # In its own session, a worker does not receive the terminal's Ctrl-C, after which it would print a traceback.
    workers.append(subprocess.Popen(*args, start_new_session=True, **options))
    return workers[-1]

  def leave(number: int, frame: Any) -> None:
    print(f"\n{program}: {interrupted()}", file=sys.stderr, flush=True)
    # The threads of the workers log and raise when these are killed.
    logging.disable()
    threading.excepthook = lambda args: None
    for worker in workers:
      if worker.poll() is None:
        os.killpg(worker.pid, signal.SIGKILL)
    locks.leave(128 + number)

  beam: Any = local_job_service
  main = threading.current_thread() is threading.main_thread()
  before = signal.signal(signal.SIGINT, leave) if main else None
  beam.subprocess = types.SimpleNamespace(Popen=popen)
  try:
    yield
  finally:
    beam.subprocess = subprocess
    if main:
      signal.signal(signal.SIGINT, before)


def _end(program: str, what: str) -> NoReturn:
  print(
    f"{program}: a worker process died ({what}); run the same command again: what is finished is kept. "
    f"Exit code {EXIT_CODE}",
    file=sys.stderr,
    flush=True,
  )
  # Beam's threads wait for the worker and cannot be stopped.
  locks.leave(EXIT_CODE)


@contextlib.contextmanager
def notice_deaths() -> Iterator[None]:
  """Inside the block, Beam's runner in this process fails a job when the control stream of a worker ends early.

  `ControlConnection` reads a worker's responses in a thread. If the stream breaks, the thread ends, but callers keep
  waiting for a response. Here the end of the thread aborts pending and later requests; so does a worker that never
  connects.
  """
  from apache_beam.runners.portability.fn_api_runner import worker_handlers

  connection = worker_handlers.ControlConnection
  read, push = connection._read, connection.push

  @functools.wraps(read)
  def reading(self: Any) -> None:
    try:
      read(self)
    except Exception as error:
      lose(self, f"its control stream broke during its work: {type(error).__name__}")
    else:
      lose(self, "its control stream ended during its work")

  def lose(self: Any, what: str) -> None:
    self.lost = WorkerDied(f"{what}; see the worker's log, and the kernel's log for out of memory")
    for future in list(self._futures_by_id.values()):
      future.abort(self.lost)

  def look_for(self: Any) -> None:
    if self._state == worker_handlers.BeamFnControlServicer.UNSTARTED_STATE:
      lose(self, f"it did not connect within {CONNECT_SECONDS:g} s")

  @functools.wraps(push)
  def pushing(self: Any, req: Any) -> Any:
    future = push(self, req)
    if future is not None and getattr(self, "lost", None) is not None:
      future.abort(self.lost)
    elif self._state == worker_handlers.BeamFnControlServicer.UNSTARTED_STATE:
      timer = threading.Timer(CONNECT_SECONDS, look_for, (self,))
      timer.daemon = True
      timer.start()
    return future

  connection._read, connection.push = reading, pushing
  try:
    yield
  finally:
    connection._read, connection.push = read, push
