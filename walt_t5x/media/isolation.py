"""Runs a function or a generator in separate processes with a time limit: a hang or a crash raises an exception.

Each process is a new interpreter, never a fork: JAX and Beam use threads, and a fork would copy their locks. It
imports only what the function needs, exits with its parent, and can have a memory limit.
"""

import contextlib
import inspect
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, Pipe
from typing import Any


class WorkerTimeout(RuntimeError):
  """A call that exceeded its time limit; its process was killed."""


class WorkerCrashed(RuntimeError):
  """A process that exited during a call."""


class Isolated:
  """Calls a function in one of several processes, each call with a time limit; safe to share among threads.

  A call whose process exits is repeated once, while no other call runs: if the system killed the process, the memory
  that all of them used together may have been the reason.

  Args:
    function: a module-level function, so that it is pickled by name.
    processes: number of concurrent calls; further callers wait.
    timeout_seconds: time limit per call.
    memory_bytes: address space limit per process; None is unlimited.
  """

  def __init__(
    self,
    function: Callable[..., Any],
    *,
    processes: int,
    timeout_seconds: float,
    memory_bytes: int | None = None,
  ):
    self._function, self._timeout, self._memory = function, timeout_seconds, memory_bytes
    self._idle: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
    for _ in range(processes):
      self._idle.put(None)
    self._processes, self._closed = processes, False
    self._alone = threading.Lock()

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    """Returns what the function returns, or raises its exception, WorkerTimeout or WorkerCrashed."""
    with contextlib.suppress(WorkerCrashed):
      return self._call(args, kwargs)
    with self._alone:
      others = [self._idle.get() for _ in range(self._processes - 1)]
      try:
        return self._call(args, kwargs)
      finally:
        for worker in others:
          self._idle.put(worker)

  def _call(self, args: Any, kwargs: Any) -> Any:
    with self._worker() as worker:
      worker.send((args, kwargs))
      done, value = worker.receive(self._timeout)
    if done:
      return value
    raise value

  def stream(self, *args: Any, **kwargs: Any) -> Iterator[Any]:
    """Yields what a generator function yields, each item within the time limit.

    The process waits while the caller works. Nothing is repeated if it exits.

    Raises:
      WorkerTimeout: an item took too long.
      WorkerCrashed: the process ended.
      Exception: the generator's.
    """
    with self._worker() as worker:
      worker.send((args, kwargs))
      done, value = worker.receive(self._timeout)
      while done is None:
        yield value
        done, value = worker.receive(self._timeout)
    if not done:
      raise value

  @contextlib.contextmanager
  def _worker(self) -> "Iterator[_Worker]":
    """A process that no other call uses; it is killed if the block raises or is left early."""
    worker = self._idle.get()
    try:
      if self._closed:
        raise RuntimeError("the pool is closed")
      if worker is None or not worker.alive:
        worker = _Worker(self._function, self._memory)
      yield worker
    except BaseException:
      if worker is not None:
        worker.end()
      worker = None
      raise
    finally:
      self._idle.put(worker)

  def close(self) -> None:
    """Ends the processes after running calls finish."""
    self._closed = True
    for _ in range(self._processes):
      worker = self._idle.get()
      if worker is not None:
        worker.end()
    for _ in range(self._processes):
      self._idle.put(None)


class _Worker:
  """One process and the connection to it."""

  def __init__(self, function: Callable[..., Any], memory_bytes: int | None):
    self._line, theirs = Pipe()
    with theirs:
      command = [sys.executable, "-m", "walt_t5x.media.isolation", str(theirs.fileno())]
      # The child imports modules from the same folders as the parent, whatever its working directory.
      path = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
      self._process = subprocess.Popen(
        [*command, str(memory_bytes or 0)],
        pass_fds=(theirs.fileno(),),
        stdin=subprocess.DEVNULL,
        # Ctrl-C in a terminal would end it too, and the caller would report a crash of the decoder.
        start_new_session=True,
        # One thread per process: several processes share the machine.
        env=os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
      )
    _send(self._line, function)

  @property
  def alive(self) -> bool:
    """Whether the process runs."""
    return self._process.poll() is None

  def send(self, arguments: Any) -> None:
    """Starts a call."""
    with self._watched():
      _send(self._line, arguments)

  def receive(self, timeout: float) -> tuple[bool | None, Any]:
    """(True, value), (False, exception), or (None, item of a generator)."""
    with self._watched():
      if not self._line.poll(timeout):
        raise WorkerTimeout(f"no answer within {timeout:g} seconds")
      return _receive(self._line)

  @contextlib.contextmanager
  def _watched(self) -> Iterator[None]:
    try:
      yield
    except (EOFError, OSError) as error:
      with contextlib.suppress(subprocess.TimeoutExpired):
        self._process.wait(5)
      raise WorkerCrashed(f"the process ended with code {self._process.returncode}") from error

  def end(self) -> None:
    """Kills the process immediately."""
    self._line.close()
    if self.alive:
      self._process.kill()
    self._process.wait()


def _send(line: Connection, value: Any) -> None:
  """Sends a pickle; arrays and byte strings follow out of band, without a copy."""
  buffers: list[pickle.PickleBuffer] = []
  head = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
  line.send((head, [buffer.raw().nbytes for buffer in buffers]))
  for buffer in buffers:
    if buffer.raw().nbytes:
      line.send_bytes(buffer.raw())


def _receive(line: Connection) -> Any:
  head, sizes = line.recv()
  return pickle.loads(head, buffers=[line.recv_bytes() if size else b"" for size in sizes])


def _serve(line: Connection) -> None:
  function = _receive(line)
  while True:
    args, kwargs = _receive(line)
    try:
      value = function(*args, **kwargs)
      if inspect.isgenerator(value):
        for item in value:
          _send(line, (None, item))
        value = None
      answer = (True, value)
    except Exception as error:
      answer = (False, error)
    try:
      _send(line, answer)
    except (pickle.PicklingError, TypeError, AttributeError):
      # An exception that cannot be pickled is sent as text.
      _send(line, (False, RuntimeError(f"{type(answer[1]).__name__}: {answer[1]}")))


def _limit_memory(limit: int) -> None:
  import resource

  _, hard = resource.getrlimit(resource.RLIMIT_AS)
  with contextlib.suppress(ValueError, OSError):  # Not every system supports the limit.
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
  # A crash is reported by its signal; no core file is written.
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
  if int(sys.argv[2]):
    _limit_memory(int(sys.argv[2]))
  # This process exits when the parent closes the connection or exits.
  with contextlib.suppress(EOFError, OSError):
    _serve(Connection(int(sys.argv[1])))
