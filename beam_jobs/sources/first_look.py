"""Rejects manifests of the wrong form before any work: one look at the name and the beginning of the first file."""

import gzip
import zlib
from collections.abc import Sequence
from typing import Any

from beam_jobs.sources import tables
from beam_jobs.sources.columns import Columns
from beam_jobs.sources.rows import CONVERT_ARRAY, CONVERT_OBJECTS, is_media, is_utf8, load_json
from walt_t5x.files import storage

_HEAD = 1 << 20
_PACKED = {
  ".tar.gz": "gunzip",
  ".tgz": "gunzip",
  ".parquet.gz": "gunzip",
  ".zst": "unzstd",
  ".bz2": "bunzip2",
  ".xz": "unxz",
  ".zip": "unzip",
  ".7z": "7z x",
}


def check_name(pattern: str) -> None:
  """Rejects compressed files that cannot be read, and paths that are not UTF-8.

  Raises:
    ValueError: naming the program that decompresses them.
  """
  if not is_utf8(pattern):
    raise ValueError(
      f"--manifest: got {pattern!r}, expected a path in UTF-8; rename the folder or file"
    )
  for ending, program in _PACKED.items():
    if pattern.lower().endswith(ending):
      raise ValueError(
        f"--manifest: got {pattern}, expected tar and Parquet files that are not compressed, and tables and JSON lines "
        f"plain or as .gz; decompress it with {program}"
      )


def check_json_lines(path: str) -> None:
  """Rejects a file whose beginning is not one JSON object per line.

  Raises:
    ValueError: if it is UTF-16, one array, or an object that is spread over lines.
  """
  try:
    with storage.open_text(path) as stream:
      head = stream.read(_HEAD)
  except (EOFError, gzip.BadGzipFile, zlib.error):
    return  # Becomes a dead letter.
  if head.startswith(tables.UTF_16):
    raise ValueError(
      f"--manifest: {path} is UTF-16, expected UTF-8; iconv -f UTF-16 -t UTF-8 converts it"
    )
  lines = [line for line in map(str.strip, head.split("\n")) if line]
  first = lines[0] if lines else ""
  if first != "[" and any(map(_is_object, lines)):
    return
  if first.startswith("["):
    raise ValueError(f"--manifest: {path} holds one JSON array; {CONVERT_ARRAY}")
  if first.startswith("{") and len(lines) > 1 and first.endswith(("{", "[", ",")):
    raise ValueError(
      f"--manifest: {path} holds a JSON object that is spread over lines; {CONVERT_OBJECTS}"
    )


def _is_object(line: str) -> bool:
  try:
    return isinstance(load_json(line), dict)
  except ValueError:
    return False


def check_header(path: str, kind: str, columns: Columns) -> None:
  """Rejects a table without a column that a flag names, or whose media are in the table itself.

  Raises:
    ValueError: naming the columns of the table.
  """
  import pyarrow

  try:
    schema = tables.parquet_schema(path) if kind == "parquet" else None
    header = tables.csv_header(path) if schema is None else schema.names
  except (pyarrow.ArrowException, OSError) as error:
    raise ValueError(f"--manifest: {path} is not a Parquet file ({error})") from error
  except ValueError as error:
    raise ValueError(f"--manifest: {path}: {error}") from error
  wanted = (*columns.stated, *(() if columns.uri_template else (columns.by_field["uri"],)))
  present = [*header, *tables.partitions(path, columns)]
  if missing := [name for name in dict.fromkeys(wanted) if name not in present]:
    raise ValueError(
      f"--manifest: {path} has the columns {header}, not {missing}; {_advice(header, kind, schema)}"
    )
  if twice := sorted({name for name in header if header.count(name) > 1} & {*columns.used}):
    raise ValueError(f"--manifest: {path} has the columns {twice} twice; rename one of them")
  uri = columns.by_field["uri"]
  if schema is not None and not columns.uri_template and _is_nested(schema.field(uri).type):
    raise ValueError(
      f"--manifest: column {uri} of {path} is {schema.field(uri).type}, expected paths; media inside Parquet files are "
      "not read: write them to files or to webdataset tar files"
    )


def _advice(header: Sequence[str], kind: str, schema: Any) -> str:
  """What to do about a column that is missing."""
  if kind != "parquet" and any(map(is_media, header)):
    return "its first line must contain the names of the columns"
  if kind != "parquet" and len(header) == 1 and (used := [c for c in ";\t|" if c in header[0]]):
    return f"its cells are separated by {used[0]!r}, expected ',' in .csv and a tab in .tsv"
  advice = "map them with --column FIELD=COLUMN (uri=..., caption=...)"
  nested = [] if schema is None else [one.name for one in schema if _is_nested(one.type)]
  if nested:
    advice += f"; media inside columns such as {nested} are not read: write them to files or to webdataset tar files"
  return advice


def _is_nested(kind: Any) -> bool:
  import pyarrow

  return pyarrow.types.is_nested(kind)
