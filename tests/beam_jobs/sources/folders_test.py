"""A folder of media gives the records of a manifest of its files, and names every file of which it makes no row."""

import io
import json

import pytest

from beam_jobs import preflight, preprocess
from data import schema, tfrecord
from tests.beam_jobs import media

FLAGS = ["--content=pixels", "--resolutions=16x16", "--num_frames=5", "--decode_isolation=thread"]
# Files of a folder, the rows of a manifest by hand (all others have the split train), and files that are not read.
LAYOUTS = {
  "flat": (
    {
      "b.mp4": 0, "B.mp4": 1, "c.png": 2, "b.txt": " a cat\n", "c.txt": "\ufeffa d\u00f4g", "c.md": "",
      "lonely.txt": "x", ".hidden.mp4": 0, "deep/er/a.mp4": 3,
    },
    [{"uri": "b.mp4", "captions": ["a cat"]}, {"uri": "B.mp4"}, {"uri": "c.png", "captions": ["a d\u00f4g"]}],
    ["c.md", "lonely.txt"],
  ),
  "flat_splits": (
    {"train/a.mp4": 0, "train/a.txt": "[one] cat", "val/b.mp4": 1, "test/c.mp4": 2, "rows.csv": "uri"},
    [{"uri": "train/a.mp4", "captions": ["[one] cat"]}, {"uri": "val/b.mp4", "split": "validation"}],
    ["test", "rows.csv"],
  ),
  "classes": (
    {"HighJump/a.mp4": 0, "HighJump/a.txt": "my words", "HighJump/a.txt.bak": "", "YoYo/a.mp4": 1},
    [
      {"uri": "HighJump/a.mp4", "captions": ["my words"], "label": 0},
      {"uri": "YoYo/a.mp4", "captions": ["yo yo"], "label": 1},
    ],
    ["HighJump/a.txt.bak"],
  ),
}  # fmt: skip


def _write(folder, files):
  for name, content in files.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
      path.write_text(content, encoding="utf-8")
    elif name.endswith("png"):
      path.write_bytes(media.image(seed=content, height=32, width=32))
    else:
      path.write_bytes(media.video(seed=content, height=32, width=32))
  return folder


def _records(manifest, output, *flags):
  """What a job wrote, and the records by id."""
  argv = [f"--manifest={manifest}", f"--output={output}", "--task=t", "--num_shards=1", *flags]
  result, found = preprocess.run([*argv, *FLAGS]), {}
  for path in sorted(output.rglob("*.tfrecord-*-of-?????")):
    for record in map(schema.decode, tfrecord.read_records(io.BytesIO(path.read_bytes()))):
      pixels = {name: array.tobytes() for name, array in record.pixels.items()}
      found[record.id] = (path.name, record.uri, record.label, tuple(record.captions), pixels)
  return result, found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_gives_the_records_of_a_manifest_of_its_files(layout, tmp_path, capsys):
  files, rows, others = LAYOUTS[layout]
  folder = _write(tmp_path / "media", files)
  manifest = tmp_path / "rows.jsonl"
  manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
  _, wanted = _records(manifest, tmp_path / "o1", f"--media_root={folder}")
  assert len(wanted) == len(rows)
  capsys.readouterr()
  result, found = _records(folder, tmp_path / "o2")
  assert found == wanted
  nested = sum(name == "deep/er/a.mp4" for name in files)
  assert (result["written"], result["dead"]) == (len(rows), nested)
  printed = capsys.readouterr().err
  assert all(name in printed for name in others) and ".hidden.mp4" not in printed
  assert (f"--manifest={folder}/rows.csv" in printed) == ("rows.csv" in files)

  report = preflight.run([f"--manifest={folder}", *FLAGS, "--examples=9"])
  faults = {fault["reason"]: fault for fault in report["faults"]}
  assert sorted(one["where"] for one in faults["other_extension"]["examples"]) == sorted(others)
  assert report["rows"]["count"] == len(rows) + nested


def test_captions_are_needed_where_text_is_stored_only(tmp_path):
  folder = _write(tmp_path / "media", {"a.mp4": 0, "b.mp4": 1, "b.txt": "a cat"})
  counts = [
    preflight.run([f"--manifest={folder}", *FLAGS[1:], flag])["expected"]["written"]
    for flag in ("--content=latents", "--content=pixels", "--no_text")
  ]
  assert counts == [1, 2, 2]


def test_a_caption_that_is_not_text_is_a_dead_letter(tmp_path, capsys):
  folder = _write(tmp_path / "media", {"a.mp4": 0, "b.mp4": 1, "b.txt": "x"})
  (folder / "b.txt").write_bytes(b"\xff\xfe\x00")
  result, _ = _records(folder, tmp_path / "out")
  assert (result["written"], result["dead_by_reason"]) == (1, {"bad_source_row": 1})


@pytest.mark.parametrize(
  ("name", "hint"),
  [
    ("video", "no file at .*/video; there is .*/videos$"),
    ("videos/a.mp4", "names media; set it to their folder, .*/videos$"),
    ("videos/*.mp4", "names media; set it to their folder, .*/videos$"),
    ("papers", r"papers has no image or video, .* only \['a.pdf'\]$"),
    ("tables", r"got the folder .*; set --manifest '.*/tables/\*.csv'$"),
  ],
)
def test_a_name_that_is_nearly_right_gets_a_hint(name, hint, tmp_path):
  for place in ("videos/a.mp4", "papers/a.pdf", "tables/rows.csv"):
    _write(tmp_path, {place: "x"})
  with pytest.raises((ValueError, FileNotFoundError), match=hint):
    preflight.run([f"--manifest={tmp_path / name}", *FLAGS])
