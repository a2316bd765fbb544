"""Reads rows of CSV and Parquet files, one file or one row group at a time."""

import collections
import csv
import gzip
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from beam_jobs.sources.columns import Columns, bad_row, to_line, to_row
from beam_jobs.sources.rows import is_media, is_utf8
from walt_t5x.files import storage

_Line = TypeVar("_Line", str, bytes)
_BATCH_ROWS = 1024
# Lines that a quoted cell may span. A quote that is never closed is not looked for to the end of a table.
_MAX_CELL_LINES = 1000
UTF_16 = ("\udcff\udcfe", "\udcfe\udcff")  # Byte order marks, as `open_text` shows them.


def csv_header(path: str) -> list[str]:
  """Column names of a CSV or TSV file.

  Raises:
    ValueError: if they cannot be read.
  """
  damage: list[str] = []
  with storage.open_text(path) as stream:
    _, cells = next(_records(until_damage(stream, damage), _delimiter(path)), (0, []))
  if problem := "".join(damage) or _header_problem(cells):
    raise ValueError(problem)
  return cells if isinstance(cells, list) else []


def csv_lines(path: str, columns: Columns) -> Iterator[str]:
  """Manifest lines of a CSV or TSV file, by its extension.

  A row of the wrong length is a bad row, and so is a damage of a compressed file, which ends the rows. A table whose
  header cannot be read is one bad row.
  """
  damage: list[str] = []
  with storage.open_text(path) as stream:
    lines = until_damage(stream, damage)
    records = _records(lines, _delimiter(path), media_column=columns.by_field["uri"])
    number, header = next(records, (0, []))
    problem = _header_problem(header)
    if problem or isinstance(header, csv.Error):
      yield bad_row(f"{path}:{number}", f"header: {problem}; none of its rows is read")
      return
    folders = partitions(path, columns)
    for number, cells in records:
      if isinstance(cells, csv.Error):
        yield bad_row(f"{path}:{number}", f"got {cells}, expected quotes in a cell twice")
      elif not all(map(is_utf8, cells)):
        message = f"got cells that are not UTF-8: {cells}; write the table in UTF-8"
        yield bad_row(f"{path}:{number}", message)
      elif len(cells) == len(header):
        row = to_row(folders | dict(zip(header, cells)), columns)
        yield _placed(row, f"{path}:{number}")
      else:
        message = f"got {len(cells)} cells, expected {len(header)}: {cells}"
        yield bad_row(f"{path}:{number}", message)
    for problem in damage:
      yield bad_row(path, f"{problem}; rows before that are read")


def _placed(row: dict[str, Any], place: str) -> str:
  """Line of a row; one without a uri could not be found by its ledger."""
  if "uri" in row or "source_error" in row:
    return to_line(row)
  return bad_row(place, f"uri: got nothing, expected a path in UTF-8, in {row}")


def _header_problem(cells: list[str] | csv.Error) -> str:
  """Why a header cannot be read, or ''."""
  if isinstance(cells, csv.Error):
    return f"got {cells}, expected column names in one line"
  if cells and cells[0].startswith(UTF_16):
    return "got UTF-16, expected UTF-8: save as 'CSV UTF-8', or iconv -f UTF-16 -t UTF-8"
  if not all(is_utf8(cell) and not set("\0\r\n") & set(cell) for cell in cells):
    return f"got {cells}, expected column names in UTF-8 in one line"
  return ""


def until_damage(stream: Iterable[_Line], damage: list[str]) -> Iterator[_Line]:
  """Lines of a file; the damage of a compressed one ends them and is added to the list."""
  try:
    yield from stream
  except (EOFError, gzip.BadGzipFile, zlib.error) as error:
    damage.append(f"got a damaged .gz file ({error}), expected a complete one")


