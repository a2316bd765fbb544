"""Ledger law: every row that an independent reader finds is written, rejected, dead or quarantined, in one place.

Each test runs one job over many damaged files. What counts as a row of damaged input:

- JSON lines: a line that is not blank. Tables: a line after the header that is not empty (no cell spans lines here).
- `.gz`: the complete lines before the damage, and one for the damage. A header that cannot be read: one for the table.
- Parquet: rows of each row group that pyarrow reads, and one for each that it does not; one for a file without footer.
- tar: media of each sample without a fault, one for each other sample, including the one that a damage interrupts, and
  one for the damage or for what follows the end marker.
- Class folders: a media file, wherever it is, that is not hidden and not below a folder that is not a split.
"""

import collections
import csv
import gzip
import io
import json
import os
import pathlib
import random
import re
import zlib

import pyarrow as pa
import pyarrow.parquet
import pytest

from beam_jobs import preprocess, verify
from data import schema, tfrecord
from tests.beam_jobs import damage, media

ROWS = 6  # Per file.
# In names of files: a pattern, an escape, a byte that is not UTF-8.
ODD = ("", "[1]?", "#%20 ", "\n", os.fsdecode(b"\xff"), *[""] * 25)
PICTURE = media.image(height=16, width=16)


def account(manifest: pathlib.Path, output: pathlib.Path, *flags: str) -> tuple[int, list[str]]:
  """Number of rows that a job accounts for, and what it has for each: its media and captions, or its ledger's line."""
  result = preprocess.run(
    [
      *(f"--manifest={manifest}", f"--output={output}", "--task=t", "--content=pixels"),
      *("--resolutions=16x16", "--num_frames=1", "--num_shards=1", "--decode_isolation=thread"),
      *("--num_validation_shards=1", *flags),
    ]
  )
  places = []
  for path in output.glob("*/*"):
    if re.search(r"-of-\d+$", path.name):
      records = map(schema.decode, tfrecord.read_records(io.BytesIO(path.read_bytes())))
      places += [json.dumps({"uri": record.uri, "captions": record.captions}) for record in records]
    elif path.name.endswith((".dead.jsonl", ".rejected.jsonl")):
      places += path.read_text().splitlines()
  assert verify.main(result["completed"]) == 0
  rows = sum(result[kind] for kind in ("written", "rejected", "dead", "quarantined"))
  assert rows == result["rows"] == len(places)
  assert result["written"] > rows / 10
  return rows, places


def check_marks(places: list[str], expected: dict[str, str]) -> None:
  """Each row, of which its mark is undamaged, is in one place: by its mark, else by its line."""
  found = collections.Counter()
  for place in places:
    uri = json.loads(place)["uri"]
    marks = set(re.findall(r"mark-[0-9a-f]{8};", place))
    found.update(marks or {uri})
  missing = {mark for mark, line in expected.items() if found[mark] + found[line] != 1}
  assert not missing, sorted(missing)[:5]


def mark(file: int, row: int) -> str:
  """A text that no damage of another one resembles."""
  return f"mark-{zlib.crc32(f'{file} {row}'.encode()):08x};"


def picture(folder: pathlib.Path) -> None:
  (folder / "a.png").write_bytes(PICTURE)


def body_lines(draw: random.Random, lines: list[bytes], end: bytes) -> bytes:
  """Lines of a file, a third of the files intact, the others damaged."""
  content = end.join([*lines, b""])
  return damage.damaged(draw, content) if draw.random() < 0.7 else content


def packed(draw: random.Random, content: bytes) -> bytes:
  """A compressed file; half of them are damaged."""
  content = gzip.compress(content, mtime=0)
  return damage.damaged(draw, content) if draw.random() < 0.5 else content


def decoded(content: bytes, *, is_packed: bool, line_end: bytes = b"\n") -> tuple[bytes, bool]:
  """Complete lines of a file, and whether it ends in a damage."""
  if not is_packed:
    return content, False
  content, cut = damage.gunzipped(content)
  # A carriage return at the end may be half of a line end.
  end = max(content.rfind(b"\n"), content.rfind(line_end, 0, -1)) + 1
  return (content[:end] if cut else content), cut


def test_json_lines(tmp_path):
  picture(tmp_path)
  draw, expected, marks = random.Random(1), collections.Counter(), {}
  others = (b"[]", b"3", b'{"a":' * 999, b'{"uri": "a.png", "uri": "b.png"}', b"null", b"", b" \t")
  for file in range(60):
    lines = [json.dumps({"uri": "a.png", "caption": mark(file, i)}).encode() for i in range(ROWS)]
    lines.insert(draw.randrange(ROWS), draw.choice(others))
    content = body_lines(draw, lines, draw.choice((b"\n", b"\r\n"))) if file else lines[0] + b"\n"
    name = tmp_path / f"rows-{file:03d}{ODD[file % 30]}.jsonl{'.gz' if file % 4 == 1 else ''}"
    name.write_bytes(packed(draw, content) if file % 4 == 1 else content)
    content, cut = decoded(name.read_bytes(), is_packed=file % 4 == 1)
    found = content.split(b"\n")
    expected[str(name)] += cut + sum(
      bool(line.decode(errors="replace").lstrip("\ufeff").strip()) for line in found
    )
    marks |= _intact(lines, found, lambda number: "")
  rows, places = account(tmp_path / "rows-*", tmp_path / "out", "--source=jsonl")
  assert rows == expected.total()
  check_marks(places, marks)


