"""Record schema; TensorFlow's own protobuf, TFRecord and parser are the references."""

import dataclasses
import io
import json

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from data import packed_text, provenance, schema, tfrecord
from tests.data.captions import parse_caption
from walt_t5x.files.mismatch import Mismatch

E = 48


def make_record(*, lengths=(5, 1, 7), seed=0, **fields) -> schema.Record:
  random = np.random.default_rng(seed)
  values = {
    "id": "a" * 64,
    "uri": "clips/été.mp4",
    "modality": "video",
    "label": 3,
    "fps": 8.0,
    "start_seconds": 0.5,
    "crop": (1, 2, 30, 40),
    "motion": 0.25,
    "captions": [f"caption {i} é" for i in range(len(lengths))],
    "caption_weights": [1.0 + i for i in range(len(lengths))],
    "text_ids": [random.integers(2, 9, n).astype(np.int32) for n in lengths],
    "text_embedding": [random.normal(size=(n, E)).astype(np.float32) for n in lengths],
    "latents": {
      "latents/3x8x8": random.normal(size=(3, 8, 8, 4)),
      "latents/3x4x6": random.normal(size=(3, 4, 6, 4)),
    },
  }
  return schema.Record(**values | fields)


def parse(record: schema.Record) -> dict:
  """A record as seqio reads it from `seqio_features`."""

  def kind(shape, dtype):
    if shape == [None]:
      return tf.io.FixedLenSequenceFeature([], dtype, allow_missing=True)
    return tf.io.FixedLenFeature(shape, dtype)

  features = schema.seqio_features(list(record.latents))
  description = {
    name: kind(feature["shape"], feature["dtype"]) for name, feature in features.items()
  }
  return tf.io.parse_single_example(schema.encode(record), description)


def test_bytes_are_a_tensorflow_example():
  serialized = schema.encode(make_record())
  example = tf.train.Example.FromString(serialized)
  assert example.SerializeToString(deterministic=True) == serialized
  assert set(example.features.feature) == set(
    schema.seqio_features(["latents/3x8x8", "latents/3x4x6"])
  )


def test_decode_inverts_encode():
  record = make_record()
  decoded = schema.decode(schema.encode(record))
  for name in ("id", "uri", "modality", "label", "fps", "start_seconds", "crop", "motion"):
    assert getattr(decoded, name) == getattr(record, name), name
  assert decoded.captions == record.captions
  assert decoded.caption_weights == record.caption_weights
  for got, want in zip(decoded.text_ids, record.text_ids, strict=True):
    np.testing.assert_array_equal(got, want)
  for name, latents in record.latents.items():
    np.testing.assert_array_equal(decoded.latents[name], latents.astype(ml_dtypes.bfloat16))


def test_the_crop_of_a_manifest_comes_back_and_does_not_disturb_seqio():
  plain, crop = make_record(), (0.1, 0.899999, 0.0, 1.0)
  cropped = dataclasses.replace(plain, manifest_crop=crop)
  assert schema.decode(schema.encode(cropped)).manifest_crop == crop
  assert schema.decode(schema.encode(plain)).manifest_crop is None
  one, other = parse(plain), parse(cropped)
  assert one.keys() == other.keys()
  for name, value in one.items():
    np.testing.assert_array_equal(value, other[name])


def test_pixels_come_back_as_they_were():
  random = np.random.default_rng(0)
  pixels = {
    schema.pixels_field(t, h, w): random.integers(0, 256, (t, h, w, 3)).astype(np.uint8)
    for t, h, w in ((5, 8, 6), (1, 4, 4))
  }
  decoded = schema.decode(schema.encode(make_record(pixels=pixels))).pixels
  assert sorted(decoded) == ["pixels/1x4x4", "pixels/5x8x6"]
  for name, values in pixels.items():
    np.testing.assert_array_equal(decoded[name], values)


def test_captions_without_a_token_decode_to_none_each_and_encode_to_the_same_bytes():
  none = {"text_ids": [np.zeros(0, np.int32)] * 2, "text_embedding": [np.zeros((0, 0))] * 2}
  serialized = schema.encode(make_record(captions=["", "a"], caption_weights=[1, 2], **none))
  decoded = schema.decode(serialized)
  assert [embedding.shape for embedding in decoded.text_embedding] == [(0, 0)] * 2
  assert [len(ids) for ids in decoded.text_ids] == [0, 0]
  assert schema.encode(decoded) == serialized


def test_defaults_of_a_record_are_no_class_no_rate_no_crop():
  values = {f.name: getattr(make_record(), f.name) for f in dataclasses.fields(schema.Record)}
  for name in ("label", "fps", "start_seconds", "crop", "motion", "pixels"):
    del values[name]
  feature = tf.train.Example.FromString(schema.encode(schema.Record(**values))).features.feature
  assert list(feature["label"].int64_list.value) == [-1]
  assert list(feature["crop"].int64_list.value) == [0, 0, 0, 0]
  for name in ("fps", "start_seconds", "motion"):
    assert list(feature[name].float_list.value) == [0.0]


