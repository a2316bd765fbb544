"""Tasks on a cache that is written record by record (`tests.data.toy_cache`) and read back with SeqIO."""

import dataclasses
import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from data import batch_spec, cached_tasks, provenance, schema, shard_sources, tasks
from data.feature_converters import DenoiserFeatureConverter, VaeFeatureConverter
from tests.data.toy_cache import (
  CHANNELS,
  LENGTH,
  MEAN,
  ROW,
  STD,
  WIDTH,
  cache_dirs,
  model_rows_of,
  record_id,
  rows_of,
  toy_provenance,
  toy_record,
  write_task,
)
from walt_t5x import engine
from walt_t5x.denoiser.transformer import WaltDenoiser
from walt_t5x.files.mismatch import Mismatch
from walt_t5x.models.denoiser_inputs import from_batch
from walt_t5x.models.denoiser_model import DenoiserModel
from walt_t5x.models.input_shapes import input_shapes


def test_a_video_row_is_the_record_normalized_with_its_caption_in_slot_0(cache):
  row_format = tasks.RowFormat(text_length=LENGTH, text_slots=3, label=True)
  task = tasks.video_task(task="toy", latents="latents/3x4x4", row=row_format)
  np.testing.assert_allclose(task.walt_constants.null_text, 0.5)
  rows = model_rows_of(task)
  assert len(rows) == 40
  by_label = {int(row["label"][0]): row for row in rows}
  for index, row in by_label.items():
    raw = schema.decode(schema.encode(toy_record("video", index))).latents["latents/3x4x4"]
    expected = (raw.astype(np.float32) - MEAN) / STD
    np.testing.assert_allclose(row["latents"], expected, rtol=1e-6)
    tokens = 1 + index % LENGTH
    np.testing.assert_array_equal(
      row["text_mask"], [[i < tokens for i in range(LENGTH)]] + [[False] * LENGTH] * 2
    )
    np.testing.assert_allclose(row["text"][0, :tokens].astype(np.float32), index + 1.0, rtol=0.01)
    assert not row["text"][0, tokens:].any() and not row["text"][1:].any()
    assert list(row["label"]) == [index, -1, -1] and not row["is_image"]


def test_latents_come_out_with_mean_0_and_deviation_1(cache):
  rows = model_rows_of(tasks.video_task(task="toy", latents="latents/3x8x8", row=ROW))
  values = np.stack([row["latents"] for row in rows]).astype(np.float64)
  np.testing.assert_allclose(values.mean((0, 1, 2, 3)), 0, atol=0.03)
  np.testing.assert_allclose(values.std((0, 1, 2, 3)), 1, atol=0.03)


def test_latents_stay_as_they_were_written_on_request_and_two_slots_are_two(cache):
  kept = tasks.RowFormat(text_length=LENGTH, text_slots=2, label=True, normalize_latents=False)
  for row in model_rows_of(tasks.video_task(task="toy", latents="latents/3x4x4", row=kept)):
    index = int(row["label"][0])
    raw = schema.decode(schema.encode(toy_record("video", index))).latents["latents/3x4x4"]
    np.testing.assert_array_equal(row["latents"], raw.astype(np.float32))
    assert list(row["label"]) == [index, -1] and row["text"].shape[0] == 2


@pytest.mark.parametrize("std", [0.0, -1.0])
def test_a_channel_that_never_changes_cannot_be_normalized(cache, std):
  kept = provenance.LatentStatistics(channels=CHANNELS, mean=MEAN, std=[0.5, std])
  file = cache / "toy_videos" / provenance.FILE_NAME
  file.write_text(
    dataclasses.replace(toy_provenance([]), latents={"latents/3x4x4": kept}).to_json()
  )
  with pytest.raises(Mismatch, match="a channel of standard deviation 0"):
    rows_of(tasks.video_task(task="toy", latents="latents/3x4x4", row=ROW))


