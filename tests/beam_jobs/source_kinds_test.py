"""Every kind of source gives the same records for the same rows; a bad row is a dead letter; reads are minimal."""

import csv
import errno
import gzip
import io
import json
import pathlib
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from beam_jobs import preprocess
from beam_jobs.runners import local_worker, running
from beam_jobs.sources import columns, folders, members, rows, tables, webdataset
from beam_jobs.sources import spec as source_spec
from data import schema, tfrecord
from data.class_names import class_words
from tests.beam_jobs import media
from walt_t5x.files import storage

CLASSES = ("ApplyEyeMakeup", "Archery")
WORDS = ("apply eye makeup", "archery")
CLIPS = [(f"abc{i}-_{i}xyz", 7 * i, 7 * i + 10, i % 2) for i in range(4)]


def clip_name(clip) -> str:
  return f"{clip[0]}_{clip[1]:06d}_{clip[2]:06d}.mp4"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> pathlib.Path:
  """The same four clips as class folders, as flat files, and in each kind of manifest."""
  root = tmp_path_factory.mktemp("corpus")
  table = []
  with tarfile.open(root / "shard-0003.tar", "w") as tar:
    for i, clip in enumerate(CLIPS):
      content = media.video(seed=i, height=32, width=32, num_frames=24)
      folder = root / "ucf" / CLASSES[clip[3]]
      folder.mkdir(parents=True, exist_ok=True)
      (folder / clip_name(clip)).write_bytes(content)
      (root / clip_name(clip)).write_bytes(content)
      row = {
        "file": clip_name(clip),
        "text": WORDS[clip[3]],
        "class_id": clip[3],
        "aesthetic": 4.5 + i,
      }
      table.append(row)
      fields = {"class_id": row["class_id"], "aesthetic": row["aesthetic"], "uri": "not this"}
      for name, data in (
        (f"deep/{'n' * 120}{i}.json", json.dumps(fields).encode()),
        (f"deep/{'n' * 120}{i}.mp4", content),
        (f"deep/{'n' * 120}{i}.txt", f" {row['text']}\n".encode()),
      ):
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))
  (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
  with gzip.open(root / "rows.csv.gz", "wt", encoding="utf-8-sig", newline="") as stream:
    writer = csv.DictWriter(stream, table[0])
    writer.writeheader()
    writer.writerows(table)
  pa.parquet.write_table(pa.Table.from_pylist(table), root / "rows.parquet", row_group_size=3)
  with open(root / "k600.csv", "w", newline="") as stream:
    writer = csv.writer(stream)
    writer.writerow(("label", "youtube_id", "time_start", "time_end", "split"))
    writer.writerows((WORDS[c[3]], c[0], c[1], c[2], "train") for c in CLIPS)
  return root


TABLE = ["--column=uri=file", "--column=caption=text", "--column=label=class_id"]
KINDS = {
  "jsonl": ["--manifest=rows.jsonl", *TABLE],
  "csv": ["--manifest=rows.csv.gz", *TABLE],
  "parquet": ["--manifest=rows.parquet", *TABLE],
  "webdataset": ["--manifest=shard-{0003..0003}.tar", "--column=label=class_id"],
  "folder": ["--manifest=ucf"],
  "kinetics": ["--manifest=k600.csv", "--source=kinetics"],
}


def records(folder: pathlib.Path) -> list[schema.Record]:
  found = []
  for path in sorted(folder.rglob("*.tfrecord-*-of-?????")):
    found += map(schema.decode, tfrecord.read_records(io.BytesIO(path.read_bytes())))
  return found


def run(corpus: pathlib.Path, output: pathlib.Path, flags: list[str], *more: str) -> dict:
  place = [flag.replace("--manifest=", f"--manifest={corpus}/") for flag in flags]
  return preprocess.run(
    [
      *place,
      f"--output={output}",
      "--task=t",
      "--content=pixels",
      "--resolutions=16x16",
      "--num_frames=5",
      "--num_shards=1",
      "--clip_position=random",
      "--decode_isolation=thread",
      *more,
    ]
  )


def test_every_source_on_the_same_rows_gives_the_same_records(corpus, tmp_path):
  seen = {}
  for kind, flags in KINDS.items():
    result = run(corpus, tmp_path / kind, flags)
    assert (result["rows"], result["written"]) == (4, 4), kind
    seen[kind] = {
      r.id: (r.label, tuple(r.captions), r.start_seconds, r.pixels["pixels/5x16x16"].tobytes())
      for r in records(tmp_path / kind)
    }
    assert len(seen[kind]) == 4
  for kind, found in seen.items():
    assert found == seen["jsonl"], kind
  # The position is drawn per record, so four clips have four start times.
  assert len({start for _, _, start, _ in seen["jsonl"].values()}) == 4


def test_parts_of_a_manifest_add_up(corpus, tmp_path):
  lines = (corpus / "rows.jsonl").read_text().splitlines(keepends=True)
  for i in range(2):
    (tmp_path / f"part-{i}.jsonl").write_text("".join(lines[2 * i : 2 * i + 2]))
  for name, pattern in (("braces", "part-{0..1}.jsonl"), ("star", "part-*.jsonl")):
    flags = [f"--media_root={corpus}", *TABLE]
    run(tmp_path, tmp_path / name, [f"--manifest={pattern}"], *flags)
  run(corpus, tmp_path / "complete", KINDS["jsonl"])
  ids = {
    name: [record.id for record in records(tmp_path / name)]
    for name in ("braces", "star", "complete")
  }
  assert ids["braces"] == ids["star"] == ids["complete"]
  assert len(ids["complete"]) == 4


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "webdataset"])
def test_score_columns_reach_the_filters(corpus, tmp_path, kind):
  result = run(corpus, tmp_path / "out", KINDS[kind], "--filter=aesthetic>=6")
  assert result["rejected_by_reason"] == {"aesthetic>=6": 2}
  assert result["written"] == 2


