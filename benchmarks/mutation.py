"""How many mutants of the modules in mutation.toml the tests kill, with cosmic-ray.

  pip install cosmic-ray==8.7.0                     # into a venv beside the project's; it is in no lock
  python -m benchmarks.mutation                     # goes on where it was stopped
  python -m benchmarks.mutation --modules data/rows.py --again   # survivors of one module once more
  python -m benchmarks.mutation --report            # writes the tables of what is measured so far

Writes benchmarks/mutation.{json,md}. Results are kept by the module's code, so a module whose code changed is measured
again (comments, docstrings, messages, annotations and imports may change: none of them is mutated). `--again` runs the
survivors after tests were added. Every survivor needs a reason in mutation_survivors.toml; the command fails where one
is missing, or where a reason has no survivor any more.

cosmic-ray makes the mutants and keeps the session (one SQLite file a module, which `cr-report` reads too);
`benchmarks.mutation_runner` runs the tests. mutmut was tried and left: it does not mutate decorated functions, which
here are the `@nn.compact` bodies of all layers, and it forks after JAX has started its threads, so that mutants hang.
"""

import argparse
import ast
import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
CONFIG, REASONS = HERE / "mutation.toml", HERE / "mutation_survivors.toml"
Key = tuple[str, str, str]
# Why a survivor may stay.
CLASSES = {
  "equivalent": "no input tells it from the code",
  "speed": "only memory, time or the size of a block",
  "layout": "white space of a file that is read as JSON",
  "tolerance": "a constant that a result depends on less than any law may ask",
}


class _MutatedCode(ast.NodeTransformer):
  """Leaves of a module's tree what mutants are made of."""

  def visit_Import(self, node: ast.AST) -> None:
    return None

  visit_ImportFrom = visit_Import

  def visit_arg(self, node: ast.arg) -> ast.arg:
    return ast.arg(node.arg)

  def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
    node.returns = None
    return self.generic_visit(node)

  def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
    node.annotation = ast.Constant(None)
    return self.generic_visit(node)

  def visit_Constant(self, node: ast.Constant) -> ast.Constant:
    return ast.Constant("" if isinstance(node.value, str) else node.value)

  def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.Constant:
    return ast.Constant("")

  def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
    node = self.generic_visit(node)
    return None if isinstance(node.value, ast.Constant) else node


def code_digest(text: str) -> str:
  """Names a module's code, without what is not mutated: comments, strings, annotations, imports."""
  tree = _MutatedCode().visit(ast.parse(text))
  return hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:12]


def session_file(folder: Path, module: str) -> Path:
  """Where the results of a module as it is now are kept."""
  digest = code_digest((ROOT / module).read_text(encoding="utf-8"))
  return folder / "sessions" / f"{module.replace('/', '.')}.{digest}.sqlite"


def fill(database: Any, module: str, config: Mapping[str, Any]) -> None:
  """All mutants of a module; those of the operators that are left out are marked as skipped."""
  from cosmic_ray.commands.init import init
  from cosmic_ray.work_item import WorkerOutcome, WorkResult

  with contextlib.chdir(ROOT):
    init([Path(module)], database, {})
  excluded = re.compile("|".join(config["filters"]["operators-filter"]["exclude-operators"]))
  skipped = [
    item.job_id
    for item in database.work_items
    if any(excluded.match(mutation.operator_name) for mutation in item.mutations)
  ]
  result = WorkResult(worker_outcome=WorkerOutcome.SKIPPED, output="operator left out")
  database.set_multiple_results(skipped, result)


class Progress:
  """One line: what is done, the rate and when it ends."""

  def __init__(self, total: int):
    self.total, self.done, self.survived = total, 0, 0
    self._started = self._shown = time.monotonic()

  def step(self, module: str, survived: bool) -> None:
    self.done += 1
    self.survived += survived
    now = time.monotonic()
    if now - self._shown < (1 if sys.stderr.isatty() else 20) and self.done < self.total:
      return
    self._shown = now
    rate = self.done / (now - self._started)
    left = (self.total - self.done) / rate
    line = (
      f"{module}: {self.done}/{self.total} mutants, {self.survived} survive, {rate:.2f}/s, "
      f"{int(left // 60)}:{int(left % 60):02d} left"
    )
    end = "\n" if not sys.stderr.isatty() or self.done == self.total else "\r"
    print(line, end=end, file=sys.stderr, flush=True)


