"""Runs the tests of one module's mutants: a process that has imported everything else forks one child a mutant.

A distributor of cosmic-ray. JAX, TensorFlow and Beam take seconds to import, so the parent imports them, and all of our
modules that do not import the mutated one, before it forks; it never starts a backend, whose threads a fork would lose.
A mutant is written to a copy of the tree. Of the module's tests those run that reach the mutated statement, the
quickest first, until one fails.
"""

import ast
import gc
import importlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

OURS = ("walt_t5x", "data", "beam_jobs", "tests", "benchmarks")
SURVIVED, KILLED, TIMEOUT = "survived", "killed", "timeout"


def behavior(source: str) -> str | None:
  """The syntax tree without what cannot be wrong in behavior.

  That is annotations, docstrings, what errors say, and whether arguments go by place or by name.

  None where the source is no Python.
  """
  try:
    tree = ast.parse(source)
  except SyntaxError:
    return None
  for node in ast.walk(tree):
    if isinstance(node, ast.arg):
      node.annotation = None
    elif isinstance(node, ast.FunctionDef):
      node.returns = None
      _any_way(node.args)
    elif isinstance(node, ast.AnnAssign):
      node.annotation = ast.Constant(None)
    elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
      node.exc.args = []
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
      node.value = ast.Constant(None)
  return ast.dump(tree)


def _any_way(given: ast.arguments) -> None:
  """By place or by name: a loosened signature is right for every call that was."""
  places = [*given.posonlyargs, *given.args]
  defaults = [None] * (len(places) - len(given.defaults)) + given.defaults + given.kw_defaults
  given.args, given.posonlyargs, given.kwonlyargs = [*places, *given.kwonlyargs], [], []
  given.defaults, given.kw_defaults = [value or ast.Constant(...) for value in defaults], []


def statement_lines(source: str, line: int) -> range:
  """Lines of the innermost statement at a line; of a compound one, its head."""
  found = range(line, line + 1)
  for node in ast.walk(ast.parse(source)):
    if not isinstance(node, ast.stmt) or not node.lineno <= line <= node.end_lineno:
      continue
    body = getattr(node, "body", None)
    last = body[0].lineno - 1 if isinstance(body, list) and body else node.end_lineno
    if line <= max(last, node.lineno):
      found = range(node.lineno, max(last, node.lineno) + 1)
  return found


class _Reached:
  """pytest plugin: which test executes which lines of a file, and how long each takes."""

  def __init__(self, file: Path):
    self.file, self.tests, self.failed = str(file), {}, []
    self.at_import: set[int] = set()
    self.fixtures: dict[str, set[int]] = {}
    self._lines = self.at_import

  def trace(self, frame, event, argument):
    return self._line if frame.f_code.co_filename == self.file else None

  def _line(self, frame, event, argument):
    self._lines.add(frame.f_lineno)
    return self._line

  def pytest_runtest_setup(self, item):
    # A fixture of the module serves the tests after the one that made it.
    self._lines = self.fixtures.setdefault(item.nodeid.split("::")[0], set())

  def pytest_runtest_call(self, item):
    self._lines = set()
    self.tests[item.nodeid] = [0.0, self._lines]

  def pytest_runtest_logreport(self, report):
    if report.failed:
      self.failed.append(report.nodeid)
    if report.when == "call" and report.nodeid in self.tests:
      self.tests[report.nodeid][0] = report.duration

  def result(self) -> dict[str, Any]:
    here = [name for name, module in sys.modules.items() if module is not None]
    return {
      "failed": self.failed,
      "at_import": sorted(self.at_import),
      "tests": {
        name: {
          "seconds": seconds,
          "lines": sorted(lines | self.fixtures.get(name.split("::")[0], set())),
        }
        for name, (seconds, lines) in self.tests.items()
      },
      "modules": here,
    }


class _Chosen:
  """pytest plugin: only these tests, in this order; and which one failed."""

  def __init__(self, order: Sequence[str], known: Iterable[str]):
    self._rank = {name: rank for rank, name in enumerate(order)}
    self._bases = {name.split("[")[0]: rank for rank, name in enumerate(order)}
    self._known = set(known)
    self.killer = ""

  def pytest_collection_modifyitems(self, items):
    def rank(item):
      # A mutant may change a parameter and with it the test's name.
      other = None if item.nodeid in self._known else self._bases.get(item.nodeid.split("[")[0])
      return self._rank.get(item.nodeid, other)

    items[:] = sorted((item for item in items if rank(item) is not None), key=rank)

  def pytest_runtest_logreport(self, report):
    if report.failed and not self.killer:
      self.killer = report.nodeid


