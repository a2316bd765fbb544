"""Look-alikes have the names, lists, codecs and oddities of the public corpora, and the same bytes again."""

import csv
import io
import json
import tarfile
from fractions import Fraction

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data.lookalikes import corpora, k600, media, t2v


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  """Name -> folder of a look-alike without faults, with short clips."""
  root = tmp_path_factory.mktemp("lookalikes")
  for name in corpora.CORPORA:
    corpora.write_corpus(name, root / name, seconds=0.5)
  return root


def _frames(path):
  with av.open(str(path)) as container:
    stream = container.streams.video[0]
    return stream, list(container.decode(stream))


def _kinds(frames):
  return {av.video.frame.PictureType(frame.pict_type).name for frame in frames}


@pytest.mark.parametrize("name", ["ucf101", "t2v"])
def test_ucf101_is_xvid_in_class_folders_and_its_lists_are_those_of_its_files(folders, name):
  root = folders / name
  files = sorted(str(p.relative_to(root / "UCF-101")) for p in root.glob("UCF-101/*/*"))
  lists = {
    part: [line.split() for line in (root / f"ucfTrainTestlist/{part}01.txt").open()]
    for part in ("trainlist", "testlist")
  }
  assert sorted(line[0] for lines in lists.values() for line in lines) == files
  numbers = [line.split() for line in (root / "ucfTrainTestlist/classInd.txt").open()]
  number_of = {name: number for number, name in numbers}
  assert all(len(line) == 1 for line in lists["testlist"])
  assert all(number_of[path.split("/")[0]] == number for path, number in lists["trainlist"])
  assert "HandstandPushups/v_HandStandPushups_g08_c01.avi" in files
  if name == "ucf101":
    stream, frames = _frames(root / "UCF-101" / files[0])
    assert (stream.codec_context.codec_tag, stream.codec_context.name) == ("XVID", "mpeg4")
    assert (stream.width, stream.height, stream.average_rate) == (320, 240, 25)
    assert len(frames) >= 29 and _kinds(frames) == {"I", "P", "B"}


def test_kinetics_has_a_table_of_files_of_which_some_are_missing(folders):
  root = folders / "k600" / "k600"
  odd = json.loads((folders / "k600" / "faults.json").read_text())
  rates = set()
  for split in ("train", "validate"):
    with (root / f"{split}.csv").open(newline="") as stream:
      rows = list(csv.DictReader(stream))
    assert list(rows[0]) == list(k600.COLUMNS) and {row["split"] for row in rows} == {split}
    names = [
      "{split}/{label}/{youtube_id}_{0:06d}_{1:06d}.mp4".format(
        int(row["time_start"]), int(row["time_end"]), **row
      )
      for row in rows
    ]
    there = {str(path.relative_to(root)) for path in root.glob(f"{split}/*/*")}
    missing = {one["where"] for one in odd if one["kind"] == "missing"}
    assert there < set(names) and set(names) - there <= missing
    for name in there:
      with av.open(str(root / name)) as container:
        assert container.streams.audio and container.streams.video[0].codec_context.name == "h264"
        rates.add(container.streams.video[0].average_rate)
  assert {Fraction(30_000, 1001), 25, 30, 15} == rates


def test_imagenet_is_kaggles_and_has_odd_jpegs(folders):
  root = folders / "imagenet"
  data = root / "ILSVRC/Data/CLS-LOC"
  synsets = [line.split()[0] for line in (root / "LOC_synset_mapping.txt").open()]
  assert sorted(path.name for path in (data / "train").iterdir()) == sorted(synsets)
  with (root / "LOC_val_solution.csv").open(newline="") as stream:
    solution = {
      row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(stream)
    }
  assert set(solution) == {path.stem for path in (data / "val").iterdir()}
  assert set(solution.values()) <= set(synsets)
  listed = [line.split()[0] for line in (root / "ILSVRC/ImageSets/CLS-LOC/train_cls.txt").open()]
  assert all((data / "train" / f"{image}.JPEG").is_file() for image in listed)
  odd = {one["kind"]: one["where"] for one in json.loads((root / "faults.json").read_text())}
  opened = {kind: Image.open(data / where) for kind, where in odd.items()}
  assert {kind: image.mode for kind, image in opened.items() if image.mode != "RGB"} == {
    "cmyk": "CMYK",
    "gray": "L",
  }
  assert opened["png_named_jpeg"].format == "PNG" and opened["exif_turned"].getexif()[0x112] == 6