def measure(
  folder: Path, module: str, tests: Sequence[str], config: Mapping[str, Any], *, again: bool
) -> None:
  """Runs the mutants of a module that have no result yet."""
  from cosmic_ray.work_db import use_db
  from cosmic_ray.work_item import TestOutcome

  from benchmarks import mutation_runner as runner
  from benchmarks import work_tree

  file = session_file(folder, module)
  file.parent.mkdir(parents=True, exist_ok=True)
  with use_db(file) as database:
    if not database.num_work_items:
      fill(database, module, config)
    pending = list(database.pending_work_items)
    if again:
      pending += [
        item
        for item, result in database.completed_work_items
        if result.test_outcome == TestOutcome.SURVIVED
      ]
    if not pending:
      return
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    work_tree.copy_tree(ROOT, copy)
    undisturbed = runner.undisturbed(copy, module, tests, folder / "undisturbed.log")
    runner.import_others(undisturbed["modules"])
    seconds = sum(test["seconds"] for test in undisturbed["tests"].values())
    print(f"{module}: {len(undisturbed['tests'])} tests of {seconds:.1f} s", file=sys.stderr)
  child = os.fork()
  if not child:
    code = 1
    try:
      runner.import_ours(copy, module, undisturbed["modules"])
      progress = Progress(len(pending))

      def complete(job: str, result: Any) -> None:
        database.set_result(job, result)
        progress.step(module, result.test_outcome == TestOutcome.SURVIVED)

      with use_db(file) as database:
        distributor = runner.ForkDistributor(copy, module, tests, undisturbed)
        pending.sort(
          key=lambda item: (item.mutations[0].start_pos, item.mutations[0].operator_name)
        )
        distributor(pending, config["test-command"], config["timeout"], {}, complete)
      code = 0
    except KeyboardInterrupt:
      code = 130
    except BaseException:
      import traceback

      traceback.print_exc()
    finally:
      sys.stderr.flush()
      os._exit(code)
  _, status = os.waitpid(child, 0)
  if code := os.waitstatus_to_exitcode(status):
    raise SystemExit(code)


def changed_lines(diff: str) -> tuple[str, str]:
  """(was, now) of a mutant's diff."""
  lines = diff.splitlines()
  return tuple(
    " ".join(filter(None, (line[2:] for line in lines if line[0] == sign))) for sign in "-+"
  )


def results(folder: Path, module: str) -> dict[str, Any]:
  """Counts of a module and its survivors."""
  from cosmic_ray.work_db import use_db
  from cosmic_ray.work_item import TestOutcome

  file = session_file(folder, module)
  counts, survivors, left = Counter(), Counter(), 0
  if not file.exists():
    return {"module": module, "unmeasured": None}
  with use_db(file) as database:
    left = len(database.pending_work_items)
    for _, result in database.completed_work_items:
      if result.test_outcome is None:
        continue
      counts["mutants"] += 1
      if result.test_outcome == TestOutcome.SURVIVED:
        survivors[(*changed_lines(result.diff), result.output or "")] += 1
      else:
        counts["timeout" if result.output == "timeout" else "killed"] += 1
  return {
    "module": module,
    "mutants": counts["mutants"],
    "killed": counts["killed"],
    "timed_out": counts["timeout"],
    "unmeasured": left,
    "survivors": [
      {"was": was, "now": now, "note": note, "count": count}
      for (was, now, note), count in sorted(survivors.items())
    ],
  }


def reasons() -> dict[Key, tuple[str, str]]:
  """(module, was, now) -> (class, reason). `now` may be a list: one reason for several mutants of a line."""
  found = {}
  raw = tomllib.loads(REASONS.read_text(encoding="utf-8")) if REASONS.exists() else {}
  for entry in raw.get("survivor", ()):
    changes = entry["now"] if isinstance(entry["now"], list) else [entry["now"]]
    for now in changes:
      found[entry["module"], entry["was"], now] = (entry["class"], entry["reason"])
  return found


def judged(measured: Sequence[dict[str, Any]]) -> Iterator[str]:
  """Gives every survivor its reason; yields what is wrong."""
  known, used = reasons(), set()
  for row in measured:
    for survivor in row.get("survivors", ()):
      key = (row["module"], survivor["was"], survivor["now"])
      used.add(key)
      survivor["class"], survivor["reason"] = known.get(key, ("no reason", ""))
      if key not in known:
        yield f"{row['module']}: no reason for the survivor\n  - {key[1]}\n  + {key[2]}"
  complete = {row["module"] for row in measured if row["unmeasured"] == 0}
  for module, was, now in known.keys() - used:
    if module in complete:
      yield f"{module}: a reason without a survivor\n  - {was}\n  + {now}"