def _pytest(folder: Path, files: Sequence[str], plugin: Any, *flags: str) -> int:
  import pytest

  temporary = folder.parent / "tmp"
  options = ["-q", "-o", "addopts=", "-p", "no:cacheprovider", f"--basetemp={temporary}"]
  return int(pytest.main([*options, *flags, *files], plugins=[plugin]))


def in_child(
  folder: Path, work: Callable[[], tuple[int, str]], *, timeout: float, log: Path
) -> tuple[int | None, str]:
  """(exit code, text) of `work` in a fork with the copy of the tree as its folder; code None where it hung."""
  answer = folder.parent / "answer"
  answer.unlink(missing_ok=True)
  child = os.fork()
  if not child:
    os.setsid()
    out = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    os.dup2(out, 1)
    os.dup2(out, 2)
    code = 70
    try:
      enter(folder)
      code, text = work()
      answer.write_text(text)
    finally:
      sys.stdout.flush()
      os._exit(code)
  waited, looked, pause = 0.0, time.monotonic(), 0.002
  while True:
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
      code = os.waitstatus_to_exitcode(status)
      break
    # Time in which all of us were stopped does not count.
    now = time.monotonic()
    waited, looked = waited + min(now - looked, 1.0), now
    if waited > timeout:
      os.killpg(child, signal.SIGKILL)
      os.waitpid(child, 0)
      return None, ""
    time.sleep(pause)
    pause = min(pause * 1.2, 0.05)
  try:
    # What the tests left running.
    os.killpg(child, signal.SIGKILL)
  except ProcessLookupError:
    pass
  return code, answer.read_text() if answer.exists() else ""


def enter(folder: Path) -> None:
  """Makes a copy of the tree the place that our modules come from."""
  os.chdir(folder)
  here = str(Path(__file__).resolve().parents[1])
  sys.path[:] = [str(folder), *(p for p in sys.path if p not in ("", here, str(folder)))]
  for name in [name for name in sys.modules if name.split(".")[0] == "benchmarks"]:
    del sys.modules[name]


def undisturbed(folder: Path, module: str, tests: Sequence[str], log: Path) -> dict[str, Any]:
  """Runs the tests without a mutant: their times, the lines that each reaches, the modules that they import.

  Raises:
    RuntimeError: if one fails.
  """

  def work():
    plugin = _Reached(folder / module)
    threading.settrace(plugin.trace)
    sys.settrace(plugin.trace)
    code = _pytest(folder, tests, plugin)
    sys.settrace(None)
    return code, json.dumps(plugin.result())

  code, text = in_child(folder, work, timeout=1800, log=log)
  if code or not text:
    raise RuntimeError(
      f"{module}: its tests fail without a mutant (exit {code}, {log}):\n{log.read_text()[-3000:]}"
    )
  return json.loads(text)


def import_others(modules: Iterable[str]) -> None:
  """Imports what is not ours; what cannot be imported by itself is left to the children."""
  for name in modules:
    if name.split(".")[0] in OURS or name.startswith(("_pytest", "__", "pydevd")):
      continue
    try:
      importlib.import_module(name)
    except (Exception, SystemExit):
      continue


def import_ours(folder: Path, module: str, modules: Iterable[str]) -> None:
  """Imports those of our modules that do not import the mutated one, under the tests' import hook."""
  enter(folder)
  importlib.import_module("tests.conftest")
  mutated = module.removesuffix(".py").replace("/", ".")
  ours = [name for name in modules if name.split(".")[0] in OURS and not name.startswith("tests")]
  imports = {name: _imports(folder, name) for name in ours}
  reaching = {mutated}
  while more := {n for n in ours if n not in reaching and imports[n] & reaching}:
    reaching |= more
  for name in ours:
    if name not in reaching:
      importlib.import_module(name)
  loaded = sorted(reaching & sys.modules.keys())
  if loaded:
    raise RuntimeError(f"{loaded} were imported before the mutant of {mutated}")
  # The children need not walk, and so copy, what the parent has made.
  gc.collect()
  gc.freeze()


