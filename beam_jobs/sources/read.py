"""Streams manifest lines from a source; only file names and row group numbers are shuffled."""

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import apache_beam as beam

from beam_jobs.sources import folders, tables
from beam_jobs.sources.parts import byte_ranges, lines_of
from beam_jobs.sources.spec import SourceSpec, files


class ReadRows(beam.PTransform):
  """(None, line as bytes) for the manifest lines of a source: None, because a line is read for all clips of its media.

  JSONL is split by bytes, Parquet by row groups, CSV and tar by files: write many CSV and tar files. No file is read
  while the graph is built.
  """

  def __init__(self, spec: SourceSpec):
    super().__init__()
    self._spec = spec

  def expand(self, root):
    spec = self._spec
    found = self._found(root, folders.parts if spec.kind == "folder" else files)
    if split := {"jsonl": byte_ranges, "parquet": tables.parquet_groups}.get(spec.kind):
      found = found | "Split" >> beam.FlatMap(_found_by, split) | "Spread" >> beam.Reshuffle()
    lines = found | "Read" >> beam.FlatMap(_lines_of, spec)
    return lines | "Bytes" >> beam.Map(lambda line: (None, _to_bytes(line)))

  def _found(self, root, find):
    return (
      root
      | beam.Create([json.dumps(self._spec.pattern)])
      | beam.FlatMap(_found_by, find)
      | beam.Reshuffle()
    )


def _found_by(part: str, find: Callable[[Any], Iterable[Any]]) -> Iterator[str]:
  """Parts that a function finds in a part, as JSON: Beam cannot pass on paths that are not UTF-8."""
  return map(json.dumps, find(json.loads(part)))


def _lines_of(part: str, spec: SourceSpec) -> Iterator[str | bytes]:
  """Manifest lines of a part that is given as JSON."""
  return lines_of(json.loads(part), spec)


def _to_bytes(line: str | bytes) -> bytes:
  return line if isinstance(line, bytes) else line.encode()
