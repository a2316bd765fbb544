"""Definition of a mutant; reasons for survivors refer to existing code. No mutant is run here."""

import tomllib
from pathlib import Path

import pytest

from benchmarks import mutation, mutation_runner

ROOT = Path(__file__).resolve().parents[1]
CONFIG = tomllib.loads(mutation.CONFIG.read_text(encoding="utf-8"))
SOURCE = '''
def f(x: int | None, *, scale: float = 1.0) -> float:
  """Scales."""
  if x is None:
    raise ValueError("got nothing, expected a number" + str(scale))
  y: float = x * scale
  return y
'''


@pytest.mark.parametrize(
  ("was", "now", "changes"),
  [
    ("int | None", "int & None", False),
    ("y: float", "y: int", False),
    ("-> float", "-> int", False),
    ("Scales", "XX", False),
    ('" + str', '" * str', False),
    ("*, scale", "/, scale", False),
    ("= 1.0", "= 2.0", True),
    ("x is None", "x is not None", True),
    ("x * scale", "x / scale", True),
    ("ValueError", "KeyError", True),
    ("return y", "pass", True),
  ],
)
def test_a_mutant_changes_behavior(was, now, changes):
  assert was in SOURCE
  mutated = SOURCE.replace(was, now)
  assert (mutation_runner.behavior(mutated) != mutation_runner.behavior(SOURCE)) == changes


def test_invalid_python_is_not_a_mutant():
  assert mutation_runner.behavior("def f(:") is None


def test_a_statement_is_its_lines_and_a_block_its_head():
  source = "def f(\n  x,\n):\n  y = (\n    x +\n    1\n  )\n  return y\n"
  expected = {1: (1, 3), 2: (1, 3), 4: (4, 7), 6: (4, 7), 8: (8, 8)}
  for line, (first, last) in expected.items():
    assert mutation_runner.statement_lines(source, line) == range(first, last + 1), line


def test_modules_and_their_tests_exist():
  for module, tests in CONFIG["tests"].items():
    assert (ROOT / module).is_file(), module
    for test in tests:
      file, _, name = test.partition("::")
      assert f"def {name.split('[')[0]}" in (ROOT / file).read_text(encoding="utf-8"), test


def test_every_reason_refers_to_an_existing_line():
  for module, was, now in mutation.reasons():
    lines = (ROOT / module).read_text(encoding="utf-8").splitlines()
    complete = " ".join(line.strip() for line in lines)
    assert module in CONFIG["tests"] and was in complete, (module, was)
    assert was != now
  for kind, reason in mutation.reasons().values():
    assert kind in mutation.CLASSES and len(reason) > 10