def test_a_member_is_read_alone(corpus, monkeypatch):
  (path,) = source_spec.files(f"{corpus}/shard-000{{0..9}}.tar")
  lines = list(map(json.loads, webdataset.tar_lines(path, path, columns.Columns())))
  read, read_range = [], storage.read_range

  def counting(path, begin, end):
    read.append(read_range(path, begin, end))
    return read[-1]

  monkeypatch.setattr(storage, "read_range", counting)
  for i, line in enumerate(lines):
    content = members.read_media(line["uri"])
    assert content == (corpus / clip_name(CLIPS[i])).read_bytes()
    assert sum(map(len, read)) == len(content) + 512
    read.clear()
  assert rows.guess_modality(lines[0]["uri"]) == "video"


@pytest.mark.parametrize("shift", [-512, -1, 1, 512])
def test_a_stale_address_is_noticed(corpus, shift):
  path = str(corpus / "shard-0003.tar")
  line = json.loads(next(webdataset.tar_lines(path, path, columns.Columns())))
  member = members.parse_member(line["uri"])
  with pytest.raises(members.StaleMember, match=r"tar header|list it again|early"):
    members.read_media(str(member._replace(offset=member.offset + shift)))
  with pytest.raises(storage.TooLarge):
    members.read_media(line["uri"], max_bytes=member.size - 1)


def test_another_member_at_the_same_place_is_noticed(tmp_path):
  path = str(tmp_path / "a.tar")

  def rewrite(name: str, content: bytes) -> None:
    with tarfile.open(path, "w") as tar:
      info = tarfile.TarInfo(name)
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))

  rewrite("a.png", b"x" * 700)
  uri = json.loads(next(webdataset.tar_lines(path, path, columns.Columns())))["uri"]
  assert members.read_media(uri) == b"x" * 700
  for name, size in (("b.png", 700), ("a.png", 701)):
    rewrite(name, b"y" * size)
    with pytest.raises(members.StaleMember, match="list it again"):
      members.read_media(uri)


