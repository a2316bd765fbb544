"""Checks between a cache and a run: provenance at startup, sharding over hosts, exact rates of mixtures."""

import dataclasses
import json

import numpy as np
import pytest

from data import schema, tasks, tfrecord
from data.feature_converters import DenoiserFeatureConverter
from tests.data.toy_cache import (
  LENGTH,
  ROW,
  WIDTH,
  cache_dirs,
  rows_of,
  toy_provenance,
  toy_record,
  write_task,
)
from tests.engine import runs
from walt_t5x.engine import run_record
from walt_t5x.files.mismatch import Mismatch


@pytest.mark.parametrize(
  ("field", "change"),
  [
    ("vae.fingerprint", lambda kept: {"vae": {"fingerprint": "w"}}),
    (
      "text_encoder.fingerprint",
      lambda kept: {"text_encoder": dict(kept.text_encoder, fingerprint="u")},
    ),
    ("schema_version", lambda kept: {"schema_version": schema.SCHEMA_VERSION + 1}),
    (
      "latents.latents/3x4x4.mean",
      lambda kept: {
        "latents": dict(
          kept.latents,
          **{"latents/3x4x4": dataclasses.replace(kept.latents["latents/3x4x4"], mean=[1.0, -2.5])},
        )
      },
    ),
    (
      "latents.latents/3x4x4.std",
      lambda kept: {
        "latents": {
          name: dataclasses.replace(s, std=[0.5, 2.0]) for name, s in kept.latents.items()
        }
      },
    ),
  ],
)
def test_a_run_stops_at_examples_of_another_provenance(tmp_path, field, change):
  kept = toy_provenance(["latents/3x4x4"])
  folder = tmp_path / "run"
  folder.mkdir()
  run_record.record(str(folder), json.loads(kept.to_json()))
  runs.write_empty_checkpoint(folder, 1)
  run_record.record(str(folder), json.loads(kept.to_json()))
  other = json.loads(dataclasses.replace(kept, **change(kept)).to_json())
  before, now = json.loads(kept.to_json()), other
  for key in _path(field):
    before, now = before[key], now[key]
  with pytest.raises(Mismatch) as error:
    run_record.record(str(folder), other)
  for part in (field, repr(before), repr(now), "Point the run at the dataset"):
    assert part in str(error.value)


def _path(field):
  if field.startswith("latents."):
    return ["latents", *field.removeprefix("latents.").rsplit(".", 1)]
  return field.split(".")


def test_a_cache_of_another_schema_is_rejected_before_it_is_read(tmp_path):
  records = [toy_record("video", i) for i in range(3)]
  kept = toy_provenance(records[0].latents)
  write_task(tmp_path / "toy_videos", records, dataclasses.replace(kept, schema_version=1))
  with cache_dirs(str(tmp_path)):
    with pytest.raises(Mismatch, match=r"got 1, expected 3; preprocess the media again"):
      _ = tasks.video_task(task="toy", latents="latents/3x4x4", row=ROW).walt_provenance


def _write_shards(folder, records, kept, shards):
  write_task(folder, records, kept)
  (folder / "train.tfrecord-00000-of-00001").unlink()
  for shard in range(shards):
    content = b"".join(tfrecord.frame(schema.encode(r)) for r in records[shard::shards])
    (folder / f"train.tfrecord-{shard:05d}-of-{shards:05d}").write_bytes(content)
  info = json.loads((folder / "info.train.json").read_text()) | {"num_shards": shards}
  (folder / "info.train.json").write_text(json.dumps(info))


@pytest.mark.parametrize(("files", "hosts"), [(6, 3), (1, 2)])
def test_hosts_share_the_rows_by_file_and_lose_none(tmp_path, files, hosts):
  import seqio

  records = [toy_record("video", i) for i in range(40)]
  _write_shards(tmp_path / "toy_videos", records, toy_provenance(records[0].latents), files)
  row = tasks.RowFormat(text_length=LENGTH, label=True)
  with cache_dirs(str(tmp_path)):
    seqio.utils._list_files_for_glob.cache_clear()
    seen = [
      [
        int(r["label"][0])
        for r in rows_of(
          tasks.video_task(task="toy", latents="latents/3x4x4", row=row),
          shard_info=seqio.ShardInfo(index=host, num_shards=hosts),
        )
      ]
      for host in range(hosts)
    ]
  assert sorted(label for host in seen for label in host) == list(range(40))
  if files >= hosts:
    for index, labels in enumerate(seen):
      assert {label % files for label in labels} == set(range(index, files, hosts))


