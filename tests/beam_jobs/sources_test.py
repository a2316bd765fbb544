"""Manifest lines: their meaning, and that no line raises."""

import dataclasses
import gzip
import hashlib
import json
import random

import pytest
from fsspec.spec import AbstractBufferedFile

from beam_jobs.shards import loading, plan
from beam_jobs.sources import parts
from beam_jobs.sources import rows as sources
from beam_jobs.sources.spec import SourceSpec
from data import schema
from walt_t5x.files import storage
from walt_t5x.media.clips import ClipSpec


def parse(**fields) -> sources.Row:
  return sources.parse_line(json.dumps({"uri": "a.mp4", "caption": "x"} | fields), "/data")


def test_defaults():
  row = parse()
  assert (row.split, row.modality, row.label) == ("train", "video", schema.NO_LABEL)
  assert (row.captions, row.caption_weights) == (("x",), (1.0,))
  assert row.problem is None


@pytest.mark.parametrize(
  ("uri", "path"),
  [
    ("a.mp4", "/data/a.mp4"),
    ("/b/a.mp4", "/b/a.mp4"),
    ("gs://bucket/a.mp4", "gs://bucket/a.mp4"),
    ("file:///b/a%20b.mp4", "/b/a b.mp4"),
    ("a%20b c.mp4", "/data/a%20b c.mp4"),
  ],
)
def test_relative_uris_start_at_the_manifest(uri, path):
  assert parse(uri=uri).path == path


@pytest.mark.parametrize(
  ("uri", "modality"),
  [
    *(("a.JPG", "image"), ("a.webp", "image"), ("a.mp4", "video"), ("a", "video")),
    ("a.heic", "image"),
  ],
)
def test_modality_follows_the_extension_unless_it_is_stated(uri, modality):
  assert parse(uri=uri).modality == modality
  assert parse(uri=uri, modality="image").modality == "image"


def test_blank_captions_are_dropped_with_their_weights():
  row = parse(captions=["a", "  ", "b"], caption_weights=[1, 2, 3])
  assert (row.captions, row.caption_weights) == (("a", "b"), (1.0, 3.0))


@pytest.mark.parametrize(
  ("fields", "reason"),
  [
    ({"uri": None}, "bad_uri"),
    ({"uri": ""}, "bad_uri"),
    ({"uri": "a\ud800.mp4"}, "bad_uri"),
    ({"caption": "half of an emoji \ud83d"}, "bad_captions"),
    ({"captions": "x"}, "bad_captions"),
    ({"captions": [1]}, "bad_captions"),
    ({"captions": ["a", "b"], "caption_weights": [1]}, "bad_captions"),
    ({"captions": ["a", "b"], "caption_weights": [1, -1]}, "bad_captions"),
    ({"captions": ["a", "b"], "caption_weights": [0, 0]}, "bad_captions"),
    ({"captions": ["a", ""], "caption_weights": [0, 1]}, "bad_captions"),
    ({"caption_weights": [float("nan")]}, "bad_captions"),
    ({"caption_weights": 1}, "bad_captions"),
    ({"split": "test"}, "bad_split"),
    ({"split": ["train"]}, "bad_split"),
    ({"modality": "sound"}, "bad_modality"),
    ({"modality": {}}, "bad_modality"),
    ({"label": "cat"}, "bad_label"),
    ({"label": True}, "bad_label"),
    ({"label": 2**70}, "bad_label"),
    ({"start_seconds": -1}, "bad_window"),
    ({"start_seconds": "0:10"}, "bad_window"),
    ({"start_seconds": 2, "end_seconds": 1}, "bad_window"),
    ({"crop": "0 1 0 1"}, "bad_crop"),
    ({"crop": [0, 0.5, 0]}, "bad_crop"),
    ({"crop": [0, 0.5, 0, True]}, "bad_crop"),
    ({"crop": [0, 1080, 0, 1920]}, "bad_crop"),
    ({"crop": [-0.1, 0.5, 0, 1]}, "bad_crop"),
    ({"crop": [0.5, 0.5, 0, 1]}, "bad_crop"),
    ({"crop": [0.5, 0.5000001, 0, 1]}, "bad_crop"),
    ({"crop": [0, 1, 0.6, 0.4]}, "bad_crop"),
    ({"crop": [0, float("nan"), 0, 1]}, "bad_crop"),
  ],
)
def test_a_bad_field_is_a_problem_with_a_reason(fields, reason):
  row = parse(**fields)
  assert row.problem[0] == reason
  assert row.split in schema.SPLITS
  assert row.modality in schema.MODALITIES


@pytest.mark.parametrize(
  "line",
  [
    *("{", "[]", "null", "1", '"x"', '{"uri": "a\\ud800.mp4"}', "\x00", "[" * 100_000),
    '{"uri": "a", "label": %s}' % ("1" * 5000),
  ],
  ids=range(9),
)
def test_no_line_raises(line):
  row = sources.parse_line(line, "/data")
  assert row.problem
  assert len(row.key) == len(row.identity) == 64


def test_key_is_uri_and_window_and_identity_adds_the_captions():
  base = parse()
  assert parse(label=3, split="validation").identity == base.identity
  for other in ({"uri": "b.mp4"}, {"start_seconds": 0}, {"end_seconds": 1}):
    assert parse(**other).key != base.key
  assert parse(caption="y").key == base.key
  assert parse(caption="y").identity != base.identity
  crops = ([0.1, 0.9, 0, 1], [0.1, 0.9, 0, 0.5], [0, 0.9, 0.1, 1])
  assert len({base.key, *(parse(crop=crop).key for crop in crops)}) == 4
  # The same picture is the same row.
  assert parse(crop=[0, 1.0, 0, 1]) == dataclasses.replace(
    base, raw=base.raw | {"crop": [0, 1.0, 0, 1]}
  )
  assert parse(crop=[0.1, 0.9, 0, 1]).key == parse(crop=[0.1000000015, 0.9, 0.0, 1]).key


