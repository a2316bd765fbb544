"""Streams manifest lines from a source; only file names and row group numbers are shuffled."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.coders.coders import BytesCoder
from apache_beam.io.textio import ReadAllFromText, ReadFromText

from beam_jobs.sources import folders, tables, webdataset
from beam_jobs.sources.columns import Columns, to_line, to_row
from beam_jobs.sources.rows import load_json
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
      find = folders.class_folders if spec.kind == "folder" else files
      found = root | beam.Create([spec.pattern]) | beam.FlatMap(find) | beam.Reshuffle()
      if spec.kind == "parquet":
        found = found | beam.FlatMap(tables.parquet_groups) | "Spread" >> beam.Reshuffle()
      lines = found | "Read" >> beam.FlatMap(_lines_of, spec)
    return lines | "Bytes" >> beam.Map(lambda line: (None, _to_bytes(line)))

  def _jsonl(self, root):
    spec = self._spec
    if "{" in spec.pattern:
      found = root | beam.Create([spec.pattern]) | beam.FlatMap(files)
      lines = found | ReadAllFromText(coder=BytesCoder())
    else:
      lines = root | ReadFromText(
        storage.literal(spec.pattern), coder=BytesCoder(), validate=self._look
      )
    if spec.columns.changes_nothing:
      return lines
    return lines | "Columns" >> beam.FlatMap(json_lines, spec.columns)


def _lines_of(part: Any, spec: SourceSpec) -> Iterator[str]:
  """Manifest lines of a file, of a row group (path, number) or of a class folder (split, name)."""
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
  raw = None
  with contextlib.suppress(ValueError):
    raw = load_json(line)
  yield to_line(to_row(raw, columns)) if isinstance(raw, dict) else line


def _to_bytes(line: str | bytes) -> bytes:
  return line if isinstance(line, bytes) else line.encode()