def test_a_truncated_tar_gives_its_complete_samples_and_a_dead_letter(corpus, tmp_path):
  content = (corpus / "shard-0003.tar").read_bytes()
  (tmp_path / "cut.tar").write_bytes(content[: int(len(content) * 0.6)])
  (tmp_path / "none.tar").write_bytes(b"no tar at all" * 100)
  result = run(tmp_path, tmp_path / "out", ["--manifest=*.tar"])
  # Both files, and the sample that the cut interrupts.
  assert result["dead_by_reason"]["bad_source_row"] == 3
  assert result["written"] == 2
  assert result["rows"] == result["written"] + result["rejected"] + result["dead"]


def test_samples_without_media_or_with_broken_json_are_dead_letters(tmp_path):
  with tarfile.open(tmp_path / "a.tar", "w") as tar:
    for name, data in (
      ("a.txt", b"x"),
      ("b.json", b"{"),
      ("b.png", media.image()),
      ("c.png", b"x"),
      ("d.png", b"x"),
      ("d.txt", b"caf\xe9"),
      ("e.json", b"[" * 99_999),
      ("e.png", b"x"),
      ("f.json", b'{"label": [3]}'),
      ("f.png", b"x"),
    ):
      info = tarfile.TarInfo(name)
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))
  path = str(tmp_path / "a.tar")
  lines = [json.loads(line) for line in webdataset.tar_lines(path, "a.tar", columns.Columns())]
  assert ["source_error" in line for line in lines] == [*(True, True, False, True, True, False)]
  parsed = [rows.parse_line(json.dumps(line), "/data") for line in lines]
  assert [row.problem and row.problem[0] for row in parsed] == [
    *("bad_source_row", "bad_source_row", None, "bad_source_row", "bad_source_row", "bad_label")
  ]


def test_bad_csv_rows_are_bad_rows_and_the_rest_is_read(tmp_path):
  huge = "x" * 200_000
  path = tmp_path / "a.csv"
  path.write_bytes(
    b'uri,caption,label\na.mp4,"two\nlines",3\nb.mp4,x\n\nc.mp4,x,1,2\nd.mp4,'
    + huge.encode()
    + b",1\ne.mp4,\xff,1\ng.mp4,x,x1\nf.mp4,x,2\n"
  )
  lines = [json.loads(line) for line in tables.csv_lines(str(path), columns.Columns())]
  parsed = [rows.parse_line(json.dumps(line), "/data") for line in lines]
  assert [row.problem and row.problem[0] for row in parsed] == [
    None,
    "bad_source_row",
    "bad_source_row",
    "bad_source_row",
    "bad_source_row",
    "bad_label",
    None,
  ]
  assert (parsed[0].captions, parsed[0].label) == (("two\nlines",), 3)


def test_parquet_with_odd_types_and_damage(tmp_path):
  table = pa.table(
    {
      "uri": ["a.mp4", "b.mp4"],
      "captions": [["x", "y"], ["z"]],
      "label": pa.array([3.0, None], pa.float64()),
      "unused": pa.array([b"\x00", b"\xff"]),
    }
  )
  path = str(tmp_path / "a.parquet")
  pa.parquet.write_table(table, path)
  ((_, group),) = tables.parquet_groups(path)
  lines = [json.loads(line) for line in tables.parquet_lines(path, group, columns.Columns())]
  assert [(line["captions"], line.get("label")) for line in lines] == [
    (["x", "y"], 3),
    (["z"], None),
  ]
  assert "unused" not in lines[0]
  content = bytearray(pathlib.Path(path).read_bytes())
  content[4:200] = bytes(196)
  pathlib.Path(path).write_bytes(content)
  (line,) = tables.parquet_lines(path, 0, columns.Columns())
  assert "row group 0" in json.loads(line)["uri"]
  pathlib.Path(path).write_bytes(content[:-1])
  assert list(tables.parquet_groups(path)) == [(path, -1)]


def test_binary_parquet_columns_are_text_or_bad_rows(tmp_path):
  # Some writers store text without annotation.
  names = ["a.mp4", "b.mp4"]
  table = pa.table(
    {
      "uri": pa.array([name.encode() for name in names], pa.binary()),
      "captions": pa.array([["caf\u00e9".encode()], [b"caf\xe9"]], pa.list_(pa.binary())),
    }
  )
  path = str(tmp_path / "a.parquet")
  pa.parquet.write_table(table, path)
  good, bad = map(json.loads, tables.parquet_lines(path, 0, columns.Columns()))
  assert (good["uri"], good["captions"]) == ("a.mp4", ["caf\u00e9"])
  assert (
    "captions: got list<element: binary>" in bad["source_error"] and "b.mp4" in bad["source_error"]
  )