@pytest.mark.parametrize("low_resolution", [None, "latents/3x8x8"])
@pytest.mark.parametrize("fields", [{"text_length": LENGTH}, {"text_length": 0, "label": True}])
def test_seqio_features_are_all_features_of_examples(cache, low_resolution, fields):
  row = tasks.RowFormat(**fields)
  task = tasks.video_task(
    task="toy", latents="latents/3x4x4", low_resolution=low_resolution, row=row
  )
  held = task.get_dataset(split="train", use_cached=True, shuffle=False, try_in_mem_cache=False)
  assert {name: (spec.dtype, spec.shape.rank) for name, spec in held.element_spec.items()} == {
    name: (feature.dtype, feature.rank) for name, feature in task.output_features.items()
  }


@pytest.mark.parametrize("images", [False, True])
def test_converter_lengths_and_initial_shapes_are_those_of_the_examples(cache, images):
  make = tasks.image_video_mixture if images else tasks.video_task
  row = tasks.RowFormat(text_length=LENGTH, label=True)
  task = make(task="toy", latents="latents/3x8x8", low_resolution="latents/3x4x4", row=row)
  lengths = batch_spec.task_feature_lengths(task)
  options = {"split": "train", "use_cached": True, "shuffle": False, "num_epochs": 1, "seed": 0}
  options |= {"trim_output_features": False, "try_in_mem_cache": False}
  dataset = task.get_dataset(sequence_length=lengths, **options)
  converter = DenoiserFeatureConverter(text_dim=WIDTH, label=True, low_resolution=True)
  batches = converter(dataset, lengths).batch(2, drop_remainder=True)
  module = WaltDenoiser(
    latent_channels=CHANNELS, text_dim=WIDTH, num_classes=5, low_resolution_scale=2, num_layers=2
  )
  model = DenoiserModel(module=module, optimizer_def=None, rows="mixed" if images else "videos")
  shapes = input_shapes(
    model, rows=2, field="latents/3x8x8", low_resolution="latents/3x4x4", text_length=LENGTH
  )
  found = {name: (tuple(s.shape), s.dtype.name) for name, s in batches.element_spec.items()}
  assert found == {name: (s.shape, s.dtype.name) for name, s in shapes.items()}
  batch = {name: jnp.zeros(s.shape, s.dtype) for name, s in shapes.items()}
  conditions = from_batch(batch)
  assert conditions.labels is batch["label"] and conditions.text_mask is batch["text_mask"]
  assert conditions.low_resolution is batch["low_resolution"] and conditions.frames is None


def test_default_contents_of_an_example():
  stated = {"text_length": 64, "text_slots": 1, "label": False, "normalize_latents": True}
  assert tasks.RowFormat() == tasks.RowFormat(deny_list=None, **stated)


def test_an_image_row_stacks_as_many_images_as_a_video_has_latent_frames(cache):
  row_format = tasks.RowFormat(text_length=LENGTH, text_slots=3, label=True)
  task = tasks.image_task(
    task="toy", latents="latents/3x8x8", low_resolution="latents/3x4x4", row=row_format
  )
  rows = model_rows_of(task)
  assert len(rows) == 10
  seen = []
  for row in rows:
    assert row["is_image"] and row["latents"].shape == (3, 8, 8, 2)
    assert row["low_resolution"].shape == (3, 4, 4, 2)
    for slot, index in enumerate(row["label"]):
      seen.append(int(index))
      raw = toy_record("image", int(index)).latents["latents/1x8x8"][0]
      np.testing.assert_allclose(row["latents"][slot], (raw - MEAN) / STD, atol=0.05)
      np.testing.assert_allclose(
        row["text"][slot, : 1 + index % LENGTH].astype(np.float32), index + 1.0, rtol=0.01
      )
      assert row["text_mask"][slot].sum() == 1 + index % LENGTH
  assert sorted(seen) == list(range(30))