def _records(
  stream: Iterable[str], delimiter: str, *, media_column: str = ""
) -> Iterator[tuple[int, list[str] | csv.Error]]:
  """(number of the first line, cells or an error) of every row; blank lines are skipped.

  A stray quote costs its own line only: what it swallowed is read again as rows. A quote that a later stray quote
  closes is noticed by the number of cells, or by lines that are rows without their quotes: more than the row itself
  that have a media file in `media_column`, or, in a table without that column, one that has all cells.
  """
  numbered, again = enumerate(stream, 1), collections.deque[tuple[int, str]]()

  def lines() -> Iterator[str]:
    for _ in range(_MAX_CELL_LINES):
      if (line := again.popleft() if again else next(numbered, None)) is None:
        return
      taken.append(line)
      yield line[1]

  def is_stray(cells: list[str]) -> bool:
    if len(cells) != len(header):
      return True
    rows = [[cell.strip('" \r\n') for cell in line.split(delimiter)] for _, line in taken]
    if media_column not in header:
      return any(len(row) == len(header) for row in rows)
    has_media = [is_media(dict(zip(header, row)).get(media_column, "")) for row in (cells, *rows)]
    return sum(has_media[1:]) > has_media[0]

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
    records = _records(until_damage(stream, []), _delimiter(path))
    rows = (c for _, c in records if isinstance(c, list))
    header = next(rows, [])
    for cells in rows:
      if value := dict(zip(header, cells)).get(column):
        yield value


def _delimiter(path: str) -> str:
  return "\t" if path.lower().removesuffix(".gz").endswith(".tsv") else ","


def partitions(path: str, columns: Columns) -> dict[str, str]:
  """Values in the names of a file's folders, as Spark and Hive write them: `split=train/part-0.parquet`."""
  if "=" not in path:
    return {}
  import pyarrow
  from pyarrow import dataset

  partitioning = dataset.HivePartitioning(pyarrow.schema([(n, "string") for n in columns.used]))
  try:
    return dataset.get_partition_keys(partitioning.parse(path))
  except ValueError:
    return {}  # Not UTF-8.


def parquet_schema(path: str) -> Any:
  """Arrow schema of a Parquet file."""
  import pyarrow.parquet

  with storage.open_raw(path) as stream:
    return pyarrow.parquet.ParquetFile(stream).schema_arrow


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
  except (pyarrow.ArrowException, OSError, ValueError):
    return {-1: 1}


def parquet_lines(path: str, group: int, columns: Columns) -> Iterator[str]:
  """Manifest lines of a row group; only columns that a row may use are read. A damage is a bad row and ends them."""
  import pyarrow
  import pyarrow.parquet

  if group < 0:
    yield bad_row(path, "not a Parquet file: its footer is damaged or missing")
    return
  place, done, stated = f"{path}:row group {group}", 0, 0
  with storage.open_raw(path) as stream:
    try:
      file = pyarrow.parquet.ParquetFile(stream, page_checksum_verification=True)
      folders, stated = partitions(path, columns), file.metadata.row_group(group).num_rows
      wanted = [name for name in file.schema_arrow.names if name in columns.used]
      for batch in file.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group], columns=wanted):
        for index in range(batch.num_rows):
          cells = {name: column[index] for name, column in zip(batch.schema.names, batch.columns)}
          yield _parquet_line(cells, columns, f"{place}:row {done}", folders)
          done += 1
      problem = "" if done == stated else f"got {done} rows"
    except (pyarrow.ArrowException, OSError, ValueError) as error:
      problem = f"{type(error).__name__}: {error}"
  if problem:
    yield bad_row(place, f"{problem}, expected {stated} rows; those from row {done} on are lost")


def _parquet_line(
  cells: Mapping[str, Any], columns: Columns, place: str, folders: Mapping[str, str]
) -> str:
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
  return _placed(to_row({**folders, **row}, columns), place)


def _decoded(value: Any) -> Any:
  """Text of a binary cell, as some writers store text without annotation; also lists of them."""
  if isinstance(value, list):
    return [_decoded(item) for item in value]
  return value.decode() if isinstance(value, bytes) else value