def _imports(folder: Path, name: str) -> set[str]:
  file = folder / (name.replace(".", "/") + ".py")
  if not file.exists():
    file = folder / name.replace(".", "/") / "__init__.py"
  found: set[str] = set()
  if file.exists():
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
      if isinstance(node, ast.Import):
        found |= {alias.name for alias in node.names}
      elif isinstance(node, ast.ImportFrom) and node.module:
        found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
  return found


class ForkDistributor:
  """cosmic-ray's `Distributor` over one module; see the head of this file."""

  def __init__(self, folder: Path, module: str, tests: Sequence[str], measured: Mapping[str, Any]):
    self._folder, self._module, self._tests = folder, module, list(tests)
    self._measured = measured
    self._file = folder / module
    self._source = self._file.read_text(encoding="utf-8")
    self._behavior = behavior(self._source)
    self._log = folder.parent / "mutant.log"

  def order(self, line: int) -> list[str]:
    """All tests of the module: those that reach the statement at a line before the others, the quickest file first.

    What a test reaches is not all that it depends on: results are cached, and TensorFlow runs code of its own.
    """
    lines, known = set(statement_lines(self._source, line)), self._measured["tests"]
    at_import = bool(lines & set(self._measured["at_import"]))
    reached = {name for name, test in known.items() if at_import or lines & set(test["lines"])}
    cost: dict[tuple[bool, str], float] = {}
    place = {name: (name not in reached, name.split("::")[0]) for name in known}
    for name, test in known.items():
      cost[place[name]] = cost.get(place[name], 0.0) + test["seconds"]

    def key(name: str) -> tuple[bool, float, str, float]:
      far, file = place[name]
      return far, cost[place[name]], file, known[name]["seconds"]

    return sorted(known, key=key)

  def __call__(
    self, pending_work, test_command, timeout, distributor_config, on_task_complete
  ) -> None:
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator
    from cosmic_ray.work_item import TestOutcome, WorkerOutcome, WorkResult

    outcome, killer = self.run(self._source, 1, timeout)
    if outcome != SURVIVED:
      raise RuntimeError(f"{self._module}: {killer} fails without a mutant where mutants run")
    for item in pending_work:
      (spec,) = item.mutations
      operator = get_operator(spec.operator_name)(**(spec.operator_args or {}))
      mutated = mutate_code(self._source, operator, spec.occurrence)
      same = mutated is None or behavior(mutated) in (None, self._behavior)
      if same:
        on_task_complete(
          item.job_id,
          WorkResult(worker_outcome=WorkerOutcome.SKIPPED, output="no behavior is changed"),
        )
        continue
      outcome, output = self.run(mutated, spec.start_pos[0], timeout)
      survived = outcome == SURVIVED
      result = WorkResult(
        worker_outcome=WorkerOutcome.NORMAL,
        test_outcome=TestOutcome.SURVIVED if survived else TestOutcome.KILLED,
        output=output,
        diff=_diff(self._source, mutated),
      )
      on_task_complete(item.job_id, result)

  def run(self, mutated: str, line: int, timeout: float) -> tuple[str, str]:
    """(outcome, the test that failed or what there is to say) of one mutant."""
    order = self.order(line)
    seconds = sum(self._measured["tests"][name]["seconds"] for name in order)
    # In the order of their files; the plugin leaves out what does not reach the mutant.
    files = list(dict.fromkeys(name.split("::")[0] for name in order))
    named = [test for file in files for test in self._tests if test.split("::")[0] == file]

    def work():
      sys.dont_write_bytecode = True
      plugin = _Chosen(order, self._measured["tests"])
      return _pytest(self._folder, named, plugin, "-x"), plugin.killer

    self._file.write_text(mutated, encoding="utf-8")
    for stale in (self._file.parent / "__pycache__").glob(f"{self._file.stem}.*"):
      stale.unlink()
    try:
      code, killer = in_child(self._folder, work, timeout=timeout + 4 * seconds, log=self._log)
    finally:
      self._file.write_text(self._source, encoding="utf-8")
    if code == 0:
      return SURVIVED, ""
    if code is None:
      return KILLED, TIMEOUT
    return KILLED, killer or f"exit {code}"


def _diff(before: str, after: str) -> str:
  """The lines that differ: '- was' and '+ now', without their indentation."""
  import difflib

  lines = difflib.unified_diff(before.splitlines(), after.splitlines(), n=0, lineterm="")
  return "\n".join(
    f"{line[0]} {line[1:].strip()}"
    for line in lines
    if line[:1] in "+-" and line[:3] not in ("+++", "---")
  )
