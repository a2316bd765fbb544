"""Reads the rows of a source as a job would, and draws some of them, without reading any media."""

import dataclasses
import random
from collections.abc import Iterator

from beam_jobs.sources import folders
from beam_jobs.sources.parts import Part, estimated_rows, lines_of, parts_of
from beam_jobs.sources.rows import Row
from beam_jobs.sources.spec import SourceSpec
from walt_t5x.files import storage
from walt_t5x.media.containers import is_hidden


@dataclasses.dataclass
class Names:
  """Names of one kind that the source does not read: how many, and some of them."""

  count: int = 0
  examples: list[str] = dataclasses.field(default_factory=list)

  def add(self, name: str, keep: int) -> None:
    """Counts a name; the first `keep` of them are examples."""
    self.count += 1
    if len(self.examples) < keep:
      self.examples.append(name)


class Scan:
  """The manifest lines of a source: of its first part, then of the others in random order.

  Args:
    spec: the source.
    limit: lines that are read at most.
    seed: of the order.
    examples: names that are kept of each kind.

  Attributes:
    rows: number of lines read so far.
    complete: whether every part was read to its end.
    hidden, other, unlisted: names that begin with a dot, files that are not media by their extension, and files of
      --validation_list that do not exist.
  """

  def __init__(self, spec: SourceSpec, *, limit: int, seed: int, examples: int):
    self._spec, self._limit, self._examples = spec, limit, examples
    parts = parts_of(spec)
    others = parts[1:]
    random.Random(seed).shuffle(others)
    self._parts = parts[:1] + others
    self._read: list[tuple[Part, int, bool]] = []
    self.rows, self.complete = 0, False
    self.hidden, self.other, self.unlisted = Names(), Names(), Names()

  def lines(self) -> Iterator[str | bytes]:
    """Lines of the source, at most the limit."""
    if self._spec.kind == "folder":
      self._look_for_names()
    for part in self._parts:
      before = self.rows
      for line in lines_of(part.key, self._spec, skipped=self._skipped):
        if self.rows == self._limit:
          self._read.append((part, self.rows - before, False))
          return
        self.rows += 1
        yield line
      self._read.append((part, self.rows - before, True))
    self.complete = True

  def total(self) -> tuple[int, bool]:
    """(number of rows of the source, whether it is exact), after all lines were read."""
    if self.complete:
      return self.rows, True
    if all(part.rows is not None for part in self._parts):
      return sum(part.rows or 0 for part in self._parts), True
    rows = sum(count for _, count, _ in self._read)
    size = sum(part.size for part, _, _ in self._read)
    if ended := [(part.size, count) for part, count, to_its_end in self._read if to_its_end]:
      size, rows = map(sum, zip(*ended, strict=True))
    elif guess := estimated_rows(self._read[0][0]):
      rows = max(rows, guess)
    # Of a single part of another kind, as many rows as were read are known.
    return round(rows * sum(part.size for part in self._parts) / max(1, size)), False

  def _skipped(self, name: str) -> None:
    hidden = is_hidden(name.rpartition("::")[2])
    (self.hidden if hidden else self.other).add(name, self._examples)

  def _look_for_names(self) -> None:
    """Names in folders of which no row is made, and files of the list that do not exist."""
    root = self._spec.pattern
    for name in folders.other_names(root):
      self._skipped(name)
    if self._spec.validation_files:
      there = {
        storage.join(name, file)
        for split, name in (part.key for part in self._parts)
        for file in storage.names(storage.join(root, split, name))
      }
      for file in sorted(self._spec.validation_files - there):
        self.unlisted.add(file, self._examples)


class Draw:
  """Some rows of a stream: the first ones, and as many of the rest by chance (a reservoir).

  Attributes:
    first: the first half.
    chance: the other half, a uniform sample of the rows after the first ones.
    offered: number of rows so far.
  """

  def __init__(self, count: int, *, seed: int):
    self._first, self._chance = (count + 1) // 2, count // 2
    self._random = random.Random(seed)
    self.first: list[Row] = []
    self.chance: list[Row] = []
    self.offered = 0

  def offer(self, row: Row) -> None:
    """Takes or leaves a row."""
    self.offered += 1
    if len(self.first) < self._first:
      self.first.append(row)
    elif len(self.chance) < self._chance:
      self.chance.append(row)
    else:
      place = self._random.randrange(self.offered - self._first)
      if place < self._chance:
        self.chance[place] = row

  @property
  def everything(self) -> bool:
    """Whether no row was left out."""
    return len(self.first) + len(self.chance) == self.offered
