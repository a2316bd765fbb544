"""Latent statistics: merging shards equals numpy on all latents, and the denoiser's inputs have unit variance."""

import json

import ml_dtypes
import numpy as np
import pytest
import seqio

from beam_jobs.shards.ledger import latent_statistics
from beam_jobs.shards.moments import Moments
from data import cached_tasks, provenance, schema, tasks, tfrecord
from walt_t5x.models.denoiser_inputs import normalized

CHANNELS = 3


def _latents(count, frames, seed):
  """Skewed values with a separate scale and offset per channel, in the dtype of a cache."""
  rng = np.random.default_rng(seed)
  values = rng.exponential(size=(count, frames, 4, 4, CHANNELS))
  return (values * [0.01, 1.0, 40.0] + [5.0, -2.0, 100.0]).astype(ml_dtypes.bfloat16)


def test_merged_statistics_equal_those_of_all_latents():
  complete = np.concatenate([_latents(50, 3, 0), _latents(50, 3, 1)])
  cuts = np.split(complete, [1, 7, 60])
  parts = [Moments.from_json(json.loads(json.dumps(Moments.of(cut).to_json()))) for cut in cuts]
  for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
    mean, std = sum((parts[i] for i in order), Moments()).mean_std()
    flat = complete.astype(np.float64).reshape(-1, CHANNELS)
    np.testing.assert_allclose(mean, flat.mean(0), rtol=1e-12)
    np.testing.assert_allclose(std, flat.std(0), rtol=1e-9)


@pytest.fixture
def cache(tmp_path):
  """A cache of images and videos with the merged statistics of their shards."""
  rows = {"toy_images": _latents(60, 1, 2), "toy_videos": 2 * _latents(40, 3, 3)}
  fields = {"toy_images": "latents/1x4x4", "toy_videos": "latents/3x4x4"}
  moments = {
    name: {fields[name]: sum((Moments.of(part) for part in np.split(values, 4)), Moments())}
    for name, values in rows.items()
  }
  statistics = latent_statistics(moments)
  for name, values in rows.items():
    folder = tmp_path / name
    folder.mkdir()
    records = [
      schema.Record(
        id=f"{name}{i}",
        uri=f"{i}",
        modality=name.removeprefix("toy_").removesuffix("s"),
        label=0,
        latents={fields[name]: row},
        captions=["a"],
        caption_weights=[1.0],
        text_ids=[np.arange(2)],
        text_embedding=[np.ones((2, 4))],
      )
      for i, row in enumerate(values)
    ]
    (folder / "train.tfrecord-00000-of-00001").write_bytes(
      b"".join(tfrecord.frame(schema.encode(record)) for record in records)
    )
    info = {"num_shards": 1, "features": schema.seqio_features([fields[name]])}
    (folder / "info.train.json").write_text(json.dumps(info | {"seqio_version": "0.0.20"}))
    (folder / "stats.train.json").write_text(json.dumps({"examples": len(records)}))
    kept = provenance.Provenance(fps=8.0, num_frames=9, latents=statistics[name])
    (folder / provenance.FILE_NAME).write_text(kept.to_json())
    (folder / "COMPLETED").write_text("")
  before = list(seqio.get_global_cache_dirs())
  seqio.set_global_cache_dirs([str(tmp_path)])
  cached_tasks.handle.cache_clear()
  yield rows
  seqio.set_global_cache_dirs(before)
  cached_tasks.handle.cache_clear()


def test_the_denoisers_inputs_have_mean_0_and_deviation_1(cache):
  row = tasks.RowFormat(text_length=0)
  found = []
  for task in (
    tasks.video_task(task="toy", latents="latents/3x4x4", row=row),
    tasks.image_task(
      task="toy", latents="latents/3x4x4", row=tasks.RowFormat(text_length=0, text_slots=3)
    ),
  ):
    dataset = task.get_dataset(
      sequence_length=None,
      split="train",
      use_cached=True,
      shuffle=False,
      num_epochs=1,
      trim_output_features=False,
      try_in_mem_cache=False,
    )
    rows = [
      np.asarray(normalized(row["latents"], task.walt_constants.moments["latents"]))
      for row in dataset.as_numpy_iterator()
    ]
    found.append(np.concatenate(rows).reshape(-1, CHANNELS))
  inputs = np.concatenate(found)
  assert len(inputs) == (40 * 3 + 60) * 16  # 60 images in stacks of 3
  np.testing.assert_allclose(inputs.mean(0), 0, atol=0.02)
  np.testing.assert_allclose(inputs.std(0), 1, atol=0.02)
  # Videos and images share statistics, so videos alone do not have mean 0.
  assert np.abs(found[0].mean(0)).max() > 0.1