def test_encoding_is_deterministic_and_insensitive_to_field_order():
  record = make_record()
  shuffled = make_record(latents=dict(reversed(record.latents.items())))
  assert schema.encode(record) == schema.encode(shuffled)


def test_parsed_latents_equal_the_written_ones_to_bfloat16():
  record = make_record()
  example = parse(record)
  for name, latents in record.latents.items():
    parsed = schema.parse_latents(example, name, latents.shape)
    assert parsed.dtype == tf.bfloat16
    np.testing.assert_array_equal(parsed.numpy(), latents.astype(ml_dtypes.bfloat16))


def test_records_parse_together_as_they_do_one_by_one():
  records = [
    make_record(seed=seed, pixels={"pixels/2x4x4": np.full((2, 4, 4, 3), seed, np.uint8)})
    for seed in range(3)
  ]
  examples = schema.parse_records(
    tf.constant([schema.encode(record) for record in records]),
    ["label", "caption_weights", "latents/3x4x6", "pixels/2x4x4"],
  )
  np.testing.assert_array_equal(examples["label"], [3, 3, 3])
  assert examples["caption_weights"].to_list() == [[1.0, 2.0, 3.0]] * 3
  np.testing.assert_array_equal(
    schema.parse_latents(examples, "latents/3x4x6", (3, 4, 6, 4)),
    [record.latents["latents/3x4x6"].astype(ml_dtypes.bfloat16) for record in records],
  )
  np.testing.assert_array_equal(
    schema.parse_pixels(examples, "pixels/2x4x4"),
    [record.pixels["pixels/2x4x4"] for record in records],
  )


def test_each_caption_parses_to_its_own_slice():
  record = make_record()
  example = parse(record)
  for i, embedding in enumerate(record.text_embedding):
    caption = parse_caption(example, index=i, embedding_dim=E)
    assert caption["caption"].numpy().decode() == record.captions[i]
    np.testing.assert_array_equal(caption["text_ids"], record.text_ids[i])
    np.testing.assert_allclose(caption["text_embedding"], embedding, atol=0.02)


def test_captions_of_many_records_are_cut_out_together():
  widths = {"embedding_dim": E, "length": 4}
  records = [
    make_record(),
    make_record(text_embedding=[2 * x for x in make_record().text_embedding]),
  ]
  examples = schema.parse_records(
    tf.constant([schema.encode(record) for record in records]),
    ["caption_lengths", "text_embedding"],
  )
  for index in ([0, 2], [1, 1], [2, 0]):
    packed, counts = schema.packed_captions(examples, index=tf.constant(index, tf.int64), **widths)
    for raw, count, i, record in zip(packed.numpy(), counts.numpy(), index, records, strict=True):
      expected = packed_text.pack(record.text_embedding[i])[:4]
      assert raw == expected.tobytes() and count == len(expected)


def test_captions_are_drawn_by_their_weights():
  records = [
    schema.encode(make_record(caption_weights=[0.0, 1.0, 3.0])),
    schema.encode(
      make_record(
        captions=["a"],
        caption_weights=[0.5],
        text_ids=[np.arange(2)],
        text_embedding=[np.ones((2, E), np.float32)],
      )
    ),
  ]
  examples = schema.parse_records(tf.constant(records * 2000), ["caption_weights"])
  draws = schema.draw_captions(examples["caption_weights"], seed=(1, 2)).numpy()
  assert not draws[1::2].any()
  counts = np.bincount(draws[::2], minlength=3)
  assert counts[0] == 0
  # Binomial(2000, 3/4) is within 5 standard deviations of its mean.
  assert abs(counts[2] - 1500) < 5 * np.sqrt(2000 * 0.75 * 0.25)


def test_text_is_packed_token_by_token_and_parses_as_it_decodes():
  random = np.random.default_rng(3)
  texts = [random.laplace(size=(n, 17)).astype(np.float32) for n in (5, 1, 7)]
  record = make_record(text_embedding=texts)
  example, decoded = parse(record), schema.decode(schema.encode(record))
  for i, text in enumerate(texts):
    expected = packed_text.unpack(packed_text.pack(text))
    np.testing.assert_array_equal(decoded.text_embedding[i], expected)
    parsed = parse_caption(example, index=i, embedding_dim=17)
    np.testing.assert_array_equal(parsed["text_embedding"], expected)