@pytest.mark.parametrize("rates", [(1.0, 3.0), (2.0, 1.0), (0.7, 0.3)])
def test_the_realized_rate_of_a_mixture_is_the_configured_one(tmp_path, rates):
  for modality, count in (("image", 12), ("video", 9)):
    records = [toy_record(modality, i) for i in range(count)]
    write_task(tmp_path / f"toy_{modality}s", records, toy_provenance(records[0].latents))
  with cache_dirs(str(tmp_path)):
    mixture = tasks.image_video_mixture(
      task="toy",
      latents="latents/3x4x4",
      row=tasks.RowFormat(text_length=0),
      image_rate=rates[0],
      video_rate=rates[1],
    )
    ds = mixture.get_dataset(
      sequence_length=None,
      split="train",
      use_cached=True,
      seed=0,
      num_epochs=None,
      trim_output_features=False,
    )
    images = np.array([bool(r["is_image"]) for r in ds.take(2000).as_numpy_iterator()])
  want = rates[0] / sum(rates)
  configured = run_record.configured_rates(mixture)
  assert configured == pytest.approx(
    {"rate_image_configured": want, "rate_video_configured": rates[1] / sum(rates)}, abs=1e-12
  )
  # Binomial(2000, want) is within 4 standard deviations of its mean; small caches do not change the rate.
  for part in (images, images[1000:]):
    assert abs(part.mean() - want) < 4 * np.sqrt(want * (1 - want) / len(part))


def test_a_saved_position_resumes_with_the_same_examples(tmp_path):
  """The position includes the mixture, shuffle buffers, sampled captions and partly used blocks of records."""
  import tensorflow as tf

  for modality, count in (("image", 31), ("video", 45)):
    records = [_captioned(toy_record(modality, i)) for i in range(count)]
    write_task(tmp_path / f"toy_{modality}s", records, toy_provenance(records[0].latents))
  with cache_dirs(str(tmp_path)):
    mixture = tasks.image_video_mixture(
      task="toy", latents="latents/3x4x4", row=ROW, shuffle_buffer_size=7
    )
    ds = mixture.get_dataset(
      sequence_length=None,
      split="train",
      use_cached=True,
      shuffle=True,
      seed=1,
      num_epochs=None,
      trim_output_features=False,
    )
    lengths = {name: (*spec.shape, 1)[0] for name, spec in ds.element_spec.items()}
    ds = DenoiserFeatureConverter(text_dim=WIDTH).batches(ds, lengths, batch_size=4)
    undisturbed = iter(ds)
    for _ in range(9):
      next(undisturbed)
    saved = tf.train.Checkpoint(ds=undisturbed).write(str(tmp_path / "position"))
    expected = [next(undisturbed) for _ in range(8)]
    resumed = iter(ds)
    tf.train.Checkpoint(ds=resumed).read(saved).assert_consumed()
    for want in expected:
      got = next(resumed)
      for name in want:
        np.testing.assert_array_equal(got[name], want[name])
  texts = {bytes(row[0, 0, :8].numpy()) for batch in expected for row in batch["text"]}
  assert len(texts) > 4, "rows and captions differ, or the comparison says nothing"


def _captioned(record):
  """The record with a second caption."""
  return dataclasses.replace(
    record,
    captions=[*record.captions, "another"],
    caption_weights=[1.0, 2.0],
    text_ids=[*record.text_ids, np.arange(2)],
    text_embedding=[*record.text_embedding, -record.text_embedding[0][:1].repeat(2, axis=0)],
  )


def test_a_run_that_reads_text_rejects_a_cache_without_it(tmp_path):
  records = [toy_record("video", i) for i in range(3)]
  empty = {"text_encoder": {}, "null_ids": np.zeros(0, int), "null_embedding": np.zeros((0, 0))}
  kept = dataclasses.replace(toy_provenance(records[0].latents), **empty)
  write_task(tmp_path / "toy_videos", records, kept)
  without = tasks.RowFormat(text_length=0, label=True)
  with cache_dirs(str(tmp_path)):
    labels = rows_of(tasks.video_task(task="toy", latents="latents/3x4x4", row=without))
    assert sorted(int(row["label"][0]) for row in labels) == [0, 1, 2]
    with pytest.raises(Mismatch, match=r"cache of 'toy_videos' has no text: set RowFormat\.text"):
      rows_of(tasks.video_task(task="toy", latents="latents/3x4x4", row=ROW))
