"""Streams manifest lines from a source; only file names and row group numbers are shuffled."""

import contextlib
import gzip
import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.coders.coders import BytesCoder
from apache_beam.io.textio import ReadAllFromText, ReadFromText

from beam_jobs.sources import folders, tables, webdataset
from beam_jobs.sources.columns import Columns, bad_row, to_line, to_row
from beam_jobs.sources.rows import is_utf8, load_json
from beam_jobs.sources.spec import SourceSpec, files
from walt_t5x.files import storage

# Of Beam's regular expression for a path with brackets.
warnings.filterwarnings("ignore", "Possible nested set", FutureWarning)


class ReadRows(beam.PTransform):
  """(None, line as bytes) for the manifest lines of a source: None, because a line stands for all clips of its media.

  JSONL is split by bytes, Parquet by row groups, CSV and tar by files: write many CSV and tar files. `look` decides
  whether files are read while the graph is built.
  """

  def __init__(self, spec: SourceSpec, *, look: bool = True):
    super().__init__()
    self._spec, self._look = spec, look

  def expand(self, root):
    spec = self._spec
    if spec.kind == "jsonl":
      lines = self._jsonl(root)
    else:
      found = self._found(root, folders.parts if spec.kind == "folder" else files)
      if spec.kind == "parquet":
        found = found | "Groups" >> beam.FlatMap(_found_by, tables.parquet_groups)
        found = found | "Spread" >> beam.Reshuffle()
      lines = found | "Read" >> beam.FlatMap(_lines_of, spec)
    return lines | "Bytes" >> beam.Map(lambda line: (None, _to_bytes(line)))

  def _found(self, root, find):
    return (
      root
      | beam.Create([json.dumps(self._spec.pattern)])
      | beam.FlatMap(_found_by, find)
      | beam.Reshuffle()
    )

  def _jsonl(self, root):
    spec = self._spec
    if not spec.pattern.lower().endswith(".gz") and not set("*{") & set(spec.pattern):
      text = ReadFromText(storage.literal(spec.pattern), coder=BytesCoder(), validate=self._look)
      return root | text | "Columns" >> beam.FlatMap(json_lines, spec.columns)
    found = self._found(root, files)
    split = (
      found
      | "Split" >> beam.Filter(lambda part: not _is_one_part(part))
      | "Path" >> beam.Map(json.loads).with_output_types(str)
      | ReadAllFromText(coder=BytesCoder())
      | "Columns" >> beam.FlatMap(json_lines, spec.columns)
    )
    complete = found | beam.Filter(_is_one_part) | "Read" >> beam.FlatMap(_lines_of, spec)
    return (split, complete) | beam.Flatten()


def _found_by(part: str, find: Callable[[Any], Iterable[Any]]) -> Iterator[str]:
  """Parts that a function finds in a part, as JSON: Beam cannot pass on paths that are not UTF-8."""
  return map(json.dumps, find(json.loads(part)))


def _is_one_part(part: str) -> bool:
  """Whether a file is read from its beginning to its end: it is compressed, or Beam does not take its path as it is."""
  path = json.loads(part)
  return path.lower().endswith(".gz") or bool(set("*?[") & set(path)) or not is_utf8(path)


def file_lines(path: str, columns: Columns) -> Iterator[str | bytes]:
  """Lines of a JSONL file, with its columns mapped; a damage of a compressed one is a bad row and ends them."""
  damage: list[str] = []
  with storage.open_raw(path) as raw:
    stream = gzip.GzipFile(fileobj=raw) if path.lower().endswith(".gz") else raw
    for line in tables.until_damage(stream, damage):
      yield from json_lines(line, columns)
  for problem in damage:
    yield bad_row(path, f"{problem}; lines before that are read")


def _lines_of(text: str, spec: SourceSpec) -> Iterator[str | bytes]:
  """Manifest lines of a file, of a row group (path, number) or of a class folder (split, name), given as JSON."""
  part = json.loads(text)
  if spec.kind == "jsonl":
    return file_lines(part, spec.columns)
  if spec.kind == "folder":
    split, name = part
    return folders.folder_lines(
      spec.pattern,
      split,
      name,
      spec.columns,
      validation_files=spec.validation_files,
      labels=spec.labels,
    )
  if spec.kind == "parquet":
    return tables.parquet_lines(*part, columns=spec.columns)
  if spec.kind == "webdataset":
    uri = part.removeprefix(spec.media_root.rstrip("/") + "/")
    return webdataset.tar_lines(part, uri, spec.columns)
  return tables.csv_lines(part, spec.columns)


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


def _to_bytes(line: str | bytes) -> bytes:
  return line if isinstance(line, bytes) else line.encode()
