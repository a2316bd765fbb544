"""The parts of a source, which workers read independently, and their manifest lines.

A part is a file, a row group of Parquet, a class folder or, of JSONL, a range of bytes.
"""

import contextlib
import dataclasses
import gzip
import io
from collections.abc import Callable, Iterator
from typing import Any, cast

from beam_jobs.sources import folders, tables, webdataset
from beam_jobs.sources.columns import Columns, bad_row, to_line, to_row
from beam_jobs.sources.rows import MAX_LINE_BYTES, load_json
from beam_jobs.sources.spec import SourceSpec, files
from walt_t5x.files import storage

# Of JSONL: some ten thousand rows.
_RANGE_BYTES = 1 << 22
# Bytes of a table from which its number of rows is estimated.
_HEAD_BYTES = 1 << 22


@dataclasses.dataclass(frozen=True)
class Part:
  """A part of a source.

  Args:
    key: a path, (path, row group), (split, class folder), or (path, first byte, end) of JSONL.
    rows: number of its rows if the source states it, else None.
    size: number by which parts compare: bytes of a file, rows of a row group, 1 for a folder.
  """

  key: Any
  rows: int | None
  size: int


def is_compressed(path: str) -> bool:
  """Whether a file is read through gzip, by its extension."""
  return path.lower().endswith(".gz")


def parts_of(spec: SourceSpec) -> list[Part]:
  """Every part, in the order of the source."""
  if spec.kind == "folder":
    return [Part(pair, None, 1) for pair in folders.parts(spec.pattern)]
  found = []
  for path in files(spec.pattern):
    if spec.kind == "parquet":
      counts = tables.parquet_rows(path)
      found += [Part((path, group), count, count) for group, count in counts.items()]
    elif spec.kind == "jsonl":
      found += [Part(key, None, key[2] - key[1]) for key in byte_ranges(path)]
    else:
      found.append(Part(path, None, storage.size(path)))
  return found


def byte_ranges(path: str) -> list[tuple[str, int, int]]:
  """(path, first byte, end) of the ranges of a JSONL file; a compressed file is one."""
  size = storage.size(path)
  step = size if is_compressed(path) else _RANGE_BYTES
  return [(path, at, min(size, at + step)) for at in range(0, size, max(1, step))]


def lines_of(
  key: Any, spec: SourceSpec, *, skipped: Callable[[str], None] = lambda name: None
) -> Iterator[str | bytes]:
  """Manifest lines of a part, given its key; `skipped` is called with the names of a tar's files that are not read."""
  if spec.kind == "folder":
    split, name = key
    return folders.folder_lines(
      spec.pattern,
      split,
      name,
      spec.columns,
      validation_files=spec.validation_files,
      labels=spec.labels,
    )
  if spec.kind == "jsonl":
    return _jsonl(*key, columns=spec.columns)
  if spec.kind == "parquet":
    return tables.parquet_lines(*key, columns=spec.columns)
  if spec.kind == "webdataset":
    uri = key.removeprefix(spec.media_root.rstrip("/") + "/")
    return webdataset.tar_lines(key, uri, spec.columns, skipped=skipped)
  return tables.csv_lines(key, spec.columns)


def _jsonl(path: str, begin: int, end: int, *, columns: Columns) -> Iterator[str | bytes]:
  """Lines of a range of JSONL with the columns mapped; a damage of a compressed file is a bad row and ends them."""
  damage: list[str] = []
  with storage.open_raw(path) as raw:
    if is_compressed(path):
      lines = _cut_lines(gzip.GzipFile(fileobj=raw))
    else:
      # The files of fsspec have no `readline` of a limited length.
      lines = _range_lines(io.BufferedReader(cast(Any, raw)), begin, end)
    for line in tables.until_damage(lines, damage):
      yield from json_lines(line, columns)
  for problem in damage:
    yield bad_row(path, f"{problem}; lines before that are read")


def json_lines(line: bytes, columns: Columns) -> Iterator[str | bytes]:
  """A line with its columns mapped; a line that is not an object is kept, and becomes a dead letter later."""
  if not line.strip():
    return
  if columns.changes_nothing:
    yield line
    return
  raw = None
  with contextlib.suppress(ValueError):
    raw = load_json(line)
  yield to_line(to_row(raw, columns)) if isinstance(raw, dict) else line


def _range_lines(stream: io.BufferedIOBase, begin: int, end: int) -> Iterator[bytes]:
  """Lines that begin in a range of bytes, as those of `_cut_lines`."""
  if begin:
    stream.seek(begin - 1)
    _skip_line(stream, end)
  yield from _cut_lines(stream, end)


def _cut_lines(stream: io.BufferedIOBase, end: int | None = None) -> Iterator[bytes]:
  """Lines that begin before a byte; of one that is too long for a row, the first bytes."""
  while (end is None or stream.tell() < end) and (line := stream.readline(MAX_LINE_BYTES + 1)):
    if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
      _skip_line(stream, None)
    yield line


def _skip_line(stream: io.BufferedIOBase, end: int | None) -> None:
  """Reads to the end of a line, or past a byte."""
  while end is None or stream.tell() < end:
    piece = stream.readline(_RANGE_BYTES)
    if not piece or piece.endswith(b"\n"):
      return


def estimated_rows(part: Part) -> int | None:
  """About how many rows a part of a plain text file has, by the length of its first lines; None for other files."""
  path = part.key if isinstance(part.key, str) else part.key[0]
  if not path.lower().endswith((".csv", ".tsv", ".jsonl", ".json", ".ndjson")):
    return None
  with storage.open_raw(path) as stream:
    head = stream.read(_HEAD_BYTES)
  return round(part.size * head.count(b"\n") / max(1, len(head)))