@pytest.mark.parametrize(
  ("fields", "message"),
  [
    ({"modality": "audio"}, "modality: got 'audio'"),
    ({"captions": []}, "captions: got none"),
    ({"caption_weights": [1.0]}, "caption_weights: got 1 entries for 3"),
    ({"text_ids": [np.arange(2)] * 3}, "text_embedding: got shape"),
    ({"latents": {}}, "got neither latents nor pixels"),
    ({"latents": {"latents/3x8x8": np.zeros((3, 8, 4, 4))}}, r"latents/3x8x8: got shape"),
    ({"pixels": {"pixels/5x8x8": np.zeros((5, 8, 6, 3), np.uint8)}}, "got uint8 "),
    ({"pixels": {"pixels/5x8x8": np.zeros((5, 8, 8, 3))}}, "got float64 "),
    ({"pixels": {"p": np.zeros((5, 8, 8, 3), np.uint8)}}, "not a pixels field: got 'p'"),
    ({"crop": (1, 2, 3)}, "crop: got"),
    ({"text_embedding": [np.zeros(n) for n in (5, 1, 7)]}, "text_embedding: got shape"),
    ({"latents": {"latents/3x8x8": np.zeros((3, 8, 8))}}, r"latents/3x8x8: got shape"),
    ({"latents": {"z": np.zeros((3, 8, 4, 4))}}, "not a latents field: got 'z'"),
  ],
)
def test_an_invalid_record_is_rejected(fields, message):
  with pytest.raises(ValueError, match=message):
    schema.encode(make_record(**fields))


def test_a_field_of_no_kind_has_no_features():
  with pytest.raises(ValueError, match="not a pixels field: got 'text/3x8x8'"):
    schema.seqio_features(["latents/3x8x8", "text/3x8x8"])


def test_parsing_names_what_is_wrong():
  example = parse(make_record())
  with pytest.raises(KeyError, match=r"latents/9x9x9.*latents/3x4x6"):
    schema.parse_latents(example, "latents/9x9x9", (9, 9, 9, 4))
  with pytest.raises(ValueError, match=r"latents/3x8x8: got shape \(3, 8, 9, 4\)"):
    schema.parse_latents(example, "latents/3x8x8", (3, 8, 9, 4))
  with pytest.raises(ValueError, match=r"latents/3x8x8: got shape \(3, 8, 8\)"):
    schema.parse_latents(example, "latents/3x8x8", (3, 8, 8))
  with pytest.raises(KeyError, match=r"pixels/9x9x9.*its pixels fields are \[\]"):
    schema.parse_pixels(example, "pixels/9x9x9")


def test_tensorflow_reads_our_framing_and_we_read_its(tmp_path):
  payloads = [b"", b"x", bytes(range(256)) * 33]
  ours, theirs = tmp_path / "ours", tmp_path / "theirs"
  ours.write_bytes(b"".join(tfrecord.frame(payload) for payload in payloads))
  with tf.io.TFRecordWriter(str(theirs)) as writer:
    for payload in payloads:
      writer.write(payload)
  assert ours.read_bytes() == theirs.read_bytes()
  assert list(tf.data.TFRecordDataset(str(ours)).as_numpy_iterator()) == payloads
  assert list(tfrecord.read_records(io.BytesIO(theirs.read_bytes()))) == payloads


@pytest.mark.parametrize("position", range(0, 24))
def test_every_flipped_byte_of_a_record_is_noticed(position):
  framed = bytearray(tfrecord.frame(b"eight by"))
  assert len(framed) == 24
  framed[position] ^= 1
  with pytest.raises(tfrecord.CorruptRecord):
    list(tfrecord.read_records(io.BytesIO(bytes(framed))))


@pytest.mark.parametrize("length", range(1, 24))
def test_a_record_that_is_cut_off_is_noticed(length):
  with pytest.raises(tfrecord.CorruptRecord):
    list(tfrecord.read_records(io.BytesIO(tfrecord.frame(b"eight by")[:length])))


# --- provenance ---------------------------------------------------------------------------------


def make_provenance(**fields) -> provenance.Provenance:
  values = {
    "vae": {"fingerprint": "v1", "config": {"latent_channels": 2}, "checkpoint": "/vae"},
    "text_encoder": {"fingerprint": "t1", "embedding_dim": 3, "max_length": 64, "folder": "/t5"},
    "fps": 8.0,
    "num_frames": 9,
    "latents": {
      "latents/3x8x8": provenance.LatentStatistics(channels=2, mean=[0.1, 0.2], std=[1.0, 2.0])
    },
    "null_ids": np.array([1], np.int32),
    "null_embedding": np.array([[1.0, -0.5, 0.25]], np.float32),
  }
  return provenance.Provenance(**values | fields)


def test_provenance_survives_its_file(tmp_path):
  written = make_provenance()
  (tmp_path / provenance.FILE_NAME).write_text(written.to_json())
  read = provenance.read_provenance(str(tmp_path))
  assert read.to_json() == written.to_json()
  assert read.latents == written.latents
  np.testing.assert_allclose(read.null_embedding, written.null_embedding, atol=1 / 127)


def test_provenance_of_another_schema_or_a_missing_file_is_rejected(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"beam_jobs\.preprocess"):
    provenance.read_provenance(str(tmp_path))
  raw = json.loads(make_provenance().to_json()) | {"schema_version": 99}
  with pytest.raises(Mismatch, match="schema_version: got 99, expected 3"):
    provenance.Provenance.from_json(json.dumps(raw))
  del raw["posterior"]
  raw["schema_version"] = schema.SCHEMA_VERSION
  with pytest.raises(Mismatch, match="'posterior' is missing"):
    provenance.Provenance.from_json(json.dumps(raw))