def test_text_to_video_has_each_downloader_s_files(folders):
  root = folders / "t2v"
  table = pq.read_table(root / t2v.MANIFEST)
  assert {"uri", "caption", "URL", "similarity", "punsafe", "pwatermark"} <= set(table.column_names)
  assert all((root / uri).is_file() for uri in table["uri"].to_pylist())
  long_videos = pq.read_table(root / t2v.LONG_VIDEOS).to_pylist()
  for row in long_videos:
    stream, frames = _frames(root / row["uri"])
    # Scenes of half a second.
    part = round(stream.average_rate / 2)
    assert len(frames) == 3 * part + part // 3 and row["caption"].count(", then ") == 3
  with (root / t2v.WEBVID).open(newline="") as stream:
    rows = list(csv.DictReader(stream))
  assert list(rows[0]) == ["videoid", "contentUrl", "duration", "page_dir", "name"]
  assert all((root / f"webvid/videos/{r['page_dir']}/{r['videoid']}.mp4").is_file() for r in rows)
  for folder, suffix in (("img2dataset", "jpg"), ("video2dataset", "mp4")):
    with tarfile.open(root / folder / "00000.tar") as tar:
      names = tar.getnames()
      described = json.load(tar.extractfile(names[1]))
    keys = sorted({name.partition(".")[0] for name in names})
    assert names == [f"{key}.{end}" for key in keys for end in (suffix, "json", "txt")]
    assert described["key"] == keys[0] and described["status"] == "success"


def test_the_same_arguments_give_the_same_bytes_and_a_seed_only_other_scenes(folders, tmp_path):
  for name, seed in (("same", 0), ("other", 1)):
    corpora.write_corpus("imagenet", tmp_path / name, seed=seed)
  files = sorted(p.relative_to(tmp_path / "same") for p in (tmp_path / "same").rglob("*.*"))
  assert files == sorted(
    p.relative_to(tmp_path / "other") for p in (tmp_path / "other").rglob("*.*")
  )
  for file in files:
    content = (folders / "imagenet" / file).read_bytes()
    assert (tmp_path / "same" / file).read_bytes() == content
    assert (tmp_path / "other" / file).read_bytes() != content or file.suffix != ".JPEG"
  for options in ({"container": "avi"}, {"sound_seconds": 0.5}):
    assert media.video(3, num_frames=9, rate=25, **options) == media.video(
      3, num_frames=9, rate=25, **options
    )


def test_the_program_writes_a_new_folder_and_prints_what_is_odd(tmp_path, capsys):
  corpora.main(["imagenet", str(tmp_path / "a"), "--faults", "--seed=2"])
  printed = capsys.readouterr().out
  for one in json.loads((tmp_path / "a/faults.json").read_text()):
    assert f"{one['kind']} " in printed and f"{one['manifest']}: {one['where']}\n" in printed
  with pytest.raises(SystemExit, match="which is not empty, expected a new folder"):
    corpora.main(["imagenet", str(tmp_path / "a")])


def test_a_packed_bitstream_shows_the_frames_of_the_plain_one():
  clips = [
    media.video(2, num_frames=12, rate=25, container="avi", b_frames=1, packed=packed)
    for packed in (False, True)
  ]
  shown = []
  for clip in clips:
    with av.open(io.BytesIO(clip)) as container:
      packets = [bytes(packet) for packet in container.demux(video=0)]
    assert any(packet.count(b"\0\0\1\xb6") == 2 for packet in packets) == (clip is clips[1])
    with av.open(io.BytesIO(clip)) as container:
      shown.append(np.stack([f.to_ndarray(format="gray") for f in container.decode(video=0)]) / 1.0)
  # Less than a hundredth of the motion: the decoder rounds some blocks as DivX did.
  assert shown[0].shape == shown[1].shape and abs(shown[0] - shown[1]).max() <= 4
  assert abs(np.diff(shown[0], axis=0)).mean((1, 2)).min() > 1
