"""Rejects manifests of the wrong form before any work: one look at the name and the beginning of the first file."""

import difflib
import gzip
import itertools
import re
import zlib
from collections.abc import Sequence
from typing import Any

from beam_jobs.sources import tables
from beam_jobs.sources.columns import Columns
from beam_jobs.sources.rows import CONVERT_ARRAY, CONVERT_OBJECTS, is_media, is_utf8, load_json
from walt_t5x.files import storage

_HEAD = 1 << 20
# Names of columns that others use for a field, the most likely first.
_ALIASES = {
  "uri": ("uri", "url", "path", "file", "filename", "filepath", "video", "image", "media", "clip"),
  "caption": ("caption", "captions", "text", "prompt", "description", "txt", "title"),
  "class": ("class", "category"),
}
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


def check_json_lines(path: str, columns: Columns) -> str:
  """Rejects a file whose beginning is not one JSON object per line with a uri; returns a `note`.

  Raises:
    ValueError: if it is UTF-16, one array, or an object that is spread over lines, or no object has a uri.
  """
  try:
    with storage.open_text(path) as stream:
      head = stream.read(_HEAD)
  except (EOFError, gzip.BadGzipFile, zlib.error):
    return ""  # Becomes a dead letter.
  if head.startswith(tables.UTF_16):
    raise ValueError(
      f"--manifest: {path} is UTF-16, expected UTF-8; iconv -f UTF-16 -t UTF-8 converts it"
    )
  lines = [line for line in map(str.strip, head.split("\n")) if line]
  first = lines[0] if lines else ""
  if first != "[" and (objects := [one for one in map(_object, lines) if one is not None]):
    names = list(dict.fromkeys(name for one in objects for name in one))
    uri = columns.by_field["uri"]
    if (flags := _flags(names, columns)) and uri not in names and not columns.uri_template:
      raise ValueError(
        f"--manifest: {path} has the fields {names}, not [{uri!r}]; set {' '.join(flags)}"
      )
    return note(path, names, columns)
  if first.startswith("["):
    raise ValueError(f"--manifest: {path} holds one JSON array; {CONVERT_ARRAY}")
  if first.startswith("{") and len(lines) > 1 and first.endswith(("{", "[", ",")):
    raise ValueError(
      f"--manifest: {path} holds a JSON object that is spread over lines; {CONVERT_OBJECTS}"
    )
  return ""


def _object(line: str) -> dict[str, Any] | None:
  try:
    found = load_json(line)
  except ValueError:
    return None
  return found if isinstance(found, dict) else None


def check_header(path: str, kind: str, columns: Columns) -> str:
  """Rejects a table without a column that a flag names, or whose media are in the table itself; returns a `note`.

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
      f"--manifest: {path} has the columns {header}, not {missing}; {_advice(present, kind, schema, columns)}"
    )
  if twice := sorted({name for name in header if header.count(name) > 1} & {*columns.used}):
    raise ValueError(f"--manifest: {path} has the columns {twice} twice; rename one of them")
  uri = columns.by_field["uri"]
  if schema is not None and not columns.uri_template and _is_nested(schema.field(uri).type):
    raise ValueError(
      f"--manifest: column {uri} of {path} is {schema.field(uri).type}, expected paths; media inside Parquet files are "
      "not read: write them to files or to webdataset tar files"
    )
  return note(path, present, columns)


def note(path: str, names: Sequence[str], columns: Columns) -> str:
  """What to set for columns that are not read, but may be captions or classes by their names; '' if nothing."""
  flags = _flags(names, columns)
  return (
    f"{path} has the columns {list(names)}; {' '.join(flags)} reads more of them" if flags else ""
  )


def _flags(names: Sequence[str], columns: Columns) -> list[str]:
  """--column for the uri, caption and class that a table has under other names and that no flag maps."""
  by_field = columns.by_field
  captions = {"caption", by_field["captions"]} if not columns.captions else set(names)
  read = {"uri": {by_field["uri"]}, "caption": captions, "class": set()}
  if columns.uri_template:
    read["uri"] = set(names)
  if columns.class_names or captions & set(names):
    read["class"] = set(names)
  flags = []
  for field, mapped in read.items():
    found = "" if mapped & set(names) else _like(field, names)
    if found:
      flags.append(f"--column {field}={found}" + " --class_names=FILE" * (field == "class"))
  # A class is a caption too: it is needed where there is none.
  return [flag for flag in flags if "class" not in flag or not any("caption" in f for f in flags)]


def _like(field: str, names: Sequence[str]) -> str:
  """The column that a field may be: by its name, its last word, another word, or its spelling; '' if none."""
  words = {name: re.split(r"[^a-z0-9]+", name.lower()) for name in names}
  others = {alias for other in _ALIASES if other != field for alias in _ALIASES[other]}
  ways = (
    lambda alias, name: name.lower() == alias,
    lambda alias, name: words[name][-1] == alias,
    lambda alias, name: alias in words[name] and not others & set(words[name]),
  )
  for way in ways:
    for alias, name in itertools.product(_ALIASES[field], names):
      if way(alias, name):
        return name
  lowered = {name.lower(): name for name in names}
  close = difflib.get_close_matches(_ALIASES[field][0], lowered, n=1, cutoff=0.75)
  return lowered[close[0]] if close else ""


def _advice(header: Sequence[str], kind: str, schema: Any, columns: Columns) -> str:
  """What to do about a column that is missing."""
  if kind != "parquet" and any(map(is_media, header)):
    return "its first line must contain the names of the columns"
  if kind != "parquet" and len(header) == 1 and (used := [c for c in ";\t|" if c in header[0]]):
    return f"its cells are separated by {used[0]!r}, expected ',' in .csv and a tab in .tsv"
  nested = [] if schema is None else [one.name for one in schema if _is_nested(one.type)]
  flags = " ".join(_flags([name for name in header if name not in nested], columns))
  advice = f"set {flags}" if flags else "map them with --column FIELD=COLUMN (uri=..., caption=...)"
  if nested:
    advice += f"; media inside columns such as {nested} are not read: write them to files or to webdataset tar files"
  return advice


def _is_nested(kind: Any) -> bool:
  import pyarrow

  return pyarrow.types.is_nested(kind)
