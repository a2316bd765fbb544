"""A trial reads the lines that a job reads, and draws rows fairly over all of a manifest."""

import io
import json
import random
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from beam_jobs.sources import parts, rows, sampling
from beam_jobs.sources.columns import Columns
from beam_jobs.sources.spec import SourceSpec

COUNT = 3000


def _source(kind, pattern, **columns):
  return SourceSpec(kind=kind, pattern=pattern, media_root="/data", columns=Columns(**columns))


@pytest.fixture
def sources(tmp_path):
  """The same rows in every kind of table."""
  names = [f"{'x' * (number % 7)}{number}.mp4" for number in range(COUNT)]
  lines = [json.dumps({"uri": name, "caption": "é" * (i % 5)}) for i, name in enumerate(names)]
  (tmp_path / "a.jsonl").write_text("\n".join(lines))
  (tmp_path / "a.csv").write_text("uri,caption\n" + "".join(f"{name},x\n" for name in names))
  pa.parquet.write_table(pa.table({"uri": names}), tmp_path / "a.parquet", row_group_size=100)
  for shard in range(30):
    with tarfile.open(tmp_path / f"{shard:02d}.tar", "w") as tar:
      for name in names[shard::30]:
        tar.addfile(tarfile.TarInfo(name), io.BytesIO())
  kinds = {"jsonl": "a.jsonl", "csv": "a.csv", "parquet": "a.parquet", "webdataset": "*.tar"}
  return names, {kind: _source(kind, f"{tmp_path}/{file}") for kind, file in kinds.items()}


def _uris(scan):
  found = [json.loads(line)["uri"] for line in scan.lines()]
  return [uri.rpartition("::")[2].partition("@")[0] for uri in found]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "webdataset"])
def test_a_scan_reads_every_row_once_and_a_limited_one_knows_how_many_there_are(
  kind, sources, monkeypatch
):
  names, specs = sources
  monkeypatch.setattr(parts, "_RANGE_BYTES", 4096)
  scan = sampling.Scan(specs[kind], limit=10**9, seed=0, examples=2)
  assert sorted(_uris(scan)) == sorted(names)
  assert scan.total() == (COUNT, True)
  limited = sampling.Scan(specs[kind], limit=500, seed=0, examples=2)
  found = _uris(limited)
  assert len(found) == len(set(found)) == 500 == limited.rows
  total, exact = limited.total()
  # Parquet states its number of rows.
  assert exact == (kind == "parquet") and total == pytest.approx(COUNT, rel=0 if exact else 0.1)
  if kind != "csv":
    # One part, the first one, is read in order; the others are anywhere.
    place = sorted(names.index(uri) for uri in found)
    assert place[0] < 100 and place[-1] > COUNT / 2


def test_ranges_of_bytes_have_every_line_once(tmp_path, monkeypatch):
  draw = random.Random(0)
  for trial in range(60):
    ends = [b"\n", b"\r\n", b"\n\n"]
    content = b"".join(
      b"x" * draw.randrange(12) + draw.choice(ends) for _ in range(draw.randrange(30))
    )
    content += b"last" * draw.randrange(2)
    (tmp_path / "a.jsonl").write_bytes(content)
    monkeypatch.setattr(parts, "_RANGE_BYTES", 1 + trial % 17)
    spec = _source("jsonl", f"{tmp_path}/a.jsonl")
    found = [line for part in parts.parts_of(spec) for line in parts.lines_of(part.key, spec)]
    assert found == [line for line in io.BytesIO(content) if line.strip()]


def test_rows_by_chance_are_equally_likely():
  counts = np.zeros(40)
  offered = [rows.Row(uri=str(i), raw={}, split="train", modality="video") for i in range(40)]
  for seed in range(4000):
    draw = sampling.Draw(20, seed=seed)
    for row in offered:
      draw.offer(row)
    assert [row.uri for row in draw.first] == [str(i) for i in range(10)]
    assert len({row.uri for row in draw.chance}) == 10 and not draw.everything
    counts[[int(row.uri) for row in draw.chance]] += 1
  # Each of the other 30 rows is drawn with probability 1/3.
  deviation = np.sqrt(4000 * (1 / 3) * (2 / 3))
  assert np.all(counts[:10] == 0) and np.all(abs(counts[10:] - 4000 / 3) < 4 * deviation)


def test_a_draw_of_more_rows_than_there_are_has_all(tmp_path):
  draw = sampling.Draw(9, seed=0)
  for i in range(7):
    draw.offer(rows.Row(uri=str(i), raw={}, split="train", modality="video"))
  assert [row.uri for row in draw.first + draw.chance] == list("0123456") and draw.everything
