"""Two operators besides cosmic-ray's own: a statement that acts is left out, a call loses one of its keyword arguments.

cosmic-ray changes operators and numbers. Code that writes files and hands values on has few of either.
"""

from collections.abc import Iterator
from typing import Any

import parso
from cosmic_ray.operators.operator import Example, Operator

PROVIDER = "project"


class LeaveOutStatement(Operator):
  """A bare call, an augmented assignment, an assignment to a field or an element becomes `pass`."""

  def mutation_positions(self, node):
    if node.type == "simple_stmt" and self._acts(node.children[0]):
      yield node.children[0].start_pos, node.children[0].end_pos

  @staticmethod
  def _acts(node: Any) -> bool:
    if node.type == "atom_expr":
      return node.children[-1].type == "trailer" and node.children[-1].children[0] == "("
    if node.type != "expr_stmt":
      return False
    target, operator = node.children[:2]
    return operator.type == "operator" and (operator != "=" or target.type == "atom_expr")

  def mutate(self, node, index):
    nothing = parso.parse("pass").get_first_leaf()
    nothing.prefix = node.get_first_leaf().prefix
    node.children[0] = nothing
    return node

  @classmethod
  def examples(cls):
    return (
      Example("f(1)\n", "pass\n"),
      Example("x += 1\n", "pass\n"),
      Example("a.b = 1\n", "pass\n"),
    )


class LeaveOutKeyword(Operator):
  """f(x, a=1) -> f(x)."""

  @staticmethod
  def _keywords(node: Any) -> list[Any]:
    if node.type != "trailer" or node.children[0] != "(" or len(node.children) != 3:
      return []
    inside = node.children[1]
    given = inside.children if inside.type == "arglist" else [inside]
    return [n for n in given if n.type == "argument" and n.children[1] == "="]

  def mutation_positions(self, node):
    for argument in self._keywords(node):
      yield argument.start_pos, argument.end_pos

  def mutate(self, node, index):
    argument = self._keywords(node)[index]
    if node.children[1] is argument:
      del node.children[1]
      return node
    siblings = node.children[1].children
    at = siblings.index(argument)
    # With the comma behind it, or before it where it is the last.
    del siblings[at : at + 2]
    if at == len(siblings) and siblings:
      del siblings[-1]
    return node

  @classmethod
  def examples(cls):
    return (
      Example("f(x, a=1)", "f(x)"),
      Example("f(a=1, b=2)", "f( b=2)"),
      Example("f(a=1)", "f()"),
    )


class Provider:
  """As cosmic-ray asks for operators."""

  _operators = {"LeaveOutStatement": LeaveOutStatement, "LeaveOutKeyword": LeaveOutKeyword}  # noqa: RUF012

  def __iter__(self) -> Iterator[str]:
    return iter(self._operators)

  def __getitem__(self, name: str) -> type[Operator]:
    return self._operators[name]


def install() -> None:
  """Makes them known to cosmic-ray in this process."""
  from cosmic_ray import plugins

  plugins.OPERATOR_PROVIDERS[PROVIDER] = Provider()