def _is_header(line: bytes, delimiter: str) -> bool:
  try:
    next(csv.reader([line.decode()], delimiter=delimiter, strict=True), None)
    return b"\0" not in line
  except (UnicodeDecodeError, csv.Error):
    return False


def _intact(lines, found, place) -> dict[str, str]:
  """mark -> place by its line number, of lines that are intact in a damaged file, and their mark is nowhere else."""
  marks = {line: re.search(rb"mark-[0-9a-f]{8};", line)[0] for line in lines if b"mark" in line}
  content = b"\n".join(found)
  return {
    mark.decode(): place(found.index(line) + 1)
    for line, mark in marks.items()
    if content.count(mark) == 1 and line in found
  }


@pytest.mark.parametrize("kinetics", [False, True])
def test_tables(kinetics, tmp_path):
  picture(tmp_path)
  draw, expected, marks = random.Random(2 + kinetics), collections.Counter(), {}
  for file in range(50 if kinetics else 180):
    ending = draw.choice(("csv", "tsv", "csv.gz", "tsv.gz", "CSV", "TSV.GZ")) if file else "csv"
    cell = b"\t" if ending[0] in "tT" else b","
    lines = [cell.join((b"a.png", mark(file, i).encode(), b"1")) for i in range(ROWS)]
    header = cell.join((b"uri", b"caption", b"label"))
    if kinetics:
      header = cell.join((b"label", b"youtube_id", b"time_start", b"time_end", b"split"))
      lines = [cell.join((mark(file, i).encode(), b"a", b"1", b"2", b"train")) for i in range(ROWS)]
    end = draw.choice((b"\n", b"\r\n", b"\r"))
    header = draw.choice((b"", b"\xef\xbb\xbf")) + header
    pair = draw.sample(range(ROWS - 1), draw.random() < 0.3)
    for at in pair:
      # Two stray quotes, which make one cell of a row, a line end and the beginning of the next row.
      cells, column = lines[at + 1].split(cell), draw.randrange(len(header.split(cell)))
      before = lines[at].split(cell)
      before[column], cells[column] = b'"' + before[column], cells[column] + b'"'
      lines[at : at + 2] = [cell.join(before), cell.join(cells)]
    # Of a row in quotes whose uri is damaged too, nothing is left to tell that it is one.
    rest = end.join([*lines, b""]) if pair else body_lines(draw, lines, end)
    content = header + end + rest
    if file and draw.random() < 0.1:
      content = draw.choice(
        (b'"' + content, b"\xff" + content, content.decode("latin-1").encode("utf-16"))
      )
    name = tmp_path / f"rows-{file:03d}{ODD[file % 30]}.{ending}"
    is_packed = name.name.lower().endswith(".gz")
    if is_packed:
      content = gzip.compress(content, mtime=0) if pair else packed(draw, content)
    name.write_bytes(content)
    content, cut = decoded(content, is_packed=is_packed, line_end=b"\r")
    found = damage.table_lines(content)
    if content and not _is_header(found[0], cell.decode()):
      expected[str(name)] += 1
    else:
      expected[str(name)] += cut + sum(map(bool, found[1:]))
      if found[0] == header:
        marks |= _intact(lines, found, lambda number, name=name: f"{name}:{number}")
  flags = ["--source=csv"]
  if kinetics:
    flags = ["--source=kinetics", "--uri_template={youtube_id}.png"]
  rows, places = account(tmp_path / "rows-*", tmp_path / "out", *flags)
  assert rows == expected.total()
  check_marks(places, marks)


