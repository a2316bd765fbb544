"""Every JSON type, and every type of a Parquet column, in every field: a documented meaning, or a dead letter."""

import decimal
import io
import itertools
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet
import pytest

from beam_jobs import preprocess
from beam_jobs.filters import row_filters
from beam_jobs.sources import parts, rows, tables, webdataset
from beam_jobs.sources.columns import FIELDS, Columns
from data import schema
from tests.beam_jobs import media

# JSON texts, because some of them are not written by `json.dumps`.
VALUES = (
  *("null", "true", "false", "0", "3", "-1", "1.5", "3.0", "1e20", "NaN", "Infinity", "-Infinity"),
  *("1e400", "1" + "0" * 400, "1" * 5000),
  *(
    '""',
    '"x"',
    '"train"',
    '"image"',
    '"7"',
    '"1e400"',
    r'"\ud800"',
    r'"\u0000"',
    '"[1, 2]"',
    '"[1"',
  ),
  *("[0, 0.5, 0, 1]", '"[0, 0.5, 0, 1]"', "[0, 0.5, 1, 1]"),
  *("[]", "[null]", "[true]", '["x"]', "[1]", "[1e39]", "[1%s]" % ("0" * 400), '[["x"]]'),
  *("{}", '{"a": {"b": [1]}}', json.dumps("[" * 99_999), json.dumps("[%s]" % ("1" * 5000))),
  *("[" * depth + "]" * depth for depth in (90, 900, 980, 990, 99_999)),
  json.dumps("a.tar::a.png@%s+1" % ("1" * 5000)),
)
NAMES = (*FIELDS, "caption", "scores", "kept")
# None: the lines are not mapped.
MAPPINGS = (
  None,
  Columns(keep=("kept",), split_names=(("x", "train"),), class_names=(("x", "x"),)),
  Columns(validation_percent=50),
  Columns(uri_template="{kept:06d}.png"),
  Columns(uri_template="{kept}.png"),
  Columns(captions=(("caption", 1.0), ("captions", 2.0))),
)


def lines_of(mapping: Columns | None):
  """(field, value, line) of every value in every field, in a row that is valid otherwise."""
  for number, (name, value) in enumerate(itertools.product(NAMES, VALUES)):
    row = {"uri": '"a.png"', "caption": f'"red {number}"', "kept": "1"}
    if name == "captions":
      del row["caption"]
    text = ", ".join(f'"{key}": {item}' for key, item in (row | {name: value}).items())
    line = f"{{{text}}}"
    if mapping:
      (line,) = parts.json_lines(line.encode(), mapping)
    yield name, value, line if isinstance(line, str) else line.decode()


def is_number(value, low, high):
  return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def is_text(value):
  return isinstance(value, str) and rows.is_utf8(value)


MEANINGS = {
  "uri": lambda value: is_text(value) and value,
  "caption": lambda value: all(map(is_text, value if isinstance(value, list) else [value])),
  "captions": lambda value: isinstance(value, list) and all(map(is_text, value)),
  "caption_weights": lambda value: (
    isinstance(value, list) and len(value) == 1 and is_number(value[0], 1e-9, 1e30)
  ),
  "label": lambda value: isinstance(value, int) and is_number(value, -1, 2**62 - 1),
  "start_seconds": lambda value: is_number(value, 0, 9_999_999),
  "end_seconds": lambda value: is_number(value, 0, 9_999_999),
  "crop": lambda value: (
    isinstance(value, list)
    and len(value) == 4
    and all(is_number(one, 0, 1) for one in value)
    and value[0] < value[1]
    and value[2] < value[3]
  ),
  "split": lambda value: value in schema.SPLITS,
  "modality": lambda value: value in schema.MODALITIES,
  "group": lambda value: isinstance(value, str | int) and not isinstance(value, bool),
}


def check(row: rows.Row, name: str) -> None:
  """A row can be assigned to a shard, filtered and written; a problem says what is wrong with the field."""
  assert {len(row.key), len(row.identity), len(row.shard_key)} == {64}
  assert row.split in schema.SPLITS and row.modality in schema.MODALITIES
  assert isinstance(row_filters.score(row.raw, name), float | None)
  json.dumps({"row": row.raw})
  if row.problem:
    reason, message = row.problem
    assert reason in rows.PROBLEMS
    assert "got " in message and "expected " in message, message
    field = {"caption": "captions", "kept": "uri", "template": "uri"}.get(name, name)
    assert reason == "bad_manifest_line" or f"{field}: " in message, message


