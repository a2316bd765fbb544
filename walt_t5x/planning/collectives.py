"""Bytes that the collectives of a compiled program move, read from its optimized HLO text.

The text is a list of computations. A collective may be in the entry, in a loop's body (where it runs once per
iteration), or in a computation that a fusion or an asynchronous wrapper calls. Each computation is therefore counted as
often as it runs: the sum over its callers, times a loop's trip count. XLA's CPU compiler annotates trip counts; the TPU
compiler does not, and they are read from the loop's condition, `index < constant`, as in JAX's scan: from 0, by 1.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator

KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "ragged-all-to-all",
  "collective-permute",
  "collective-broadcast",
)
_SIZES = {
  **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2"), 1),
  **dict.fromkeys(("bf16", "f16", "s16", "u16"), 2),
  **dict.fromkeys(("f32", "s32", "u32"), 4),
  **dict.fromkeys(("f64", "s64", "u64", "c64"), 8),
}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_CALLED = re.compile(
  r"(?:calls|to_apply|body|condition|true_computation|false_computation|async_execution_thread_computation)"
  r"=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'known_trip_count"?\s*:\s*\{\s*"?n"?\s*:\s*"?(\d+)')
_CONSTANT = re.compile(r"constant\((\d+)\)")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective instruction.

  Attributes:
    kind: one of `KINDS`.
    bytes: size of its result on one device; for an all-reduce that is sliced immediately, size of the slice.
    times: how often it runs per step.
    name: name of the instruction.
  """

  kind: str
  bytes: int
  times: int
  name: str


@dataclasses.dataclass
class _Computation:
  entry: bool
  lines: list[tuple[str, str, str, str]] = dataclasses.field(default_factory=list)
  # (called computation, the text of the loop that calls it or "").
  calls: list[tuple[str, str]] = dataclasses.field(default_factory=list)


def _type(text: str) -> tuple[str, list[str]]:
  """The type at the start of `text`, and its elements if it is a tuple, outermost level only."""
  depth, start, elements = 0, 1, []
  for place, letter in enumerate(text):
    depth += (letter in "([{") - (letter in ")]}")
    if depth == 0 and letter == " ":
      return text[:place], [*elements, text[start : place - 1]]
    if depth == 1 and letter == ",":
      elements.append(text[start:place])
      start = place + 1
  raise ValueError(f"an HLO type does not end: {text[:80]!r}")


def _computations(hlo: str) -> dict[str, _Computation]:
  found: dict[str, _Computation] = {}
  current = None
  for line in hlo.splitlines():
    if heading := _COMPUTATION.match(line):
      current = found[heading[2]] = _Computation(bool(heading[1]))
      continue
    match = _INSTRUCTION.match(line)
    if match is None or current is None:
      continue
    name, rest = match.groups()
    shape, _ = _type(rest)
    operation = rest[len(shape) + 1 :]
    opcode = operation.split("(", 1)[0]
    current.lines.append((name, shape, opcode, operation))
    names = _CALLED.findall(operation)
    for branches in _BRANCHES.findall(operation):
      names += [branch.strip().lstrip("%") for branch in branches.split(",")]
    current.calls += [(called, operation if opcode == "while" else "") for called in names]
  return found


def _trips(computations: dict[str, _Computation], loop: str) -> int:
  """Trip count of a loop; 1 for another call (an empty string), or if it is unknown."""
  if known := _TRIPS.search(loop):
    return int(known[1])
  condition = re.search(r"condition=%?([\w.\-]+)", loop)
  lines = computations[condition[1]].lines if condition else []
  if not lines or lines[-1][2] != "compare" or "direction=LT" not in lines[-1][3]:
    return 1
  constants = {name: _CONSTANT.match(operation) for name, _, _, operation in lines}
  limit = constants.get(re.findall(r"%([\w.\-]+)", lines[-1][3])[1])
  return int(limit[1]) if limit else 1


def _bytes(shape: str) -> int:
  return sum(
    _SIZES.get(kind, 4) * math.prod(int(n) for n in sizes.split(",") if n)
    for kind, sizes in _ARRAY.findall(shape)
  )


def collectives(hlo: str) -> Iterator[Collective]:
  """All collectives of an optimized HLO module, `compiled.as_text()`."""
  computations = _computations(hlo)
  callers: dict[str, list[tuple[str, int]]] = {}
  for name, computation in computations.items():
    for called, loop in computation.calls:
      callers.setdefault(called, []).append((name, _trips(computations, loop)))

  @functools.cache
  def runs(name: str) -> int:
    calls = sum(trips * runs(caller) for caller, trips in callers.get(name, ()))
    return calls + int(computations[name].entry)

  for name, computation in computations.items():
    for instruction, shape, opcode, _ in computation.lines:
      kind = opcode.removesuffix("-start")
      if kind not in KINDS:
        continue
      if opcode != kind and kind != "all-reduce" and shape.startswith("("):
        # An asynchronous start has its operands and its results: (operands, results, ...).
        shape = _type(f"{shape} ")[1][1]
      size = _bytes(shape)
      if kind == "all-reduce" and "all-reduce-scatter" in name:
        # TPU programs express a reduce-scatter as a fusion of an all-reduce and a slice.
        kind, size = "reduce-scatter", _bytes(computation.lines[-1][1])
      yield Collective(kind, size, runs(name), instruction)


def collective_bytes(hlo: str) -> dict[str, int]:
  """Bytes that the collectives of a step write on one device, by kind."""
  found = collections.Counter[str]()
  for collective in collectives(hlo):
    if collective.times:
      found[collective.kind] += collective.times * collective.bytes
  return dict(found)
