"""Streams manifest lines from a source; only file names and row group numbers are shuffled."""

import warnings

import apache_beam as beam
from apache_beam.coders.coders import BytesCoder
from apache_beam.io.textio import ReadAllFromText, ReadFromText

from beam_jobs.sources import folders, tables
from beam_jobs.sources.parts import json_lines, lines_of
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
      lines = found | "Read" >> beam.FlatMap(lines_of, spec)
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


def _to_bytes(line: str | bytes) -> bytes:
  return line if isinstance(line, bytes) else line.encode()