def test_a_field_of_a_line_has_its_documented_type_or_is_a_problem():
  for name, value, line in lines_of(None):
    row = rows.parse_line(line, "/data")
    check(row, name)
    try:
      loaded = rows.load_json(value)
    except ValueError:
      assert row.problem[0] == "bad_manifest_line"
      continue
    meaning = MEANINGS.get(name, lambda _: True)
    accepted = name != "uri" if loaded is None else bool(meaning(loaded))
    assert accepted == (row.problem is None), (name, value[:40], row.problem)


@pytest.mark.parametrize("mapping", MAPPINGS[1:])
def test_a_field_of_a_mapped_line_is_read_or_is_a_problem(mapping):
  for name, _, line in lines_of(mapping):
    check(rows.parse_line(line, "/data"), name)


@pytest.mark.parametrize("mapped", [False, True])
def test_a_job_counts_every_row(tmp_path, mapped):
  (tmp_path / "a.png").write_bytes(media.image(seed=1, height=16, width=16))
  lines = [line for _, _, line in lines_of(None)]
  (tmp_path / "rows.jsonl").write_text("".join(f"{line}\n" for line in lines))
  (tmp_path / "names.txt").write_text("x\n")
  flags = ["--split_name=x=train", f"--class_names={tmp_path}/names.txt"] if mapped else []
  result = preprocess.run(
    [
      f"--manifest={tmp_path}/rows.jsonl",
      f"--output={tmp_path}/out",
      "--task=t",
      "--content=pixels",
      "--resolutions=16x16",
      "--num_frames=1",
      "--num_shards=1",
      "--decode_isolation=thread",
      "--filter=kept>=1",
      *flags,
    ]
  )
  assert result["rows"] == len(lines)
  assert result["rows"] == result["written"] + result["rejected"] + result["dead"]
  assert min(result["written"], result["dead"]) > 100
  assert result["rejected_by_reason"]["no_kept"] > 10
  problems = rows.PROBLEMS if mapped else rows.PROBLEMS - {"bad_source_row"}
  assert problems <= result["dead_by_reason"].keys()


def of_type(value, arrow):
  return pa.array([value], arrow)


