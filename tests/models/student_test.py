"""A student is described by its teacher's run, starts from its weights, and keeps its teacher."""

import numpy as np
import pytest

from tests import tiny_denoiser
from walt_t5x.denoiser.transformer import WaltDenoiser
from walt_t5x.diffusion.guidance import ConstantGuidance
from walt_t5x.diffusion.samplers.grids import EvenAngle, Trailing
from walt_t5x.engine import checkpoints, restore_transforms, run_record, weights_file
from walt_t5x.files import storage
from walt_t5x.files.mismatch import Mismatch
from walt_t5x.models import model_record, student
from walt_t5x.models.denoiser_model import DenoiserModel
from walt_t5x.models.sampling import SamplerConfig
from walt_t5x.vae.autoencoder import CausalVae


class _Dataset:
  walt_fields = {"latents": "latents/3x4x4"}  # noqa: RUF012 - as tasks have it


def _run(folder, *, guidance=ConstantGuidance(3.0), calls=50, **fields):  # noqa: B008 - frozen
  """The folder of a run that describes its model, with a weights file."""
  model = DenoiserModel(
    module=WaltDenoiser(**(tiny_denoiser.FIELDS | fields)),
    optimizer_def=None,
    self_conditioning_probability=0.7,
    sampler=SamplerConfig(num_steps=calls, guidance=guidance),
  )
  record = model_record.record_of(model=model, dataset=_Dataset())
  storage.write_json(folder / "model.json", record)
  weights_file.write(
    checkpoints.checkpoint_folder(folder, 5), {"a": np.ones(3, np.float32)}, dtype="float32"
  )
  return str(folder)


@pytest.mark.parametrize(
  "before, calls, substeps", [(50, 25, 2), (25, 13, 2), (7, 4, 2), (50, 4, 13)]
)
def test_its_calls_stand_for_those_of_the_run(before, calls, substeps, tmp_path):
  made = student.student_of(
    teacher=_run(tmp_path, calls=before), calls=calls, optimizer_def=None, grid=Trailing()
  )
  assert made.substeps == substeps and made.sampler.num_steps == calls
  assert made.module == made.teacher.module and made.teacher.sampler.num_steps == before
  assert made.self_conditioning_probability == 0.7 and made.drop_probability == 0


def test_guidance_is_an_input_or_part_of_the_student(tmp_path):
  run = _run(tmp_path)
  fixed = student.student_of(teacher=run, calls=25, optimizer_def=None)
  assert fixed.module.guidance_range is None and fixed.sampler.guidance is None
  free = student.student_of(teacher=run, calls=25, optimizer_def=None, guidance_range=(1.0, 5.0))
  assert free.module.guidance_range == (1.0, 5.0)
  assert free.sampler.guidance == ConstantGuidance(3.0)
  # Its record is that of a model which needs neither the teacher nor distillation, but for the teacher's name.
  record = model_record.record_of(model=free, dataset=_Dataset())
  storage.write_json(tmp_path / "next" / "model.json", record)
  found = model_record.read(tmp_path / "next")
  assert type(found.model) is DenoiserModel and found.model.module == free.module
  assert found.model.sampler == SamplerConfig(
    num_steps=25, guidance=ConstantGuidance(3.0), grid=EvenAngle()
  )
  assert found.teacher == student.identity_of(run)
  # The next student has the same input.
  following = student.student_of(teacher=str(tmp_path / "next"), calls=13, optimizer_def=None)
  assert following.module.guidance_range == (1.0, 5.0) and following.teacher.branches == 1


def test_what_cannot_teach_is_named(tmp_path):
  run = _run(tmp_path / "run", calls=16)
  with pytest.raises(Mismatch, match=r"makes 16 calls, CALLS=16: expected fewer, such as 8"):
    student.student_of(teacher=run, calls=16, optimizer_def=None)
  storage.write_json(
    tmp_path / "vae" / "model.json",
    model_record.record_of(model=CausalVae(), dataset=_Dataset()),
  )
  with pytest.raises(Mismatch, match="trained a tokenizer: expected the run of a denoiser"):
    student.student_of(teacher=str(tmp_path / "vae"), calls=4, optimizer_def=None)
  with pytest.raises(FileNotFoundError, match=r"no model\.json in"):
    student.student_of(teacher=str(tmp_path / "none"), calls=4, optimizer_def=None)


def test_a_run_keeps_its_teacher(tmp_path, monkeypatch):
  model = {"teacher": {"checkpoint": "a/checkpoint_1", "weights": "12"}}
  storage.write_json(tmp_path / "model.json", model, seal=True)
  other = {"teacher": {"checkpoint": "b/checkpoint_1", "weights": "34"}}
  moved = {"teacher": {"checkpoint": "c/checkpoint_1", "weights": "12"}}
  monkeypatch.setattr(run_record.checkpoints, "has_trained", lambda folder: False)
  run_record.check_teacher(str(tmp_path), other)
  monkeypatch.setattr(run_record.checkpoints, "has_trained", lambda folder: True)
  run_record.check_teacher(str(tmp_path), moved)
  with pytest.raises(
    Mismatch, match=r"teacher a/checkpoint_1 \(12\), and .* b/checkpoint_1 \(34\)"
  ):
    run_record.check_teacher(str(tmp_path), other)
  with pytest.raises(Mismatch, match="name the same TEACHER"):
    run_record.check_teacher(str(tmp_path), {})


def test_student_and_teacher_start_from_the_average():
  weights, average = np.zeros(3, np.float32), np.arange(3, dtype=np.float32)
  trained = {
    "target": {"a": {"kernel": weights}},
    "state": {"0": {"ema": {"a": {"kernel": average}}, "count": np.int32(7)}},
  }
  wanted = {
    "target": {"a": {"kernel": weights}, "guidance_mlp": {"in": weights}},
    "state": {"0": {"ema": {"a": {"kernel": weights}}, "count": np.int32(0)}},
    "flax_mutables": {"teacher": {"a": {"kernel": weights}}},
  }
  started = restore_transforms.student_and_teacher(trained, wanted)
  for found in (
    started["target"],
    started["flax_mutables"]["teacher"],
    started["state"]["0"]["ema"],
  ):
    np.testing.assert_array_equal(found["a"]["kernel"], average)
  assert "guidance_mlp" not in started["target"]
  wanted["target"]["b"] = {"kernel": weights}
  with pytest.raises(Mismatch, match="another network"):
    restore_transforms.student_and_teacher(trained, wanted)
