"""Corpora as people have them: every row is counted, and none is changed by its neighbors."""

import csv
import io
import json
import random
import string
import subprocess
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from beam_jobs import preprocess
from beam_jobs.sources import columns, folders, members, tables, webdataset
from beam_jobs.sources.columns import Columns
from tests.beam_jobs import media

ROWS = Columns()


def parsed(lines):
  return [json.loads(line) for line in lines]


# --- tables ---------------------------------------------------------------------------------------


def test_a_stray_quote_costs_its_own_row(tmp_path):
  table = tmp_path / "rows.tsv"
  stray = {7: 'a "', 20: '"6 feet', 21: '"', 300: '"an unclosed one', 301: 'ends here"', 999: '"'}
  with open(table, "w") as stream:
    stream.write("uri\tcaption\n")
    for i in range(1000):
      stream.write(f"{i}.mp4\t{stray.get(i, f'clip {i}')}\n")
  found = parsed(tables.csv_lines(str(table), ROWS))
  lost = {20, 21, 300, 999}  # A quote in the middle of a cell, or at its end, is a character.
  assert len(found) == 1000
  for i, row in enumerate(found):
    if i in lost:
      assert row["uri"] == f"{table}:{i + 2}" and "quote" in row["source_error"]
    else:
      assert row == {"uri": f"{i}.mp4", "captions": [stray.get(i, f"clip {i}")], "split": "train"}


def test_cells_of_several_lines_are_those_of_the_csv_module(tmp_path):
  path = tmp_path / "rows.csv"
  cells = [[f"{i}.mp4", f'line "{i}"\n{"x" * (i % 5)}, red\r\n\nend' * (i % 3)] for i in range(500)]
  with open(path, "w", newline="") as stream:
    csv.writer(stream).writerows([["uri", "caption"], *cells])
  found = parsed(tables.csv_lines(str(path), ROWS))
  with open(path, newline="") as stream:
    expected = list(csv.DictReader(stream))
  assert [(r["uri"], r.get("captions", [""])[0]) for r in found] == [
    (r["uri"], r["caption"]) for r in expected
  ]
  with open(path, "w", newline="") as stream:
    csv.writer(stream).writerows([["caption", "uri"], *(row[::-1] for row in cells)])
  assert parsed(tables.csv_lines(str(path), ROWS)) == found


@pytest.mark.parametrize("seed", range(5))
def test_every_line_of_a_fuzzed_table_is_a_row(seed, tmp_path):
  """Lines whose quotes are balanced are counted by lines; any other line is a row or a bad row, and none crashes."""
  draw = random.Random(seed)
  for table in range(100):
    path = tmp_path / f"{table}.csv"
    lines = [f"{i}.mp4,{_words(draw)}" for i in range(30)]
    for i in draw.sample(range(30), 8):
      at = draw.randrange(len(lines[i]) + 1)
      lines[i] = (
        lines[i][:at] + draw.choice(['"', '""', ",", '",', ',"', "\x00", "\\"]) + lines[i][at:]
      )
    path.write_text("uri,caption\n" + "\n".join(lines) + "\n")
    found = parsed(tables.csv_lines(str(path), ROWS))
    # A table of these lines alone tells which of them are rows.
    assert len(found) == 30, path.read_text()
    for line, row in zip(lines, found):
      (alone,) = parsed(_alone(line, tmp_path))
      assert ("source_error" in row) == ("source_error" in alone)
      if "source_error" not in row:
        assert row == alone


def _words(draw):
  return "".join(draw.choice(string.ascii_letters + " '") for _ in range(draw.randrange(20)))


def _alone(line, folder):
  (folder / "one.csv").write_text(f"uri,caption\n{line}\n")
  return tables.csv_lines(str(folder / "one.csv"), ROWS)


def test_lists_are_read_as_pandas_and_numpy_write_them():
  lists = [["a man walks", "it's red"], ['say "hi"'], ["one"], ["[music]", "b, c"], ["x", "y\nz"]]
  for captions in lists:
    for text in (str(captions), json.dumps(captions), str(np.array(captions, object))):
      row = columns.to_row({"uri": "a.mp4", "captions": text}, ROWS)
      assert row["captions"] == captions, text
  for text in ("[music] a man walks", "['a'] and ['b']", "[", "['a', b]", "[a]"):
    assert columns.to_row({"uri": "a.mp4", "captions": text}, ROWS)["captions"] == [text]