COLUMNS = {
  "nanoseconds": of_type(1, pa.timestamp("ns")),
  "microseconds": of_type(1, pa.timestamp("us")),
  "after year 9999": of_type(2**62, pa.timestamp("ms")),
  "time zone": of_type(1, pa.timestamp("us", "Europe/Berlin")),
  "unknown time zone": of_type(1, pa.timestamp("us", "Nowhere/X")),
  "date": of_type(1, pa.date32()),
  "date after year 9999": of_type(2**30, pa.date32()),
  "time": of_type(1, pa.time64("us")),
  "duration": of_type(1, pa.duration("ns")),
  "long duration": of_type(2**62, pa.duration("s")),
  "decimal": pa.array([decimal.Decimal("1.5")]),
  "decimal integer": pa.array([decimal.Decimal("3")]),
  "half": of_type(1.5, pa.float16()),
  "float": pa.array([1.5]),
  "nan": pa.array([float("nan")]),
  "unsigned": of_type(2**63, pa.uint64()),
  "bool": pa.array([True]),
  "null": pa.nulls(1),
  "struct": pa.array([{"a": 1, "b": [b"\xff"]}]),
  "struct with a date": of_type({"a": 2**62}, pa.struct([("a", pa.timestamp("us"))])),
  "map": of_type([("a", 1)], pa.map_(pa.string(), pa.int64())),
  "map of bytes": of_type([(b"a", 1)], pa.map_(pa.binary(), pa.int64())),
  "list": pa.array([["x"]]),
  "nested list": pa.array([[["x"]]]),
  "list of decimals": pa.array([[decimal.Decimal("1.5")]]),
  "binary": pa.array([b"x"]),
  "binary that is not UTF-8": pa.array([b"\xff"]),
  "text that is not UTF-8": pa.StringArray.from_buffers(
    1, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")
  ),
  "dictionary": pa.array(["x"]).dictionary_encode(),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_column_of_a_parquet_file_is_read_or_is_a_problem(tmp_path, kind):
  path = str(tmp_path / "a.parquet")
  table = {"uri": pa.array(["a.png"]), "caption": pa.array(["red"]), "odd": COLUMNS[kind]}
  pa.parquet.write_table(pa.table(table), path)
  mappings = {name: Columns(fields=((name, "odd"),), validation_percent=50) for name in FIELDS}
  mappings["class"] = Columns(fields=(("class", "odd"),), class_names=(("x", "x"),))
  mappings["caption"] = Columns(captions=(("odd", 1.0),))
  mappings["split"] = Columns(fields=(("split", "odd"),), split_names=(("x", "train"),))
  mappings["kept"] = Columns(keep=("odd",))
  mappings["template"] = Columns(uri_template="{odd:06d}.png")
  for name, mapping in mappings.items():
    (line,) = tables.parquet_lines(path, 0, mapping)
    row = rows.parse_line(line, "/data")
    check(row, "odd" if row.problem and row.problem[1].startswith("odd: ") else name)


def test_a_crop_is_the_same_from_every_source(tmp_path):
  crop = [0.1, 0.9, 0.0, 1.0]
  texts = ("[0.1, 0.9, 0.0, 1.0]", "[0.1 0.9 0.  1. ]", "[1e-1,0.9,0,1]")
  member = json.dumps({"box": crop}).encode()
  with tarfile.open(tmp_path / "a.tar", "w") as tar:
    for name, content in (("a.json", member), ("a.png", b"")):
      info = tarfile.TarInfo(name)
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))
  quoted = "".join(f'a.png,"{text}"\n' for text in texts)
  (tmp_path / "a.csv").write_text(f"uri,box\n{quoted}a.png,\n")
  lists = {
    "single": pa.array([crop], pa.list_(pa.float32())),
    "double": pa.array([crop]),
    "decimal": pa.array([[decimal.Decimal(str(edge)) for edge in crop]]),
    "array": pa.array([crop], pa.list_(pa.float64(), 4)),
  }
  mapping = Columns(fields=(("crop", "box"),))
  found = [*tables.csv_lines(str(tmp_path / "a.csv"), mapping)]
  assert rows.parse_line(found.pop(), "").crop is None
  found += webdataset.tar_lines(str(tmp_path / "a.tar"), "a.tar", mapping)
  found += parts.json_lines(b'{"uri": "a.png", "box": [0.1, 0.9, 0, 1]}', mapping)
  for name, column in lists.items():
    path = str(tmp_path / f"{name}.parquet")
    pa.parquet.write_table(pa.table({"uri": pa.array(["a.png"]), "box": column}), path)
    found += tables.parquet_lines(path, 0, mapping)
  assert len(found) == 9
  for line in found:
    row = rows.parse_line(line if isinstance(line, str) else line.decode(), "")
    assert row.crop == tuple(crop) and not row.problem


def test_decimals_are_numbers_and_a_field_that_is_null_is_missing(tmp_path):
  path = str(tmp_path / "a.parquet")
  decimals = {"start_seconds": "1.5", "label": "3", "score": "4.25"}
  table = {name: pa.array([decimal.Decimal(text)]) for name, text in decimals.items()}
  table |= {"uri": pa.array(["a.png"]), "split": pa.nulls(1), "modality": pa.nulls(1)}
  pa.parquet.write_table(pa.table(table), path)
  (line,) = tables.parquet_lines(path, 0, Columns(keep=("score",)))
  for row in (
    rows.parse_line(line, "/data"),
    rows.parse_line(
      '{"uri": "a.png", "start_seconds": 1.5, "label": 3, "score": 4.25, "split": null, "modality": null}',
      "/data",
    ),
  ):
    assert (row.start_seconds, row.label, row.split, row.modality) == (1.5, 3, "train", "image")
    assert row_filters.score(row.raw, "score") == 4.25
    assert row.problem is None
