"""Streams manifest lines from a source; only file names and row group numbers are shuffled."""

import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.coders.coders import BytesCoder
from apache_beam.io.textio import ReadAllFromText, ReadFromText

from beam_jobs.sources import folders, tables
from beam_jobs.sources.parts import file_lines, is_compressed, json_lines, lines_of
from beam_jobs.sources.rows import is_utf8
from beam_jobs.sources.spec import SourceSpec, files
from walt_t5x.files import storage

# Of Beam's regular expression for a path with brackets.
warnings.filterwarnings("ignore", "Possible nested set", FutureWarning)


class ReadRows(beam.PTransform):
  """(None, line as bytes) for the manifest lines of a source: None, because a line is read for all clips of its media.

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
    if not is_compressed(spec.pattern) and not set("*{") & set(spec.pattern):
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
  return is_compressed(path) or bool(set("*?[") & set(path)) or not is_utf8(path)


def _lines_of(text: str, spec: SourceSpec) -> Iterator[str | bytes]:
  """Manifest lines of a part that is given as JSON; of JSONL, those of a file."""
  part = json.loads(text)
  return file_lines(part, spec.columns) if spec.kind == "jsonl" else lines_of(part, spec)


def _to_bytes(line: str | bytes) -> bytes:
  return line if isinstance(line, bytes) else line.encode()
