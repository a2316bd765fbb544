"""Reads rows of CSV and Parquet files, one file or one row group at a time."""

import collections
import csv
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from beam_jobs.sources.columns import Columns, bad_row, to_line, to_row
from beam_jobs.sources.rows import is_media, is_utf8
from walt_t5x.files import storage

_BATCH_ROWS = 1024
# Lines that a quoted cell may span. A quote that is never closed is not looked for to the end of a table.
_MAX_CELL_LINES = 1000


def csv_header(path: str) -> list[str]:
  """Column names of a CSV or TSV file."""
  with storage.open_text(path) as stream:
    _, cells = next(_records(stream, _delimiter(path)), (0, []))
  return cells if isinstance(cells, list) else []


def csv_lines(path: str, columns: Columns) -> Iterator[str]:
  """Manifest lines of a CSV or TSV file, by its extension; a row of the wrong length is a bad row."""
  with storage.open_text(path) as stream:
    records = _records(stream, _delimiter(path), media_column=columns.by_field["uri"])
    header = next((cells for _, cells in records if isinstance(cells, list)), [])
    for number, cells in records:
      if isinstance(cells, csv.Error):
        yield bad_row(f"{path}:{number}", f"got {cells}, expected quotes in a cell twice")
      elif not all(map(is_utf8, cells)):
        message = f"got cells that are not UTF-8: {cells}; write the table in UTF-8"
        yield bad_row(f"{path}:{number}", message)
      elif len(cells) == len(header):
        yield to_line(to_row(dict(zip(header, cells)), columns))
      else:
        message = f"got {len(cells)} cells, expected {len(header)}: {cells}"
        yield bad_row(f"{path}:{number}", message)


def _records(
  stream: Iterable[str], delimiter: str, *, media_column: str = ""
) -> Iterator[tuple[int, list[str] | csv.Error]]:
  """(number of the first line, cells or an error) of every row; blank lines are skipped.

  A stray quote costs its own line only: what it swallowed is read again as rows. A quote that a later stray quote
  closes is noticed by the number of cells, or by a line within the cell that has a media file in `media_column`.
  """
  numbered, again = enumerate(stream, 1), collections.deque[tuple[int, str]]()

  def lines() -> Iterator[str]:
    for _ in range(_MAX_CELL_LINES):
      if (line := again.popleft() if again else next(numbered, None)) is None:
        return
      taken.append(line)
      yield line[1]

  def is_stray(cells: list[str]) -> bool:
    within = (line for cell in cells for line in cell.splitlines()[1:])
    rows = (dict(zip(header, line.split(delimiter))) for line in within)
    return len(cells) != len(header) or any(is_media(row.get(media_column, "")) for row in rows)

  header: list[str] = []
  while True:
    taken: list[tuple[int, str]] = []
    cells: list[str] | csv.Error | None
    try:
      cells = next(csv.reader(lines(), delimiter=delimiter, strict=True), None)
      if cells and header and len(taken) > 1 and is_stray(cells):
        raise csv.Error("a quote that is not closed in its row")
    except csv.Error as error:
      cells = error
      again.extendleft(reversed(taken[1:]))
    if cells is None:
      return
    if cells:
      header = header if header or isinstance(cells, csv.Error) else cells
      yield taken[0][0], cells


def csv_values(path: str, column: str) -> Iterator[str]:
  """One column of a CSV file."""
  with storage.open_text(path) as stream:
    rows = (c for _, c in _records(stream, _delimiter(path)) if isinstance(c, list))
    header = next(rows, [])
    for cells in rows:
      if value := dict(zip(header, cells)).get(column):
        yield value


def _delimiter(path: str) -> str:
  return "\t" if path.removesuffix(".gz").endswith(".tsv") else ","


def parquet_header(path: str) -> list[str]:
  """Column names of a Parquet file."""
  import pyarrow.parquet

  with storage.open_raw(path) as stream:
    return pyarrow.parquet.ParquetFile(stream).schema_arrow.names


def parquet_groups(path: str) -> Iterator[tuple[str, int]]:
  """(path, row group) of a Parquet file; (path, -1) if it is not one."""
  yield from ((path, group) for group in parquet_rows(path))


def parquet_rows(path: str) -> dict[int, int]:
  """Row group -> number of its rows, of a Parquet file; {-1: 1} if it is not one."""
  import pyarrow
  import pyarrow.parquet

  try:
    with storage.open_raw(path) as stream:
      found = pyarrow.parquet.ParquetFile(stream).metadata
      return {group: found.row_group(group).num_rows for group in range(found.num_row_groups)}
  except (pyarrow.ArrowException, OSError):
    return {-1: 1}


def parquet_lines(path: str, group: int, columns: Columns) -> Iterator[str]:
  """Manifest lines of a row group; only columns that a row may use are read."""
  import pyarrow
  import pyarrow.parquet

  if group < 0:
    yield bad_row(path, "not a Parquet file: its footer is damaged or missing")
    return
  with storage.open_raw(path) as stream:
    file = pyarrow.parquet.ParquetFile(stream)
    wanted = [name for name in file.schema_arrow.names if name in columns.used]
    batches = file.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group], columns=wanted)
    try:
      for batch in batches:
        for index in range(batch.num_rows):
          cells = {name: column[index] for name, column in zip(batch.schema.names, batch.columns)}
          yield _parquet_line(cells, columns, f"{path}:row group {group}")
    except (pyarrow.ArrowException, OSError) as error:
      yield bad_row(f"{path}:row group {group}", f"{type(error).__name__}: {error}")


def _parquet_line(cells: Mapping[str, Any], columns: Columns, place: str) -> str:
  row, problems = {}, []
  for name, cell in cells.items():
    try:
      row[name] = _decoded(cell.as_py())
    except (
      Exception
    ) as error:  # Arrow raises different errors, such as for dates that Python does not have.
      expected = "expected text in UTF-8 or a value that Python has"
      problems.append(f"{name}: got {cell.type} that cannot be read, {expected} ({error})")
  if problems:
    return bad_row(place, f"{'; '.join(problems)} in {row}")
  return to_line(to_row(row, columns))


def _decoded(value: Any) -> Any:
  """Text of a binary cell, as some writers store text without annotation; also lists of them."""
  if isinstance(value, list):
    return [_decoded(item) for item in value]
  return value.decode() if isinstance(value, bytes) else value