def test_a_mixture_keeps_its_rates_and_its_common_provenance(cache):
  mixture = tasks.image_video_mixture(
    task="toy", latents="latents/3x4x4", row=ROW, image_rate=1.0, video_rate=3.0
  )
  ds = mixture.get_dataset(
    sequence_length=None,
    split="train",
    use_cached=True,
    shuffle=True,
    num_epochs=None,
    seed=0,
    trim_output_features=False,
  )
  share = np.mean([row["is_image"] for row in ds.take(1200).as_numpy_iterator()])
  assert abs(share - 0.25) < 0.04
  assert set(mixture.walt_provenance["latents"]) == {
    f"latents/{t}x{s}x{s}" for t in (1, 3) for s in (4, 8)
  }


def test_a_mixture_has_the_constants_of_its_videos_and_says_where_those_of_its_images_differ(
  cache, caplog
):
  mixture = tasks.image_video_mixture(task="toy", latents="latents/3x4x4", row=ROW)
  np.testing.assert_array_equal(
    mixture.walt_constants.moments["latents"], np.array([MEAN, STD], np.float32)
  )
  assert not caplog.records
  file = cache / "toy_images" / provenance.FILE_NAME
  kept = provenance.read_provenance(str(file.parent))
  other = provenance.LatentStatistics(channels=CHANNELS, mean=[9.0, 9.0], std=STD)
  latents = {field: other for field in kept.latents}
  file.write_text(dataclasses.replace(kept, latents=latents).to_json())
  np.testing.assert_array_equal(
    mixture.walt_constants.moments["latents"], np.array([MEAN, STD], np.float32)
  )
  assert "mean and standard deviation of latents differ" in caplog.text and "9.0" in caplog.text


@pytest.mark.parametrize(
  ("images", "videos", "expected"), [(3, 5, 5), (7, 5, 7), (0, 0, 0), (None, 5, None)]
)
def test_the_classes_of_a_corpus_are_those_of_all_its_records(cache, images, videos, expected):
  for kind, count in (("images", images), ("videos", videos)):
    stats = {"examples": 1} | ({} if count is None else {"num_classes": count})
    (cache / f"toy_{kind}" / "stats.train.json").write_text(json.dumps(stats))
  mixture = tasks.image_video_mixture(task="toy", latents="latents/3x4x4", row=ROW)
  assert mixture.walt_constants.num_classes == expected
  assert tasks.video_task(task="toy", latents="latents/3x4x4").walt_constants.num_classes == videos


@pytest.mark.parametrize(("present", "absent"), [("video", "image"), ("image", "video")])
def test_a_mixture_reads_the_only_kind_that_the_cache_has(cache, caplog, present, absent):
  shutil.rmtree(cache / f"toy_{absent}s")
  mixture = tasks.image_video_mixture(task="toy", latents="latents/3x4x4", row=ROW)
  alone = {"video": tasks.video_task, "image": tasks.image_task}[present](
    task="toy", latents="latents/3x4x4", row=dataclasses.replace(ROW, text_slots=3)
  )
  got, want = rows_of(mixture), rows_of(alone)
  assert len(got) == len(want) == {"video": 40, "image": 10}[present]
  for row, other in zip(got, want, strict=True):
    assert row.keys() == other.keys() and row["is_image"] == (present == "image")
    for name, value in row.items():
      np.testing.assert_array_equal(value, other[name])
  assert mixture.walt_rates == {present: 1.0} and mixture.walt_provenance == alone.walt_provenance
  moments = mixture.walt_constants.moments["latents"]
  np.testing.assert_array_equal(moments, alone.walt_constants.moments["latents"])
  rows_of(mixture)
  line = f"Mixture 'toy_mixture': no cache of toy_{absent}s; only toy_{present}s is read."
  assert [record.getMessage() for record in caplog.records].count(line) == 1
  missing = cached_tasks.handle(f"toy_{absent}s")
  with pytest.raises(FileNotFoundError, match=f"toy_{present}s only: the corpus has no {absent}s"):
    missing.provenance()


