"""Runs many commands in forks of one process, each until the program has accepted its flags and files.

python -m tests.commands < commands.json     # [[module, argument, ...], ...] -> [[exit code, output], ...]
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
# Imported before the forks, to save time.
_PRELOADED = (
  "absl.app",
  "gin",
  "apache_beam",
  "walt_t5x.planning.tpu_compile",
  "walt_t5x.planning.run_plan",
  "walt_t5x.evaluation.feature_scores",
  "walt_t5x.generation.preset_export",
  "beam_jobs.preprocess",
)
# Functions that a program calls once it has accepted its flags and files. The fork ends there.
_ACCEPTED = {
  "walt_t5x.train": "walt_t5x.engine.host_memory.runs_on_cpu",
  "walt_t5x.plan": "walt_t5x.config.gin_flags.read",
  "walt_t5x.generate": "walt_t5x.generation.requests.make_requests",
  # Before it imports TensorFlow, which takes seconds, and parses the gin files.
  "walt_t5x.export": "walt_t5x.config.programs.register",
  "walt_t5x.evaluate": "walt_t5x.config.programs.user_errors",
  "beam_jobs.preprocess": "beam_jobs.runners.job_flags.job_of",
  "data.samples": "data.samples.sample_corpus.write_corpus",
}


@contextlib.contextmanager
def started() -> Iterator[Callable[[Sequence[Sequence[str]]], list[tuple[int, str]]]]:
  """A function: commands -> (exit code, stderr) of each; the code is 0 if the program accepts the command."""
  process = subprocess.Popen(
    [sys.executable, "-m", "tests.commands"],
    cwd=ROOT,
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
  )
  questions, answers = process.stdin, process.stdout
  assert questions is not None and answers is not None

  def results(commands: Sequence[Sequence[str]]) -> list[tuple[int, str]]:
    questions.write(json.dumps(commands) + "\n")
    questions.flush()
    return [(code, text) for code, text in json.loads(answers.readline())]

  with process:
    yield results
    questions.close()


def _accept(*arguments: Any, **settings: Any) -> NoReturn:
  sys.stderr.flush()
  os._exit(0)


def _run(module: str, arguments: Sequence[str], output: int) -> int:
  """The exit code of a command, in a fork."""
  os.dup2(output, 1)
  os.dup2(output, 2)
  sys.argv = [module, *arguments]
  owner, _, name = _ACCEPTED[module].rpartition(".")
  setattr(importlib.import_module(owner), name, _accept)
  try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
  except SystemExit as end:
    if isinstance(end.code, str):
      print(end.code, file=sys.stderr)
    return end.code if isinstance(end.code, int) else int(end.code is not None)
  except BaseException:
    traceback.print_exc()
    return 1
  return 0


def main() -> None:
  """Runs the commands of every line of stdin."""
  for name in _PRELOADED:
    importlib.import_module(name)
  gc.freeze()  # A collection in a fork would copy the pages of all objects.
  for line in sys.stdin:
    print(json.dumps([_result(command) for command in json.loads(line)]), flush=True)


def _result(command: Sequence[str]) -> tuple[int, str]:
  with tempfile.TemporaryFile() as file:
    process = os.fork()
    if not process:
      code = _run(command[0], command[1:], file.fileno())
      sys.stderr.flush()
      os._exit(code)
    status = os.waitpid(process, 0)[1]
    file.seek(0)
    return os.waitstatus_to_exitcode(status), file.read().decode()


if __name__ == "__main__":
  main()
