"""A manifest of the wrong form is rejected by name before any work, or its rows say what to do."""

import argparse
import gzip
import json
import os
import pathlib

import pyarrow as pa
import pyarrow.parquet
import pytest

from beam_jobs import preprocess
from beam_jobs.sources import columns, folders, members, parts, rows, tables, webdataset
from beam_jobs.sources import spec as source_spec
from tests.beam_jobs.damage import Archive
from walt_t5x.files import storage

ROWS = [{"uri": f"{i}.png", "caption": "red"} for i in range(3)]
LINES = [json.dumps(row) for row in ROWS]
ARRAY, OBJECT = (
  r"holds one JSON array; .*jq -c '\.\[\]'",
  r"object that is spread over lines; .*jq -c \. ",
)
JSON_FORMS = {
  "an array": (json.dumps(ROWS), ARRAY),
  "an array over lines": (json.dumps(ROWS, indent=2), ARRAY),
  "an array of lines": ("[\n" + ",\n".join(LINES) + "\n]\n", ARRAY),
  "a long array": (json.dumps(ROWS * 50_000), ARRAY),
  "an object with an array": (json.dumps({"data": ROWS}, indent=1), OBJECT),
  "an object over lines": (json.dumps(ROWS[0], indent=4), OBJECT),
  "UTF-16": ("\n".join(LINES).encode("utf-16"), "is UTF-16, expected UTF-8; iconv"),
}


def run(folder: pathlib.Path, manifest: str, *flags: str) -> None:
  arguments = ["--task=t", "--content=pixels", "--resolutions=16x16", "--num_frames=1", *flags]
  preprocess.run([f"--manifest={folder}/{manifest}", f"--output={folder}/out", *arguments])


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".json.gz", ".NDJSON.GZ"])
@pytest.mark.parametrize("form", JSON_FORMS)
def test_json_that_is_not_one_object_per_line_is_rejected(form, ending, tmp_path):
  text, message = JSON_FORMS[form]
  content = text if isinstance(text, bytes) else text.encode()
  packed = ending.lower().endswith(".gz")
  (tmp_path / f"rows{ending}").write_bytes(gzip.compress(content) if packed else content)
  with pytest.raises(ValueError, match=message):
    run(tmp_path, f"rows{ending}")
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("form", list(JSON_FORMS)[:6])
def test_lines_of_another_file_in_that_form_say_what_to_do(form):
  lines = filter(None, map(str.strip, JSON_FORMS[form][0][:5000].splitlines()))
  parsed = [rows.parse_line(line, "") for line in lines]
  problems = [row.problem for row in parsed if row.problem]
  assert problems and all(reason == "bad_manifest_line" for reason, _ in problems)
  assert "one object" in problems[0][1] and "jq -c" in problems[0][1]
  assert sum("jq -c" in message for _, message in problems) >= len(problems) / 2


def test_a_broken_line_does_not_reject_a_file(tmp_path):
  for first in ("[1, 2]", "{", '{"uri": "a.png",', "3", ""):
    (tmp_path / "rows.jsonl").write_text("\n".join([first, *LINES]))
    found = source_spec.first_look.check_json_lines(str(tmp_path / "rows.jsonl"), columns.Columns())
    assert found == ""