def test_missing_numbers_of_a_data_frame_are_missing(tmp_path):
  nan = float("nan")
  table = {"uri": ["a.mp4", "b.mp4"], "label": [3.0, nan], "start_seconds": [nan, 0.5]}
  pa.parquet.write_table(pa.table(table), tmp_path / "rows.parquet")
  first, second = parsed(tables.parquet_lines(str(tmp_path / "rows.parquet"), 0, ROWS))
  assert first == {"uri": "a.mp4", "label": 3, "split": "train"}
  assert second == {"uri": "b.mp4", "start_seconds": 0.5, "split": "train"}


def test_a_caption_may_be_a_list(tmp_path):
  (tmp_path / "a.png").write_bytes(media.image())
  (tmp_path / "rows.jsonl").write_text('{"uri": "a.png", "caption": ["red", "a red field"]}\n')
  assert _run(tmp_path / "rows.jsonl", tmp_path / "out")["captions"] == 2


# --- paths ----------------------------------------------------------------------------------------


def test_brackets_in_a_path_are_characters(tmp_path):
  folder = tmp_path / "my clips [1080p] what?"
  folder.mkdir()
  (folder / "a.png").write_bytes(media.image())
  (folder / "rows.jsonl").write_text('{"uri": "a.png", "caption": "red"}\n')
  (folder / "rows.csv").write_text("uri,caption\na.png,red\n")
  for i, name in enumerate(("rows.jsonl", "rows.csv", "rows*.jsonl")):
    assert _run(folder / name, tmp_path / f"out{i}")["written"] == 1