def test_a_mixture_of_two_tokenizers_is_rejected_with_both_fingerprints(cache):
  file = cache / "toy_images" / provenance.FILE_NAME
  file.write_text(toy_provenance(["latents/1x4x4"], vae="other").to_json())
  mixture = tasks.image_video_mixture(task="toy", latents="latents/3x4x4", row=ROW)
  with pytest.raises(Mismatch, match=r"vae differs.*other"):
    _ = mixture.walt_provenance


def test_denied_records_are_read_by_no_task_and_no_mixture(cache, tmp_path):
  gone = {3, 17, 39}
  listed = [record_id(m, i) for m in ("video", "image") for i in gone]
  path = tmp_path / "deny.txt"
  path.write_text("# taken down on request\n\n" + "\n".join([*listed, "0" * 64]) + "\n")
  row = tasks.RowFormat(text_length=LENGTH, text_slots=3, label=True, deny_list=str(path))
  videos = rows_of(tasks.video_task(task="toy", latents="latents/3x4x4", row=row))
  assert {int(r["label"][0]) for r in videos} == set(range(40)) - gone
  images = rows_of(tasks.image_task(task="toy", latents="latents/3x4x4", row=row))
  seen = [int(label) for r in images for label in r["label"]]
  # 28 images are left, and a stack that is not full is dropped.
  assert len(seen) == len(set(seen)) == 27 and not gone & set(seen)
  path.write_text("video3\n")
  with pytest.raises(ValueError, match=r"deny\.txt:1: got 'video3', expected a record id"):
    rows_of(tasks.video_task(task="toy", latents="latents/3x4x4", row=row))
  path.unlink()
  with pytest.raises(FileNotFoundError, match=r"RowFormat\.deny_list: no file at"):
    rows_of(tasks.video_task(task="toy", latents="latents/3x4x4", row=row))


def test_a_cache_without_one_of_its_shards_is_rejected(cache):
  source = shard_sources.raw_shards(str(cache / "toy_videos"), "train")
  assert source.num_input_examples("train") == 40
  info = cache / "toy_videos" / "info.train.json"
  info.write_text(json.dumps(json.loads(info.read_text()) | {"num_shards": 2}))
  shard = cache / "toy_videos" / "train.tfrecord-00000-of-00001"
  shard.rename(shard.with_name("train.tfrecord-00000-of-00002"))
  with pytest.raises(FileNotFoundError, match=r"no train\.tfrecord-00001-of-00002: 1 of the 2"):
    rows_of(tasks.video_task(task="toy", latents="latents/3x4x4", row=ROW))


def test_an_empty_split_is_not_evaluated(cache, caplog):
  folder = cache / "toy_videos"
  info = json.loads((folder / "info.train.json").read_text())
  (folder / "info.validation.json").write_text(json.dumps(info | {"num_shards": 1}))
  (folder / "stats.validation.json").write_text(json.dumps({"examples": 0}))
  (folder / "validation.tfrecord-00000-of-00001").write_bytes(b"")
  task = tasks.video_task(task="toy", latents="latents/3x4x4", row=ROW)
  cfg = engine.DatasetConfig(
    mixture_or_task_name=task, task_feature_lengths=None, split="validation", batch_size=2,
    shuffle=False, seed=0, use_cached=True,
  )  # fmt: skip
  assert engine.get_training_eval_datasets(cfg, 0, 1, 1, DenoiserFeatureConverter) == {}
  assert caplog.messages == [
    f"{task.name} without examples of the split 'validation': not evaluated."
  ]