NEARLY = {
  ("video", "caption"): "--column uri=video",
  ("path", "text"): "--column uri=path --column caption=text",
  ("Filename", "Prompt"): "--column uri=Filename --column caption=Prompt",
  ("url", "file_url", "alt_text"): "--column uri=url --column caption=alt_text",
  ("video_caption", "clip_path"): "--column uri=clip_path --column caption=video_caption",
  ("image_id", "caption_en", "text_path"): "--column uri=text_path --column caption=caption_en",
  ("caption_file", "id"): "--column uri=caption_file",
  ("uri", "short_text", "Description"): "--column caption=Description",
  ("uri", "text", "class"): "--column caption=text",
  ("image", "class"): "--column uri=image --column class=class --class_names=FILE",
  ("uri", "description"): "--column caption=description",
  ("uri", "class"): "--column class=class --class_names=FILE",
  ("uri", "captoin"): "--column caption=captoin",
  ("uri", "caption", "text"): "",
  ("uri", "label"): "",
  ("number", "words"): None,
}


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("header", NEARLY, ids="-".join)
def test_columns_of_other_names_are_answered_with_the_flags_that_read_them(
  header, ending, tmp_path, capsys
):
  flags, path = NEARLY[header], tmp_path / f"rows.{ending}"
  row = {name: "a.png" if f"uri={name}" in f"{flags} uri=uri" else "high jump" for name in header}
  if ending == "parquet":
    pa.parquet.write_table(pa.Table.from_pylist([row]), path)
  elif ending == "csv":
    path.write_text(f"{','.join(row)}\n{','.join(row.values())}\n")
  else:
    path.write_text(json.dumps(row) + "\n")
  if "uri" not in header and (flags or ending != "jsonl"):
    answer = f"set {flags}$" if flags else r"map them with --column FIELD=COLUMN"
    with pytest.raises(ValueError, match=answer) as error:
      _source(path)
    assert all(name in str(error.value) for name in header)
  else:
    _source(path)
    said = capsys.readouterr().err
    assert f"{list(header)}; {flags} reads more of them\n" in said if flags else said == ""
  if flags:
    (tmp_path / "names").write_text("high jump\n")
    given = flags.replace("=FILE", f"={tmp_path / 'names'}").replace("--column ", "--column=")
    source = _source(path, *given.split())
    (line,) = (line for part in parts.parts_of(source) for line in parts.lines_of(part.key, source))
    found = rows.parse_line(line, "")
    told = "caption" in header or "caption=" in flags or "class=" in flags
    assert (found.uri, found.captions) == ("a.png", ("high jump",) * told)
    assert capsys.readouterr().err == ""


def _source(path, *flags):
  parser = argparse.ArgumentParser()
  source_spec.add_arguments(parser)
  return source_spec.source_of(parser.parse_args([f"--manifest={path}", *flags]), scores=())