def test_hidden_files_and_folders_are_neither_media_nor_classes(tmp_path):
  for name in ("Archery/a.png", "Biking/b.png", ".ipynb_checkpoints/a.png", "Biking/._b.png"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(media.image())
  assert folders.class_folders(str(tmp_path)) == [("", "Archery"), ("", "Biking")]
  assert len(list(folders.folder_lines(str(tmp_path), "", "Biking", ROWS))) == 1


@pytest.fixture
def kaggle(tmp_path):
  """ImageNet as Kaggle has it: classes below train, one folder of files for val."""
  root = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
  names = [f"train/{c}/{c}_{i}.JPEG" for c in ("n01440764", "n01443537") for i in (1, 2)]
  for name in [*names, *(f"val/ILSVRC2012_val_0000000{i}.JPEG" for i in (1, 2, 3))]:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(media.image())
  (tmp_path / "synsets.txt").write_text("n01440764 tench, x\nn01443537 goldfish, y\n")
  return root


SOLUTION = "ImageId,PredictionString\n" + "".join(
  f"ILSVRC2012_val_0000000{i},{c} 1 2 3 4 {c} 5 6 7 8\n"
  for i, c in ((3, "n01440764"), (1, "n01443537"), (2, "n01443537"))
)


@pytest.mark.parametrize("given", [True, False])
def test_a_flat_split_takes_its_classes_from_a_table(kaggle, given, tmp_path):
  flags = [f"--class_names={tmp_path / 'synsets.txt'}"]
  (tmp_path / ("my.csv" if given else "LOC_val_solution.csv")).write_text(SOLUTION)
  flags += [f"--validation_labels={tmp_path / 'my.csv'}"] if given else []
  report = _run(kaggle, tmp_path / "out", *flags)
  assert report["written"] == 7
  plan = json.loads(next((tmp_path / "out").glob("t*.plan.json")).read_text())
  assert sum(n for name, n in _counts(plan) if "validation" in name) == 3, plan


def _counts(plan):
  stack, found = [("", plan)], []
  while stack:
    name, value = stack.pop()
    if isinstance(value, dict):
      stack += [(f"{name}/{k}", v) for k, v in value.items()]
    elif isinstance(value, int):
      found.append((name, value))
  return found


def test_a_flat_split_without_classes_is_an_error(kaggle, tmp_path):
  with pytest.raises(ValueError, match=r"CLS-LOC/val has files without class folders; set --valid"):
    _run(kaggle, tmp_path / "out")


def test_a_validation_list_of_which_nothing_matches_is_an_error(kaggle, tmp_path):
  (tmp_path / "list.txt").write_text("Archery/v_Archery_g01.avi\n")
  (tmp_path / "LOC_val_solution.csv").write_text(SOLUTION)
  with pytest.raises(ValueError, match=r"--validation_list: none of the 1 files"):
    _run(kaggle, tmp_path / "out", f"--validation_list={tmp_path / 'list.txt'}")


# --- tar files ------------------------------------------------------------------------------------

FORMATS = {"pax": tarfile.PAX_FORMAT, "gnu": tarfile.GNU_FORMAT, "ustar": tarfile.USTAR_FORMAT}
KEYS = ("plain", "été", "日本語", "deep/" * 12 + "n" * 30, "l" * 200)


def _tar(path, files, form=tarfile.PAX_FORMAT):
  with tarfile.open(path, "w", format=form) as tar:
    for name, content in files:
      info = tarfile.TarInfo(name)
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize("form", FORMATS)
def test_members_of_every_format_are_read_as_tarfile_reads_them(form, tmp_path):
  path = tmp_path / "a.tar"
  keys = [key for key in KEYS if form != "ustar" or len(key) < 100]
  files = [(f"{key}.{end}", f"{key} {end}".encode()) for key in keys for end in ("png", "txt")]
  _tar(path, files, FORMATS[form])
  found = parsed(webdataset.tar_lines(str(path), str(path), ROWS))
  assert [row["captions"] for row in found] == [[f"{key} txt"] for key in keys]
  for key, row in zip(keys, found):
    assert members.read_media(row["uri"]) == f"{key} png".encode()


def test_sparse_members_are_read_with_their_holes(tmp_path):
  sparse = tmp_path / "a.png"
  with open(sparse, "wb") as stream:
    stream.write(b"begin")
    stream.seek(1 << 20)
    stream.write(b"end")
  (tmp_path / "b.png").write_bytes(b"plain")
  for form in ("gnu", "posix"):
    command = ["tar", f"--format={form}", "--sparse", "-cf", f"{form}.tar", "a.png", "b.png"]
    subprocess.run(command, cwd=tmp_path, check=True)
    path = str(tmp_path / f"{form}.tar")
    first, second = parsed(webdataset.tar_lines(path, path, ROWS))
    assert members.read_media(first["uri"]) == sparse.read_bytes()
    assert members.read_media(second["uri"]) == b"plain"


def test_samples_are_complete_or_named(tmp_path):
  path = tmp_path / "a.tar"
  picture = media.image()
  _tar(
    path,
    [
      *(("a.mp4", picture), ("a.mask.png", picture), ("a.txt", b"a clip")),
      *(("._b.png", picture), ("b.png", picture), ("__MACOSX/._b.png", picture), ("b.txt", b"b")),
      *(("c.png", picture), ("c.png", picture), ("c.txt", b"c")),
      *(("d.png", picture), ("e.png", picture), ("d.txt", b"late")),
    ],
  )
  found = parsed(webdataset.tar_lines(str(path), "a.tar", ROWS))
  read = [row["uri"].split("@")[0] for row in found if "source_error" not in row]
  assert read == ["a.tar::a.mp4", "a.tar::b.png", "a.tar::d.png", "a.tar::e.png"]
  errors = [row["source_error"] for row in found if "source_error" in row]
  assert len(errors) == 2 and "c.png is in the tar file twice" in errors[0]
  assert "not adjacent" in errors[1] and "d.txt" in errors[1]


@pytest.mark.parametrize("seed", range(4))
def test_a_fuzzed_tar_never_raises(seed, tmp_path):
  draw = random.Random(seed)
  _tar(tmp_path / "a.tar", [(f"{k}.{e}", b"x" * 700) for k in KEYS * 2 for e in ("png", "txt")])
  intact = (tmp_path / "a.tar").read_bytes()
  for _ in range(25):
    content = bytearray(intact[: draw.randrange(1, len(intact))])
    for _ in range(draw.randrange(6)):
      content[draw.randrange(len(content))] = draw.randrange(256)
    path = tmp_path / "b.tar"
    path.write_bytes(content)
    members._listed.cache_clear()
    for row in parsed(webdataset.tar_lines(str(path), str(path), ROWS)):
      if "source_error" not in row:
        try:
          assert len(members.read_media(row["uri"])) == 700
        except members.StaleMember as error:
          assert "tar file" in str(error)


def _run(manifest, output, *flags):
  arguments = [
    *(f"--manifest={manifest}", f"--output={output}", "--task=t", "--content=pixels"),
    *("--resolutions=32x32", "--num_frames=1", "--num_shards=1", "--decode_isolation=thread"),
    *("--allow_upscale", "--num_validation_shards=1"),
  ]
  return preprocess.run([*arguments, *flags])