def test_a_split_that_a_cache_lacks_is_not_evaluated_and_not_read(cache, caplog):
  task = tasks.video_task(task="toy", latents="latents/3x4x4", row=ROW)
  assert list(task.splits) == ["train"]
  cfg = engine.DatasetConfig(
    mixture_or_task_name=task, task_feature_lengths=None, split="validation", batch_size=2,
    shuffle=False, seed=0, use_cached=True,
  )  # fmt: skip
  assert engine.get_training_eval_datasets(cfg, 0, 1, 1, DenoiserFeatureConverter) == {}
  assert caplog.messages == [
    f"{task.name} without examples of the split 'validation': not evaluated."
  ]
  with pytest.raises(FileNotFoundError, match=r"has no split 'validation', only \['train'\]"):
    shard_sources.raw_shards(str(cache / "toy_videos"), "validation")
  absent = tasks.video_task(task="absent", latents="latents/3x4x4", row=ROW)
  assert tuple(absent.splits) == schema.SPLITS


def test_class_conditional_rows_have_labels_and_no_text(cache):
  row = tasks.RowFormat(text_length=0, label=True)
  task = tasks.video_task(
    task="toy", latents="latents/3x4x4", low_resolution="latents/3x8x8", row=row
  )
  (first, *rest) = rows_of(task)
  assert set(first) == {"latents", "low_resolution", "label", "is_image"}
  assert sorted(int(r["label"][0]) for r in (first, *rest)) == list(range(40))


def test_errors_name_the_available_fields(cache):
  with pytest.raises(Mismatch, match="latents/3x4x4"):
    rows_of(tasks.video_task(task="toy", latents="latents/5x4x4", row=ROW))
  with pytest.raises(FileNotFoundError, match="run `beam_jobs"):
    _ = tasks.video_task(task="absent", latents="latents/3x4x4", row=ROW).walt_provenance
  with pytest.raises(ValueError, match="text_slots=1"):
    tasks.image_task(task="toy", latents="latents/3x4x4", row=ROW)


def test_converters_deliver_what_the_model_reads_and_reject_packing(cache):
  task = tasks.video_task(task="toy", latents="latents/3x4x4", row=ROW)
  lengths = {"latents": 3, "is_image": 1, "text": 1, "text_mask": 1}
  ds = task.get_dataset(
    sequence_length=None,
    split="train",
    use_cached=True,
    trim_output_features=False,
    try_in_mem_cache=False,
  )
  converted = DenoiserFeatureConverter(text_dim=WIDTH)(ds, lengths)
  assert set(next(converted.as_numpy_iterator())) == set(lengths)
  with pytest.raises(ValueError, match="pack"):
    DenoiserFeatureConverter(pack=True)
  with pytest.raises(
    ValueError, match=r"'text': examples have length 1, task_feature_lengths has 3"
  ):
    DenoiserFeatureConverter(text_dim=WIDTH)(ds, lengths | {"text": 3})


def _pixel_records(clips: list[dict[str, np.ndarray]]) -> list[schema.Record]:
  return [
    schema.Record(
      id=str(i),
      uri=str(i),
      modality="video",
      latents={},
      pixels=pixels,
      captions=[""],
      caption_weights=[1.0],
      text_ids=[np.zeros(0, int)],
      text_embedding=[np.zeros((0, 0))],
    )
    for i, pixels in enumerate(clips)
  ]


def test_a_pixel_task_gives_the_frames(tmp_path):
  frames = np.random.default_rng(0).integers(0, 256, (4, 5, 8, 8, 3)).astype(np.uint8)
  kept = provenance.Provenance(fps=8.0, num_frames=5)
  write_task(
    tmp_path / "toy_videos", _pixel_records([{"pixels/5x8x8": clip} for clip in frames]), kept
  )
  with cache_dirs(str(tmp_path)):
    task = tasks.pixel_task(task="toy", pixels="pixels/5x8x8")
    np.testing.assert_array_equal([row["video"] for row in rows_of(task)], frames)
    ds = task.get_dataset(
      sequence_length=None, split="train", use_cached=True, try_in_mem_cache=False
    )
    (first, *_) = VaeFeatureConverter()(ds, {"video": 5}).as_numpy_iterator()
    assert first["video"].dtype == np.uint8
    assert provenance.read_provenance(str(tmp_path / "toy_videos")).vae == {}