def test_linked_class_folders_and_names_with_brackets_lose_no_row(tmp_path):
  root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
  for folder in (root / "cat [1]", elsewhere):
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(b"x")
  (root / "dog").symlink_to(elsewhere)
  assert folders.class_folders(str(root)) == [("", "cat [1]"), ("", "dog")]
  names = columns.Columns(class_names=(("cat [1]", "cat"), ("dog", "dog")))
  found = [
    json.loads(line)["uri"]
    for _, name in folders.class_folders(str(root))
    for line in folders.folder_lines(str(root), "", name, names)
  ]
  assert found == ["cat [1]/a.png", "dog/a.png"]


def test_a_range_with_missing_files_is_rejected(tmp_path):
  for number in (0, 2):
    (tmp_path / f"rows-{number:03d}.jsonl").write_text('{"uri": "a.mp4"}\n')
  with pytest.raises(FileNotFoundError, match=r"no file at .*rows-001\.jsonl, and at 0 others"):
    run(tmp_path, tmp_path / "out", ["--manifest=rows-{000..002}.jsonl"])


def test_a_full_disk_is_reported_and_leaves_no_partial_file(tmp_path, capsys):
  with pytest.raises(storage.CannotWrite, match="No space left on device; free some space or set"):
    with storage.writer(str(tmp_path / "out" / "a")) as stream:
      stream.write(b"x")
      raise OSError(errno.ENOSPC, "No space left on device")
  assert not list((tmp_path / "out").iterdir())
  (tmp_path / "file").write_text("")
  with pytest.raises(storage.CannotWrite, match=r"cannot write .*/file/a: "):
    storage.write(str(tmp_path / "file" / "a"), b"x")

  def run(argv):
    # As Beam reports it.
    raise RuntimeError(
      "walt_t5x.files.storage.CannotWrite: cannot write a: full [while running 'x']"
    )

  assert running.exit_code("preprocess", run) == 1
  assert capsys.readouterr().err == "preprocess: cannot write a: full\n"


def test_tracebacks_of_workers_are_printed_unless_the_launcher_explains_the_error(capsys):
  told = "Traceback (most recent call last):\n  File x\nwalt_t5x.files.mismatch.Mismatch: sizes differ:\n32, 64"
  again = f"{told}\n\nDuring handling of the above exception, another exception occurred:\n\n{told}"
  bug = told.replace("Mismatch", "Surprise")

  def run(text):
    raise RuntimeError(text)

  other = "\n\nDuring handling of the above exception, another exception occurred:\n\nKeyError: x"
  for text in (f"{again} [while running 'x']\n\n{again}", f"{told}{other}"):
    assert running.exit_code("preprocess", run, text) == 2
    assert capsys.readouterr().err == "preprocess: sizes differ:\n32, 64\n"
  with pytest.raises(RuntimeError):
    running.exit_code("preprocess", run, bug)
  stream = io.StringIO()
  for text in (again, bug, told, "words of Mismatch: x\n"):
    print(text, file=local_worker._Stderr(stream), end="")
  assert stream.getvalue() == f"{bug}words of Mismatch: x\n"


def test_imagenet_folders_have_splits_synsets_and_names(tmp_path):
  for split, name in (("train", "n01440764"), ("train", "n01443537"), ("val", "n01443537")):
    folder = tmp_path / split / name
    folder.mkdir(parents=True)
    (folder / f"{name}_1.JPEG").write_bytes(b"x")
    (folder / "notes.md").write_bytes(b"x")
  names = columns.parse_class_names(
    "n01443537 goldfish, Carassius auratus\nn01440764 tench, Tinca tinca\n"
  )
  pairs = folders.class_folders(str(tmp_path))
  lines = [
    json.loads(line)
    for pair in pairs
    for line in folders.folder_lines(
      str(tmp_path),
      *pair,
      columns.Columns(class_names=names, caption_template="a photo of {class}"),
    )
  ]
  assert [(r["uri"], r["label"], r["captions"], r["split"]) for r in lines] == [
    ("train/n01440764/n01440764_1.JPEG", 1, ["a photo of tench"], "train"),
    ("train/n01443537/n01443537_1.JPEG", 0, ["a photo of goldfish"], "train"),
    ("val/n01443537/n01443537_1.JPEG", 0, ["a photo of goldfish"], "validation"),
  ]


