"""The table of clips, for readers of Parquet."""

import json
from collections.abc import Mapping
from typing import Any, BinaryIO

_ROWS_OF_A_GROUP = 65_536


class ClipTable:
  """Writes clips in groups of rows."""

  def __init__(self, file: BinaryIO):
    import pyarrow as pa

    self._file = file
    self._schema = pa.schema(
      [
        ("uri", pa.string()),
        ("modality", pa.string()),
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
        ("crop", pa.list_(pa.float64())),
        ("split", pa.string()),
        ("group", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("scores", pa.string()),
      ]
    )
    self._from_rows = pa.Table.from_pylist
    self._writer: Any = None
    self._waiting: list[Mapping[str, Any]] = []

  def add(self, clip: Mapping[str, Any]) -> None:
    """Adds a row; its scores become JSON."""
    self._waiting.append({**clip, "scores": json.dumps(clip["scores"])})
    if len(self._waiting) >= _ROWS_OF_A_GROUP:
      self._write()

  def close(self) -> None:
    """Writes what is left, and the end of the file."""
    self._write()
    self._writer.close()

  def _write(self) -> None:
    import pyarrow.parquet as pq

    # Not before there are rows: the end of an abandoned one would be written to a closed file.
    self._writer = self._writer or pq.ParquetWriter(self._file, self._schema)
    self._writer.write_table(self._from_rows(self._waiting, schema=self._schema))
    self._waiting.clear()