def test_a_pixel_task_also_gives_a_random_crop_of_each_larger_clip(tmp_path):
  rng = np.random.default_rng(0)
  sizes = (8, 16, 24)
  clips = [rng.integers(0, 256, (6, 5, size, size, 3)).astype(np.uint8) for size in sizes]
  names = [f"pixels/5x{size}x{size}" for size in sizes]
  records = _pixel_records([dict(zip(names, row)) for row in zip(*clips)])
  write_task(tmp_path / "toy_videos", records, provenance.Provenance(fps=8.0, num_frames=5))

  def offsets(seed: int) -> list[tuple[int, int]]:
    ds = task.get_dataset(
      split="train", use_cached=True, shuffle=False, seed=seed, try_in_mem_cache=False
    )
    videos = [row["video"] for row in ds.as_numpy_iterator()]
    np.testing.assert_array_equal(videos[::3], clips[0])
    found = []
    crops = [*zip(videos[1::3], clips[1], strict=True), *zip(videos[2::3], clips[2], strict=True)]
    for window, clip in crops:
      views = np.lib.stride_tricks.sliding_window_view(clip, (8, 8), axis=(1, 2))
      same = (views == window.transpose(0, 3, 1, 2)[:, None, None]).all((0, 3, 4, 5))
      assert same.sum() == 1
      found.append(tuple(int(i) for i in np.argwhere(same)[0]))
    return found

  with cache_dirs(str(tmp_path)):
    task = tasks.pixel_task(task="toy", pixels=names[0], crops_of=names[1:])
    first, again, other = offsets(1), offsets(1), offsets(2)
    with pytest.raises(
      Mismatch, match=r"has \['pixels/5x16x16', 'pixels/5x24x24', .*\], not 'pixels/5x32x32': set"
    ):
      rows_of(tasks.pixel_task(task="toy", pixels=names[0], crops_of=["pixels/5x32x32"]))
    # Without the clips themselves, of a size that the cache does not have.
    alone = rows_of(
      tasks.pixel_task(task="toy", pixels="pixels/3x4x4", crops_of=names, crops_only=True)
    )
    assert len(alone) == 3 * len(clips[0]) and {row["video"].shape for row in alone} == {
      (3, 4, 4, 3)
    }
    with pytest.raises(ValueError, match="crops_only=True without crops_of"):
      tasks.pixel_task(task="toy", pixels=names[0], crops_only=True)
  assert first == again != other and len(set(first)) > 2
  for wrong, said in (
    (["pixels/5x8x4"], "got 'pixels/5x8x4' in crops_of, expected sizes from which"),
    ("pixels/5x16x16", r"expected a list of fields, \['pixels/5x16x16'\]"),
  ):
    with pytest.raises(ValueError, match=said):
      tasks.pixel_task(task="toy", pixels=names[0], crops_of=wrong)


def test_batches_equal_the_examples_that_the_converter_gives_one_by_one(cache):
  row = tasks.RowFormat(text_length=LENGTH, text_slots=3)
  ds = tasks.video_task(task="toy", latents="latents/3x4x4", row=row).get_dataset(
    split="train", use_cached=True, shuffle=False, seed=3, try_in_mem_cache=False
  )
  lengths = {name: (*spec.shape, 1)[0] for name, spec in ds.element_spec.items()}
  converter = DenoiserFeatureConverter(text_dim=WIDTH)
  rows = list(converter(ds, lengths).as_numpy_iterator())
  batches = list(converter.batches(ds, lengths, batch_size=12).as_numpy_iterator())
  assert len(batches) == 3
  for number, batch in enumerate(batches):
    assert list(batch) == list(rows[0]) and batch["text"].shape == (12, 3, LENGTH, 4 + 1 + WIDTH)
    for index in range(12):
      for name, value in batch.items():
        np.testing.assert_array_equal(value[index], rows[12 * number + index][name])
  with pytest.raises(ValueError, match="'text': examples have length 3"):
    converter.batches(ds, lengths | {"text": 1}, batch_size=12)
