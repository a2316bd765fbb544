"""Starts, finds and kills the local processes of the runners that preprocessing is tested on.

`portable()` is a job service and a pool of external workers, each a separate process, as on a cluster: the launcher
sends the pipeline over gRPC, and the pool starts workers that share only files with it. No Java, no container.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Parts of the command lines of Beam's worker processes, local and in a pool.
_WORKER_MARKS = ("local_worker", "sdk_worker_main", "SdkHarness(")
IN_PROCESS = ("--runner=FnApiRunner",)
TWO_WORKERS = (
  "--runner=FnApiRunner",
  "--direct_running_mode=multi_processing",
  "--direct_num_workers=2",
)


def environment() -> dict[str, str]:
  """Environment of every process."""
  python_path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
  return os.environ | {
    "JAX_PLATFORMS": "cpu",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "PYTHONPATH": python_path,
  }


def descendants(pid: int) -> dict[int, str]:
  """Descendants of a process, with their command lines."""
  parents, names = {}, {}
  for entry in Path("/proc").iterdir():
    if entry.name.isdigit():
      with contextlib.suppress(OSError, IndexError):
        stat = (entry / "stat").read_text()
        parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
        names[int(entry.name)] = (entry / "cmdline").read_bytes().decode(errors="replace")
  found = {}
  for child in parents:
    above = child
    while above in parents and above != pid:
      above = parents[above]
    if above == pid and child != pid and child in names:
      found[child] = names[child]
  return found


def workers_of(pid: int) -> list[int]:
  """Beam's worker processes among the descendants of a process."""
  found = []
  for child, name in descendants(pid).items():
    # The shell with which Beam starts a worker has the same text in its command line.
    shell = name.split("\0")[0].endswith("sh")
    if not shell and any(mark in name for mark in _WORKER_MARKS):
      found.append(child)
  return sorted(found)


def kill(pids: Sequence[int]) -> None:
  """Sends SIGKILL; processes that have exited are skipped."""
  for pid in pids:
    with contextlib.suppress(ProcessLookupError):
      os.kill(pid, signal.SIGKILL)


class Process:
  """A process that writes its output to a file."""

  def __init__(self, argv: Sequence[str], log: Path):
    self.log = log
    with log.open("a") as out:
      self._process = subprocess.Popen(
        argv, cwd=ROOT, env=environment(), stdout=out, stderr=out, stdin=subprocess.DEVNULL
      )
    self.pid = self._process.pid
    self.started = time.monotonic()

  @property
  def running(self) -> bool:
    return self._process.poll() is None

  def wait(self, seconds: float) -> int | None:
    """The exit code; None if it is still running."""
    with contextlib.suppress(subprocess.TimeoutExpired):
      return self._process.wait(timeout=seconds)
    return None

  def kill(self, *, below: bool = True) -> None:
    """Sends SIGKILL to the process and to its descendants."""
    left = list(descendants(self.pid)) if below else []
    self._process.kill()
    self._process.wait()
    kill(left)

  def must_finish(self, seconds: float = 1200) -> float:
    """Seconds until it exited successfully.

    Raises:
      RuntimeError: if it failed or timed out, with the end of its output.
    """
    code = self.wait(seconds)
    if code != 0:
      self.kill()
      state = f"runs after {seconds:g} s" if code is None else f"exited with {code}"
      raise RuntimeError(f"{self.log.name}: the process {state}:\n{self.tail()}")
    return time.monotonic() - self.started

  def tail(self, characters: int = 3000) -> str:
    return self.log.read_text(errors="replace")[-characters:]


def free_port() -> int:
  """An unused port."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    return free.getsockname()[1]


@contextlib.contextmanager
def portable(folder: Path) -> Iterator[list[str]]:
  """Starts a job service and a pool of external workers; yields the flags of a job that runs there.

  Args:
    folder: folder of their logs.

  Raises:
    RuntimeError: if one of them exits or does not answer.
  """
  service, pool = free_port(), free_port()
  programs = {
    "beam_jobs.job_service": (f"--port={service}", service),
    "beam_jobs.worker_pool": (f"--port={pool}", pool),
  }
  started: list[Process] = []
  try:
    for module, (flag, _) in programs.items():
      log = folder / f"{module.rpartition('.')[2]}.log"
      started.append(Process([sys.executable, "-m", module, flag], log))
    for process, (_, port) in zip(started, programs.values(), strict=True):
      _await_port(process, port)
    yield [
      "--runner=PortableRunner",
      f"--job_endpoint=localhost:{service}",
      "--environment_type=EXTERNAL",
      f"--environment_config=localhost:{pool}",
    ]
  finally:
    for process in started:
      process.kill()


def _await_port(process: Process, port: int, seconds: float = 120) -> None:
  deadline = time.monotonic() + seconds
  while True:
    with contextlib.suppress(OSError), socket.create_connection(("localhost", port), 1):
      return
    if not process.running or time.monotonic() > deadline:
      raise RuntimeError(f"nothing answers on port {port}:\n{process.tail()}")
    time.sleep(0.1)
