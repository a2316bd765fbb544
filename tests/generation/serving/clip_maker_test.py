"""A clip depends on its own request only; requests that the cascade cannot fulfill are rejected."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.generation import cascades
from tests.generation.lossless_cascade import PROMPTS, make_cascade, samples_of, stage_configs
from tests.generation.sampling_run_test import _Cascade
from walt_t5x.files import storage
from walt_t5x.generation.cascade import Batch
from walt_t5x.generation.loading import sizes_below
from walt_t5x.generation.sample_folder import SampleFolder
from walt_t5x.generation.serving.clip_maker import ClipMaker, FieldError, read_image
from walt_t5x.generation.serving.jobs import ClipJob, JobFolder, new_id
from walt_t5x.generation.stage_sampler import noise_for

CONFIG = cascades.config(Path("/nowhere"))


class _Recording(_Cascade):
  """Records the batches that it is given."""

  def run(self, batches, *, stages, progress):
    self.last = batches[0]
    yield from super().run(batches, progress=progress)


@pytest.fixture
def maker(tmp_path):
  return ClipMaker(_Recording(), CONFIG, SampleFolder(tmp_path), fps=8.0, details={"own": 1})


def picture(width=20, height=10):
  file = io.BytesIO()
  Image.new("RGB", (width, height), "red").save(file, format="PNG")
  return file.getvalue()


def test_each_clip_of_a_batch_has_the_noise_of_its_own_seed():
  indices = np.array([0, 0, 3])
  together = noise_for([7, 8, 7], "base", indices, (3, 2))
  for row, (seed, index) in enumerate(zip((7, 8, 7), indices)):
    alone = noise_for(seed, "base", np.array([index]), (3, 2))[0]
    np.testing.assert_array_equal(together[row], alone)
  assert np.abs(together[0] - together[1]).max() > 0.1
  with pytest.raises(OverflowError):
    noise_for([2**32], "base", indices[:1], (3, 2))


def test_a_clip_of_a_batch_is_the_clip_alone():
  cascade = make_cascade(batch_size=4, short_batches=(1,), configs=stage_configs()[:1])

  def made(*rows):
    prompts, seeds = [PROMPTS[i] for i in rows], [10 + i for i in rows]
    batch = Batch(indices=[0] * len(rows), prompts=prompts, seeds=seeds)
    samples = samples_of(cascade, batch)
    return {row: sample.latents["base"] for row, sample in zip(rows, samples)}

  together, others = made(0, 1, 2, 3), made(3, 1, 0)
  assert len(others) == 3
  # In a batch of the same number of clips, bit for bit, wherever it is.
  for row, latents in others.items():
    np.testing.assert_array_equal(together[row], latents)
  # A batch of another number is another program.
  alone = made(2)[2]
  scale = np.abs(alone).max()
  np.testing.assert_allclose(together[2] / scale, alone / scale, atol=1e-6)
  assert np.abs(together[0] - together[1]).max() > 0.1
  # A seed for all clips is the same as that seed for each.
  (one,) = samples_of(cascade, Batch(indices=[0], prompts=PROMPTS[2:3]), seed=12)
  np.testing.assert_array_equal(one.latents["base"], alone)


def test_a_short_batch_runs_the_next_larger_program():
  cascade, seen = make_cascade(batch_size=6, short_batches=(1, 2, 4)), []
  cascade._weights = lambda info: None

  def run_stage(info, below, params, work, **_):
    seen.append(len(work.batch.prompts))
    work.videos[info.config.name] = [np.zeros((1, 8, 8, 3), np.uint8)] * seen[-1]

  cascade._run_stage = run_stage
  for count in range(1, 7):
    batch = Batch(indices=[0] * count, prompts=["a"] * count, seeds=range(count))
    assert len(samples_of(cascade, batch, stages=1)) == count
  assert seen == [1, 2, 4, 4, 6, 6]


def test_short_batches_have_a_power_of_two_of_clips_per_device():
  found = {(size, step): sizes_below(size, step=step) for size, step in ((1, 1), (8, 1), (8, 8))}
  assert found == {(1, 1): [], (8, 1): [1, 2, 4], (8, 8): []}
  assert sizes_below(12, step=2) == [2, 4, 8]


def test_jobs_of_one_batch_become_samples_with_their_own_numbers_seeds_and_images(maker, tmp_path):
  folder = JobFolder(tmp_path)
  jobs = []
  for index, (seed, color) in ((4, (5, 20)), (9, (2**32 - 1, 40))):
    image = picture(width=color)
    request = maker.checked(f"prompt {index}", seed=seed, stage="base", image=image)
    job = ClipJob(id=new_id(), index=index, created=0.0, request=request)
    jobs.append(folder.write(job, image))
  told = []
  seconds = maker.make(jobs, lambda *now: told.append(now))
  assert seconds == {"base": {"sample": 0.5}}
  assert told[0] == (0, 1, "started")
  batch = maker._cascade.last
  assert (batch.indices, batch.seeds) == ([0, 0], [5, 2**32 - 1])
  for job in jobs:
    sidecar = storage.read_json(tmp_path / f"{job.index:05d}.json")
    assert (sidecar["job"], sidecar["seed"], sidecar["own"]) == (job.id, job.request.seed, 1)
    assert sidecar["prompt"] == f"prompt {job.index}" and sidecar["completed_at"] > 0
    assert sidecar["given"]["file"] == job.request.image


def test_sizes_and_durations_are_those_of_the_clips(maker):
  # 17 frames, and 12 more with each extension.
  assert [maker.frames(count) for count in (0, 1, 2)] == [17, 29, 41]
  assert maker.seconds(1) == 29 / 8
  assert [maker.size(stage) for stage in maker.stages] == ["16x16", "32x32"]


@pytest.mark.parametrize(
  ("field", "fields", "message"),
  [
    ("prompt", {"prompt": " \n"}, "got no prompt"),
    ("prompt", {"prompt": "a" * 2001}, "got 2,001 characters, expected at most 2,000"),
    ("prompt", {"prompt": "a \ud800"}, "surrogate"),
    ("seed", {"seed": True}, "got True, expected an integer"),
    ("seed", {"seed": "7"}, "got '7', expected an integer"),
    ("seed", {"seed": [10**30]}, "expected an integer"),
    ("extensions", {"extensions": -1}, "expected an integer from 0 to 7"),
    ("stage", {"stage": "sr2"}, r"expected one of \['base', 'sr1'\]"),
    ("image", {"image": b""}, "cannot be read as an image"),
    ("image", {"image": b"\x89PNG\r\n\x1a\n" + b"x" * 99}, "cannot be read as an image"),
    ("image", {"image": picture(6000, 6000)}, "cannot be read as an image: .*6000"),
    ("image", {"image": b"x" * (20 * 2**20 + 1)}, "got 20,971,521 bytes"),
  ],
)
def test_a_wrong_field_is_named(maker, field, fields, message):
  with pytest.raises(FieldError, match=message) as raised:
    maker.checked(**{"prompt": "a", "seed": 0, "stage": "base"} | fields)
  assert raised.value.field == field


def test_what_the_stages_were_not_trained_for_is_rejected(tmp_path):
  config = cascades.config(tmp_path, base=cascades.model(frame_prediction=False))
  maker = ClipMaker(_Recording(), config, SampleFolder(tmp_path), fps=8.0)
  assert not maker.takes_frames
  for field, value in (("image", picture()), ("extensions", 1)):
    with pytest.raises(FieldError, match="gives past frames, but stage 'base' has no input") as got:
      maker.checked("a", seed=0, stage="base", **{field: value})
    assert got.value.field == field


def test_jobs_of_another_cascade_are_rejected_and_large_files_are_not_read(maker, tmp_path):
  request = dataclasses.replace(maker.checked("a", seed=0, stage="base"), stage="sr9")
  with pytest.raises(ValueError, match="got the stage 'sr9'"):
    maker.make([ClipJob(id=new_id(), index=0, created=0.0, request=request)])
  file = tmp_path / "large.png"
  with file.open("wb") as stream:
    stream.truncate(20 * 2**20 + 1)
  with pytest.raises(FieldError, match="image: got more than 20,971,520 bytes"):
    read_image(str(file))