def test_a_row_without_a_crop_has_the_ids_that_it_had_before_there_were_crops():
  """Caches record them, and the key chooses the shard; the texts are those of that time."""
  row, spec = parse(start_seconds=0.5), ClipSpec(resolutions=((8, 8),), num_frames=5, fps=8.0)
  record = 'content["video", [0.5, null, 5, 8.0, "centre"], ["x"]]'
  media = 'content[0.5, null, 5, 8.0, "centre"]'
  found = (row.key, *loading._ids(b"content", row, spec, 0))
  texts = ('["a.mp4", 0.5, null]', record, media)
  assert found == tuple(hashlib.sha256(text.encode()).hexdigest() for text in texts)
  cropped = dataclasses.replace(row, crop=(0.1, 0.9, 0.0, 1.0))
  assert not {cropped.key, *loading._ids(b"content", cropped, spec, 0)} & {*found}
  image, part = (dataclasses.replace(one, modality="image") for one in (row, cropped))
  ids = [*loading._ids(b"content", image, spec, 0), *loading._ids(b"content", part, spec, 0)]
  assert len({*ids}) == 4


@pytest.mark.parametrize(
  ("uri", "inside"),
  [
    ("a/b.mp4", True),
    ("a/../b.mp4", True),
    ("..b/c..mp4", True),
    ("a/../../data/b.mp4", True),
    ("../b.mp4", False),
    ("a/../../database/b.mp4", False),
    ("/data/b.mp4", True),
    ("file:///data/b.mp4", True),
    ("/data/../etc/b.mp4", False),
    ("/etc/b.mp4", False),
    ("file:///etc/b.mp4", False),
    ("file://localhost/data/b.mp4", False),
    ("/more/b.mp4", True),
    ("gs://bucket/videos/b.mp4", True),
    ("gs://bucket/videos/../b.mp4", False),
    ("gs://bucket/videos/%2e%2E/b.mp4", False),
    ("gs://bucket/videos2/b.mp4", False),
    ("gs://bucket/videos/b::http://host/b.mp4", False),
    ("simplecache::gs://bucket/videos/b.mp4", False),
    ("http://host/b.mp4", False),
    ("c.tar::../../b.mp4@512+9", True),
    ("../c.tar::b.mp4@512+9", False),
  ],
)
def test_rows_stay_in_the_folders_that_the_command_names(uri, inside):
  roots = ("/data", "", "/more/", "gs://bucket/videos")
  assert sources.is_within(parse(uri=uri).path, roots) == inside


class _Remote(AbstractBufferedFile):
  """A file of an object store, as fsspec opens it."""

  def __init__(self, content):
    super().__init__(None, "rows.jsonl", size=len(content))
    self._content = content

  def _fetch_range(self, start, end):
    return self._content[start:end]


@pytest.mark.parametrize("where", ["local", "gzip", "remote"])
def test_of_a_line_that_is_too_long_the_beginning_is_read(where, tmp_path, monkeypatch):
  """Whatever ranges of the file it spans; the other lines are read as they are."""
  monkeypatch.setattr(parts, "MAX_LINE_BYTES", 500)
  monkeypatch.setattr(parts, "_RANGE_BYTES", 170)
  draw = random.Random(0)
  sizes = [draw.choice((1, 3, 100, 169, 170, 171, 499, 500, 501, 3000)) for _ in range(60)]
  lines = [bytes([draw.randrange(97, 123)]) * size for size in sizes]
  content = b"\n".join(lines)
  path = f"{tmp_path}/rows.jsonl" + ".gz" * (where == "gzip")
  storage.write(path, gzip.compress(content) if where == "gzip" else content)
  if where == "remote":
    monkeypatch.setattr(parts.storage, "open_raw", lambda _: _Remote(content))
  spec = SourceSpec(kind="jsonl", pattern=path, media_root="")
  found = [line for part in parts.parts_of(spec) for line in parts.lines_of(part.key, spec)]
  # A line of 500 bytes ends within the 501 that are read.
  assert [line.removesuffix(b"\n") for line in found] == [line[:501] for line in lines]


def test_a_line_that_is_too_long_for_a_row_is_a_bad_row():
  line = json.dumps({"uri": "a.mp4", "caption": "x" * sources.MAX_LINE_BYTES}).encode()
  reason, message = sources.parse_line(plan.manifest_text(line), "/data").problem
  assert reason == "bad_source_row" and "1,048,576 bytes" in message
  assert len(plan.manifest_text(line)) < 1000


def test_a_byte_order_mark_is_dropped_and_other_encodings_are_bad_rows():
  line = json.dumps({"uri": "a.mp4", "caption": "x"})
  assert plan.manifest_text(b"\xef\xbb\xbf" + line.encode() + b"\r") == line
  for encoded in (
    '{"uri": "a.mp4", "caption": "caf\u00e9"}'.encode("latin-1"),
    line.encode("utf-16"),
  ):
    reason, message = sources.parse_line(plan.manifest_text(encoded), "/data").problem
    assert reason == "bad_source_row" and "write the manifest in UTF-8" in message
