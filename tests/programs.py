"""Runs programs in processes forked from one with preloaded libraries, which saves half the time of a short run.

All workers of a run of tests use one such process. `tests/imports_test.py` starts every program in a new interpreter.
"""

import atexit
import dataclasses
import functools
import multiprocessing
import multiprocessing.forkserver
import os
import resource
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["tests.preloaded"])
PEAK = ".peak"
# An environment with one device, as users have; the fake eight are for the other tests.
ONE_DEVICE = {
  "XLA_FLAGS": os.environ.get("XLA_FLAGS", "").replace(
    "--xla_force_host_platform_device_count=8", ""
  )
}
# In front of a command: a job in the background starts with these signals ignored.
FOREGROUND = ["env", "--default-signal=INT,HUP"]
_STARTED: list["Program"] = []


@dataclasses.dataclass(frozen=True)
class Program:
  """A running or finished program.

  Attributes:
    process: its process.
    files: its output on stdout and stderr.
  """

  process: multiprocessing.process.BaseProcess
  files: tuple[str, str]

  def wait(self, timeout: float) -> subprocess.CompletedProcess:
    """Its exit code (negative: the signal) and output, once it has finished.

    Raises:
      TimeoutError: the program has not finished and was killed.
    """
    self.process.join(timeout)
    if self.process.exitcode is None:
      self.process.kill()
      self.process.join()
      raise TimeoutError(f"{self.process.name} ran for {timeout} s\n{self._text(1)[-4000:]}")
    return subprocess.CompletedProcess(
      self.process.name, self.process.exitcode, self._text(0), self._text(1)
    )

  def running(self) -> bool:
    return self.process.exitcode is None

  def _text(self, number: int) -> str:
    return Path(self.files[number]).read_text(encoding="utf-8", errors="replace")


def serve() -> str:
  """Starts the process with the libraries; the address at which those who call `share` with it use the same one."""
  multiprocessing.forkserver.ensure_running()
  return _server()._forkserver_address


def share(address: str) -> None:
  """Programs are forked from the process at this address. It ends with the process that started it."""
  server = _server()
  server.ensure_running = lambda: None
  server._forkserver_address = address
  # Of a process that serves, this descriptor would keep it running.
  server._forkserver_alive_fd = os.open(os.devnull, os.O_RDONLY)


def _server() -> Any:
  return multiprocessing.forkserver._forkserver


@functools.cache
def _outputs(process: int) -> tempfile.TemporaryDirectory:
  """For this process alone: those forked from one that has imported this module delete theirs."""
  return tempfile.TemporaryDirectory(prefix="programs")


def start(
  module: str,
  *arguments: object,
  environment: Mapping[str, str] | None = None,
  work: Path = ROOT,
) -> Program:
  """Starts `python -m module arguments` in the folder `work`, with these changes to the environment."""
  folder = Path(tempfile.mkdtemp(dir=_outputs(os.getpid()).name))
  files = str(folder / "stdout"), str(folder / "stderr")
  for file in files:
    Path(file).touch()  # A test may read it before the program writes.
  variables = dict(os.environ) | dict(environment or {})
  process = _SERVER.Process(
    target=_main, args=(module, [str(a) for a in arguments], variables, files, work), name=module
  )
  process.start()
  program = Program(process, files)
  _STARTED.append(program)
  return program


def run(
  module: str,
  *arguments: object,
  environment: Mapping[str, str] | None = None,
  work: Path = ROOT,
  timeout: float = 280,
) -> subprocess.CompletedProcess:
  """Runs `python -m module arguments` until it ends."""
  return start(module, *arguments, environment=environment, work=work).wait(timeout)


def run_in_a_new_shell(*arguments: object) -> subprocess.CompletedProcess:
  """Runs `python arguments` with a new interpreter and only those environment variables that a login sets."""
  return subprocess.run(
    [sys.executable, "-B", *map(str, arguments)],
    cwd=ROOT,
    env={name: os.environ[name] for name in ("HOME", "PATH") if name in os.environ},
    capture_output=True,
    text=True,
    check=False,
  )


def _main(
  module: str, arguments: list[str], environment: dict[str, str], files: tuple[str, str], work: Path
) -> None:
  for number, file in enumerate(files, 1):
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, number)
    os.close(descriptor)
  # Replaced by pytest, or by a parent that forked.
  sys.stdout, sys.stderr = (
    open(n, "w", encoding="utf-8", buffering=1, closefd=False) for n in (1, 2)
  )
  os.environ.clear()
  os.environ.update(environment)
  os.chdir(work)
  sys.argv = [module, *arguments]
  code = 1
  try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    code = 0
  except SystemExit as end:
    if isinstance(end.code, str):
      print(end.code, file=sys.stderr)
    code = end.code if isinstance(end.code, int) else int(end.code is not None)
  except BaseException:
    sys.excepthook(*sys.exc_info())
  # The shutdown of an interpreter, which a forked process would skip.
  atexit._run_exitfuncs()
  sys.stdout.flush()
  sys.stderr.flush()
  Path(files[0] + PEAK).write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
  sys.exit(code)


@atexit.register
def _kill_what_is_left() -> None:
  """Runs before multiprocessing waits for children: a failed test may have left a program that never ends."""
  for program in _STARTED:
    if program.running():
      program.process.kill()


def peak_memory() -> float:
  """GiB of the largest finished program that was not killed."""
  files = [Path(program.files[0] + PEAK) for program in _STARTED]
  return max((int(f.read_text()) / 2**20 for f in files if f.exists()), default=0.0)


def until(program: Program, happened, *, timeout: float = 240) -> None:
  """Waits until `happened()`; the program must not end before that."""
  deadline = time.monotonic() + timeout
  while not happened():
    assert program.running(), f"ended before it happened: {program.wait(0).stderr[-3000:]}"
    assert time.monotonic() < deadline, "timed out"
    time.sleep(0.02)