def test_ucf_splits_come_from_its_list(corpus, tmp_path):
  listed = f"{CLASSES[1]}/{clip_name(CLIPS[1])}"
  (tmp_path / "testlist01.txt").write_text(listed + " 2\n")
  run(corpus, tmp_path / "o", KINDS["folder"], f"--validation_list={tmp_path / 'testlist01.txt'}")
  (path,) = (tmp_path / "o" / "t_videos").glob("validation.tfrecord-*-of-00001")
  (payload,) = tfrecord.read_records(io.BytesIO(path.read_bytes()))
  assert schema.decode(payload).uri == listed


@pytest.mark.parametrize(
  ("name", "words"),
  [
    ("ApplyEyeMakeup", "apply eye makeup"),
    ("YoYo", "yo yo"),
    ("HandstandPushups", "handstand pushups"),
    ("playing_guitar", "playing guitar"),
    ("TVShow", "tv show"),
    ("air drumming", "air drumming"),
  ],
)
def test_class_names_in_words(name, words):
  assert class_words(name) == words


def test_the_validation_share_is_of_the_rows_and_stays():
  half = columns.Columns(validation_percent=25)
  splits = [columns.to_row({"uri": f"{i}.mp4"}, half)["split"] for i in range(4000)]
  share = splits.count("validation") / len(splits)
  assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 4000)
  assert splits == [columns.to_row({"uri": f"{i}.mp4"}, half)["split"] for i in range(4000)]
  more = columns.Columns(validation_percent=50)
  for i, split in enumerate(splits):
    if split == "validation":
      assert columns.to_row({"uri": f"{i}.mp4"}, more)["split"] == "validation"


def test_captions_of_several_columns_carry_their_weights():
  mapped = columns.Columns(captions=(("short", 1.0), ("long", 3.0)))
  row = columns.to_row({"uri": "a.mp4", "short": "x", "long": '["y", "z"]'}, mapped)
  parsed = rows.parse_line(columns.to_line(row), "/data")
  assert (parsed.captions, parsed.caption_weights) == (("x", "y", "z"), (1.0, 3.0, 3.0))


def test_rows_of_one_group_meet_in_one_shard():
  parsed = [
    rows.parse_line(json.dumps({"uri": f"{i}.mp4", "group": "g", "caption": "x"}), "") for i in "ab"
  ]
  assert parsed[0].key != parsed[1].key
  assert parsed[0].shard_key == parsed[1].shard_key


@pytest.mark.parametrize(
  ("flags", "message"),
  [
    (["--manifest=rows.csv.gz"], r"has the columns .*'file'.*, not \['uri'\]"),
    (["--manifest=rows.parquet", "--column=uri=path"], r"not \['path'\]"),
    (["--manifest=rows.csv.gz", "--column=url=file"], "expected FIELD=COLUMN"),
    (["--manifest=rows.csv.gz", "--column=caption=text:x"], "expected a weight"),
    (["--manifest=rows.jsonl", "--column=class=text"], "needs --class_names"),
    (["--manifest=rows.jsonl", "--split_name=val=test"], "=train or =validation"),
    (["--manifest=nowhere-*.tar"], r"no file at .*nowhere"),
    (["--manifest=rows.csv.gz", "--class_names=/nowhere"], "--class_names: no file"),
    (["--manifest=abc0-_0xyz_000000_000010.mp4"], "names media; set it to their folder"),
  ],
)
def test_flags_that_do_not_fit_are_rejected(corpus, tmp_path, flags, message):
  with pytest.raises((ValueError, FileNotFoundError), match=message):
    run(corpus, tmp_path / "out", flags)