STRUCT = {"image": [{"bytes": b"x", "path": "a.png"}], "text": ["x"]}
FILES = {
  "utf16.csv": ("uri,caption\na.png,x\n".encode("utf-16"), "got UTF-16, expected UTF-8: save as"),
  "semicolons.csv": (b"uri;caption\na.png;x\n", "cells are separated by ';', expected ','"),
  "tabs.csv": (b"uri\tcaption\na.png\tx\n", r"cells are separated by '\\t', expected ','"),
  "headless.csv": (b"a.png,x\nb.png,y\n", "its first line must contain the names of the columns"),
  "twice.csv": (b"uri,caption,caption\na.png,x,y\n", r"the columns \['caption'\] twice"),
  "quote.csv": (b'"uri,caption\na.png,x\n', "expected column names in one line"),
  "cut.csv.gz": (gzip.compress(b"uri,caption\n")[:12], "got a damaged .gz file"),
  "struct.parquet": (
    STRUCT,
    r"; set --column caption=text; .*\['image'\] are not read: write them to files or to webdataset",
  ),
  "rows.tar.gz": (b"", "not compressed, .* decompress it with gunzip"),
  "rows.jsonl.zst": (b"", "plain or as .gz; decompress it with unzstd"),
  "empty.parquet": (b"", "is not a Parquet file"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_table_of_the_wrong_form_is_rejected(name, tmp_path):
  content, message = FILES[name]
  if isinstance(content, dict):
    pa.parquet.write_table(pa.table(content), tmp_path / name)
    with pytest.raises(ValueError, match=r"column image .* is struct<.*expected paths"):
      run(tmp_path, name, "--column=uri=image")
  else:
    (tmp_path / name).write_bytes(content)
  with pytest.raises(ValueError, match=message):
    run(tmp_path, name)
  assert not (tmp_path / "out").exists()


def test_paths_that_cannot_be_read_are_rejected(tmp_path, monkeypatch):
  with pytest.raises(ValueError, match="expected a path in UTF-8"):
    run(tmp_path, os.fsdecode(b"\xff.csv"))
  for folder in ("cat", "dog"):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "a.png").write_bytes(b"x")
  listed = os.scandir

  def scandir(path):
    # The tests may run as root, who may read everything.
    if path.endswith("dog"):
      raise PermissionError(13, "Permission denied", path)
    return listed(path)

  monkeypatch.setattr(os, "scandir", scandir)
  with pytest.raises(ValueError, match=r"no permission to read the folder .*/dog"):
    folders.class_folders(str(tmp_path))


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_folders_of_spark_name_the_pattern_and_are_columns(ending, tmp_path):
  for split in ("train", "validation"):
    folder = tmp_path / "rows" / f"split={split}" / "group=a%2Fb"
    folder.mkdir(parents=True)
    for name in (f"part-0.snappy.{ending}", f".part-0.snappy.{ending}.crc", f"._part-0.{ending}"):
      table = pa.table({"uri": ["a.png"], "caption": ["x"]})
      if ending == "csv":
        (folder / name).write_text("uri,caption\na.png,x\n")
      else:
        pa.parquet.write_table(table, folder / name)
  (tmp_path / "rows" / "_SUCCESS").write_bytes(b"")
  with pytest.raises(ValueError, match=rf"set --manifest '.*/rows/\*/\*/\*\.{ending}'"):
    run(tmp_path, "rows")
  found = list(source_spec.files(f"{tmp_path}/rows/*/*/*.{ending}"))
  assert [os.path.basename(path) for path in found] == [f"part-0.snappy.{ending}"] * 2
  mapped = columns.Columns()
  for path, split in zip(found, ("train", "validation")):
    lines = (
      tables.csv_lines(path, mapped) if ending == "csv" else tables.parquet_lines(path, 0, mapped)
    )
    (row,) = map(json.loads, lines)
    assert (row["split"], row["group"], row["uri"]) == (split, "a/b", "a.png")


def test_folders_with_other_equal_signs_are_not_columns():
  for folder in (os.fsdecode(b"label=\xff"), "x=1", "label=%FF"):
    assert tables.partitions(f"/{folder}/rows.csv", columns.Columns()) == {}


def test_a_wildcard_stands_for_no_hidden_file_or_folder(tmp_path):
  for name in ("a/1.csv", "a/._1.csv", ".ipynb_checkpoints/1.csv", ".b/1.csv"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
  assert list(source_spec.files(f"{tmp_path}/*/*.csv")) == [f"{tmp_path}/a/1.csv"]
  assert list(source_spec.files(f"{tmp_path}/.b/*.csv")) == [f"{tmp_path}/.b/1.csv"]


def test_relative_paths_start_where_a_pattern_is_one_folder(tmp_path):
  parser = argparse.ArgumentParser()
  source_spec.add_arguments(parser)
  for folder in ("0", "1"):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "rows.jsonl").write_text(LINES[0])
  for pattern, root in (("*/*.jsonl", ""), ("{0..1}/rows.jsonl", ""), ("1/*.jsonl", "/1")):
    args = parser.parse_args([f"--manifest={tmp_path}/{pattern}"])
    assert source_spec.source_of(args, scores=()).media_root == f"{tmp_path}{root}"


def test_a_missing_file_with_another_spelling_names_it(tmp_path):
  (tmp_path / "a b#.png").write_bytes(b"x")
  for name, message in (
    ("a%20b%23.png", r"there is .*/a b#\.png, expected names that are not URL-encoded"),
    ("clips\\a.png", "a backslash is a character of a name here"),
    ("c.png", r"no file at .*c\.png$"),
  ):
    with pytest.raises(FileNotFoundError, match=message):
      members.read_media(f"{tmp_path}/{name}")


def test_links_that_lead_nowhere_are_files(tmp_path):
  for name, target in (("a", "nowhere"), ("b", "b"), ("c", "folder"), ("d", "file")):
    (tmp_path / name).symlink_to(target)
  (tmp_path / "folder").mkdir()
  (tmp_path / "file").write_bytes(b"")
  assert storage.names(tmp_path) == ["a", "b", "d", "file"]
  assert storage.folders(tmp_path) == ["c", "folder"]


def test_a_tar_that_another_follows_is_named(tmp_path):
  from tests.beam_jobs.public_corpora_test import _tar

  for i in range(2):
    _tar(tmp_path / f"{i}.tar", [(f"{i}.png", b"x"), (f"{i}.txt", b"red")])
  content = b"".join((tmp_path / f"{i}.tar").read_bytes() for i in range(2))
  (tmp_path / "2.tar").write_bytes(content)
  first, last = map(
    json.loads, webdataset.tar_lines(str(tmp_path / "2.tar"), "2.tar", columns.Columns())
  )
  assert first["captions"] == ["red"]
  assert "bytes follow its end marker at byte 2048" in last["source_error"]
  assert Archive(content).followed