def score(row: Mapping[str, Any]) -> float:
  return (row["killed"] + row["timed_out"]) / max(row["mutants"], 1)


def table(measured: Sequence[dict[str, Any]]) -> str:
  """The page: score by module, and every survivor with its reason."""
  rows = [row for row in measured if row["unmeasured"] is not None]
  total = {key: sum(row[key] for row in rows) for key in ("mutants", "killed", "timed_out")}
  lines = [
    "# Mutants that the tests kill",
    "",
    "Written by `python -m benchmarks.mutation`: cosmic-ray 8.7.0, operators and the tests of each module in",
    "`mutation.toml`, and two more operators: a statement is left out, a keyword argument is left out",
    "(`mutation_operators.py`). Not mutated, as they cannot be wrong in behavior: annotations, docstrings, what an",
    "error says, whether arguments go by place or by name; cosmic-ray does not mutate strings. That an error is",
    "raised is mutated through its condition. A replacement that is a TypeError for most operands (`+` to `<<`) is",
    "left out. A mutant that does not import counts as killed, and so does one that runs four times as long as its",
    "tests and 20 s more (timed out).",
    "",
    "| module | mutants | killed | timed out | survive | of these equivalent | score |",
    "| --- | --- | --- | --- | --- | --- | --- |",
  ]
  for row in [
    *rows,
    {"module": "all", **total, "survivors": [s for r in rows for s in r["survivors"]]},
  ]:
    survive = sum(s["count"] for s in row["survivors"])
    equivalent = sum(s["count"] for s in row["survivors"] if s.get("class") == "equivalent")
    lines.append(
      f"| {row['module']} | {row['mutants']} | {row['killed']} | {row['timed_out']} | {survive} | {equivalent} | "
      f"{100 * score(row):.1f}% |"
    )
  lines += ["", "## Survivors", "", *(f"- {kind}: {what}" for kind, what in CLASSES.items()), ""]
  for row in rows:
    if row["survivors"]:
      lines += [
        f"### {row['module']}",
        "",
        "| was | now | class | reason |",
        "| --- | --- | --- | --- |",
      ]
      for s in row["survivors"]:
        was, now = (f"`{s[key].replace('|', chr(92) + '|')}`" for key in ("was", "now"))
        lines.append(f"| {was} | {now} | {s.get('class', '')} | {s.get('reason') or '**none**'} |")
      lines.append("")
  return "\n".join(lines).rstrip() + "\n"


def main() -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  config = tomllib.loads(CONFIG.read_text(encoding="utf-8"))
  tests = config["tests"]
  parser.add_argument(
    "--modules", nargs="+", default=list(tests), choices=list(tests), metavar="FILE"
  )
  parser.add_argument("--again", action="store_true", help="run the survivors once more")
  parser.add_argument("--report", action="store_true", help="run nothing")
  parser.add_argument("--folder", default=str(ROOT / "build/mutation"), help="of the sessions")
  arguments = parser.parse_args()
  from benchmarks import mutation_operators

  mutation_operators.install()
  folder = Path(arguments.folder)
  os.nice(10)
  # Read when JAX is imported. Mutants share what they compile; the quick compiler is enough for a few numbers.
  os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "JAX_COMPILATION_CACHE_DIR": str(folder / "xla"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
  }
  for module in [] if arguments.report else arguments.modules:
    measure(folder, module, tests[module], config["cosmic-ray"], again=arguments.again)
  measured = [results(folder, module) for module in tests]
  problems = list(judged(measured))
  (HERE / "mutation.json").write_text(json.dumps(measured, indent=1) + "\n")
  (HERE / "mutation.md").write_text(table(measured))
  for row in measured:
    if row["unmeasured"] is None:
      print(f"{row['module']:40} not measured")
    else:
      left = f", {row['unmeasured']} not run" if row["unmeasured"] else ""
      print(f"{row['module']:40} {row['mutants']:5} mutants {100 * score(row):5.1f}%{left}")
  print("\n".join(problems), file=sys.stderr)
  return bool(problems)


if __name__ == "__main__":
  raise SystemExit(main())
