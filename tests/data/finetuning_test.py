"""The data of a run that starts from another run: the statistics of that run, for the same encoders only."""

import dataclasses
import json

import numpy as np
import pytest

from data import provenance, tasks
from tests.data.toy_cache import CHANNELS, MEAN, ROW, STD, WIDTH, toy_provenance, toy_record
from walt_t5x.files.mismatch import Mismatch


def _trained_run(folder, cache, **changes):
  """The folder of a run on data with other statistics; `changes` are of its provenance."""
  made = toy_provenance(toy_record("video", 0).latents)
  moved = provenance.LatentStatistics(channels=CHANNELS, mean=[3.0, 4.0], std=[2.0, 5.0])
  trained = dataclasses.replace(made, latents={"latents/3x4x4": moved}, **changes)
  folder.mkdir()
  (folder / provenance.FILE_NAME).write_text(trained.to_json())
  return folder, moved


@pytest.mark.parametrize("place", ["", "checkpoint_7"])
def test_a_fine_tuned_run_keeps_the_statistics_of_its_run(place, cache, tmp_path):
  folder, moved = _trained_run(tmp_path / "run", cache)
  row = dataclasses.replace(ROW, statistics_of=str(folder / place))
  task = tasks.video_task(
    task="toy", latents="latents/3x4x4", low_resolution="latents/3x8x8", row=row
  )
  np.testing.assert_array_equal(task.walt_constants.moments["latents"], [moved.mean, moved.std])
  # A field that the run was not trained on keeps those of the cache.
  np.testing.assert_array_equal(task.walt_constants.moments["low_resolution"], [MEAN, STD])
  # What the new run records is what it was trained with: sampling and other stages read it.
  recorded = provenance.Provenance.from_json(json.dumps(task.walt_provenance))
  assert recorded.latents["latents/3x4x4"] == moved
  # A cache of images has no field of videos, which the run makes all the same.
  images = tasks.image_task(
    task="toy", latents="latents/3x4x4", row=dataclasses.replace(row, text_slots=3)
  )
  assert "latents/3x4x4" not in provenance.read_provenance(str(cache / "toy_images")).latents
  assert images.provenance().latents["latents/3x4x4"] == moved
  mixed = tasks.image_video_mixture(task="toy", latents="latents/3x4x4", row=row)
  np.testing.assert_array_equal(mixed.walt_constants.moments["latents"], [moved.mean, moved.std])


@pytest.mark.parametrize(
  ("changes", "named"),
  [
    ({"vae": {"fingerprint": "other", "checkpoint": "runs/vae"}}, "tokenizer v, .*other.*runs/vae"),
    (
      {"text_encoder": {"fingerprint": "u", "embedding_dim": WIDTH, "folder": "t5"}},
      "text encoder t, .* u: .*t5",
    ),
    ({"posterior": "sample"}, "posterior's mean, .*sample"),
  ],
)
def test_fine_tuning_on_data_of_other_encoders_is_refused(changes, named, cache, tmp_path):
  folder, _ = _trained_run(tmp_path / "run", cache, **changes)
  row = dataclasses.replace(ROW, statistics_of=str(folder))
  task = tasks.video_task(task="toy", latents="latents/3x4x4", row=row)
  with pytest.raises(Mismatch, match=named):
    task.walt_constants  # noqa: B018 - it reads
  with pytest.raises(FileNotFoundError, match="expected the folder of a training run"):
    row = dataclasses.replace(ROW, statistics_of=str(tmp_path / "none"))
    tasks.video_task(task="toy", latents="latents/3x4x4", row=row).provenance()