def test_parquet(tmp_path):
  picture(tmp_path)
  draw, expected, marks = random.Random(4), collections.Counter(), {}
  for file in range(50):
    names = [mark(file, i) for i in range(ROWS)]
    table = pa.table(
      {
        "uri": ["a.png"] * ROWS,
        "captions": [[name] for name in names],
        "label": pa.array([None if i % 3 else i for i in range(ROWS)]),
        "scores": [{"a": i, "b": [{"c": str(i)}]} for i in range(ROWS)],
      }
    )
    path = tmp_path / f"rows-{file:03d}.parquet"
    pa.parquet.write_table(
      table,
      path,
      row_group_size=draw.choice((3, 100)),
      compression=draw.choice(("NONE", "snappy", "zstd")),
      write_page_checksum=draw.random() < 0.5,
      data_page_version=draw.choice(("1.0", "2.0")),
      use_dictionary=draw.random() < 0.5,
    )
    content = bytearray(path.read_bytes())
    if file % 5 == 4:
      content = damage.damaged(draw, content)
    elif file % 5:  # Bytes of pages.
      for _ in range(file % 5):
        content[draw.randrange(len(content) // 2)] = draw.randrange(256)
    path.write_bytes(content)
    try:
      opened = pa.parquet.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError, ValueError):
      expected[str(path)] += 1
      continue
    for group in range(opened.num_row_groups):
      try:
        read = opened.read_row_group(group, columns=["uri", "captions", "label", "scores"])
      except (pa.ArrowException, OSError, ValueError):
        expected[str(path)] += 1
        continue
      expected[str(path)] += read.num_rows
      if file % 5 == 0:
        marks |= {name: "" for (name,) in read["captions"].to_pylist()}
  rows, places = account(tmp_path / "rows-*.parquet", tmp_path / "out")
  assert rows == expected.total()
  check_marks(places, marks)


def _cut_at_a_block(draw: random.Random, content: bytes) -> bytes:
  return content[: draw.randrange(2, len(content) // 512) * 512]


TAR_CHANGES = (
  lambda draw, content: content,
  damage.damaged,
  damage.header_flipped,
  damage.resized,
  _cut_at_a_block,
  lambda draw, content: content + draw.choice((b"x", bytes(9999), damage.archive(draw, PICTURE))),
)


def test_tar_files(tmp_path):
  draw, expected = random.Random(5), collections.Counter()
  sound = set()
  for file in range(160):
    content = damage.archive(draw, PICTURE)
    name = f"{file:03d}{ODD[file % 4]}.{'TAR' if file % 9 == 8 else 'tar'}"
    change = TAR_CHANGES[draw.randrange(len(TAR_CHANGES)) if file else 0]
    content = change(draw, content)
    (tmp_path / name).write_bytes(content)
    expected.update(damage.Archive(content).rows(name))
    sound |= {name} if change is TAR_CHANGES[0] else set()
  rows, places = account(tmp_path / "*", tmp_path / "out", "--source=webdataset")
  assert rows == expected.total()
  found = collections.Counter(json.loads(place)["uri"].split("@")[0] for place in places)
  assert found == expected
  entries = map(json.loads, places)
  failed = {
    one["uri"].split("@")[0] for one in entries if one.get("reason", "duplicate") != "duplicate"
  }
  assert not {uri for uri in failed if uri.split("::")[0] in sound and uri.endswith(".png")}


FOLDERS = ("a", "b c", "d#%20", "é", "e\nf", ".hidden", "[g]*", "日本")
FILES = (
  "1.png",
  "2.PNG",
  "3.Mp4",
  ".4.png",
  "5.txt",
  "6 #%41.png",
  "7\n.png",
  "8[x]?.png",
  "._1.png",
)


@pytest.mark.parametrize("splits", [False, True])
def test_class_folders(splits, tmp_path):
  root, draw = tmp_path / "root", random.Random(6 + splits)
  tops = ("train", "val", "test", ".ipynb_checkpoints") if splits else ("",)
  places = [(top, *below) for top in tops for below in ((), *((c,) for c in FOLDERS))]
  for place in [
    *places,
    (),
    *((*place, "below", "deeper") for place in places if place[-1:] > (FOLDERS[0],)),
  ]:
    folder = root.joinpath(*place)
    folder.mkdir(parents=True, exist_ok=True)
    for file in draw.sample(FILES, 6):
      (folder / file).write_bytes(PICTURE)
  classes = [root / top / "a" for top in tops]
  for folder in classes:
    (folder / "nowhere.png").symlink_to(tmp_path / "unmounted" / "a.png")
    (folder / "itself.png").symlink_to(folder / "itself.png")
    (folder / "loop").symlink_to(root, target_is_directory=True)
  (tmp_path / "classes.csv").write_text("2,a\n")
  flags = [f"--validation_labels={tmp_path / 'classes.csv'}"] if splits else []
  rows, places = account(root, tmp_path / "out", "--source=folder", *flags)
  expected = []
  for folder, _, files in os.walk(root):
    inside = pathlib.Path(folder).relative_to(root)
    read = not splits or inside == pathlib.Path() or inside.parts[0] in ("train", "val")
    for file in files if read else ():
      hidden = any(part.startswith(".") for part in (inside / file).parts)
      if re.search(r"(?i)\.(png|mp4)\Z", file) and not hidden:
        expected.append(str(inside / file))
  found = [json.loads(place)["uri"] for place in places]
  assert sorted(found) == sorted(expected)
  assert rows == len(expected)
