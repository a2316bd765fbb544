"""The project of `walt_t5x.init` is accepted by the programs that read it, and fits the run that it starts from."""

import csv

import pytest

import gin
from beam_jobs.runners import job_flags
from tests.beam_jobs import media
from tests.generation import cascades
from tests.generation.trained_runs_test import write_records
from walt_t5x import engine, init
from walt_t5x.config import gin_config, gin_text, programs
from walt_t5x.engine.run_record import RecordRun
from walt_t5x.models import model_record


@pytest.fixture(scope="module")
def world(tmp_path_factory):
  """A random cascade of runs, and two videos and a picture with a table of captions."""
  folder = tmp_path_factory.mktemp("own")
  made = cascades.written(folder / "runs")
  write_records(made)
  names = ["a.mp4", "b.mp4", "c.png"]
  for name in names[:2]:
    (folder / name).write_bytes(media.video(num_frames=40, height=48, width=64, fps=16))
  (folder / "c.png").write_bytes(media.image(height=48, width=64))
  with (folder / "rows.csv").open("w", newline="") as file:
    csv.writer(file).writerows([["file", "caption"], *([name, "a square"] for name in names)])
  return folder, made


def _made(world, output, *flags):
  folder, made = world
  argv = [str(folder / "rows.csv"), f"--from={made.stages[0].checkpoint}", f"--output={output}"]
  assert init.main([*argv, "--column=uri=file", *flags]) == 0
  return output


def test_a_project_fits_its_run_and_is_read_as_it_is(world, tmp_path, capsys):
  folder, made = world
  project = _made(world, tmp_path / "project", "--train_steps=50")
  told = capsys.readouterr().out
  assert "no faults found" in told and f"--gin_file={project / 'base.gin'}" in told
  # The stage that upsamples the run's latents is next to it.
  assert f"--run={project / 'base'} --run={made.stages[1].checkpoint} --prompt" in told

  args, _ = job_flags.parse([f"--config={project / 'data.toml'}"], description=None)
  assert args.manifest == str(folder / "rows.csv") and args.column == ["uri=file"]
  assert (args.vae_checkpoint, args.text_encoder) == (made.vae_checkpoint, made.text_encoder)
  assert args.resolutions == ((16, 16), (32, 32)) and args.num_frames == 9 and args.fps == 8.0
  assert args.max_text_length == made.text_length

  gin.clear_config()
  programs.register(train=engine.train)
  try:
    gin_config.parse([str(project / "base.gin")], [], [gin_text.FOLDER])
    record = gin_config.bound(RecordRun).model
    assert gin_config.macro_value("TRAIN_STEPS") == 50
  finally:
    gin.clear_config()
  assert record is not None
  trained = made.stages[0]
  assert record["model"] == model_record.record_of(model=trained.model, dataset=None)["model"]
  assert record["latents"] == trained.latents and record["text_length"] == made.text_length


def test_an_interrupted_start_leaves_nothing(world, tmp_path, monkeypatch):
  def interrupted(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(init, "_readme", interrupted)
    _made(world, tmp_path / "project")
  assert not (tmp_path / "project").exists()
  assert sorted(file.name for file in _made(world, tmp_path / "project").iterdir()) == [
    "README.md",
    "base.gin",
    "data.toml",
  ]


def test_what_cannot_become_a_project_is_named(world, tmp_path, capsys):
  folder, made = world
  (tmp_path / "taken").mkdir()
  (tmp_path / "taken" / "base.gin").touch()
  base, output = made.stages[0].checkpoint, f"--output={tmp_path / 'new'}"
  cases = [
    ([str(folder), f"--from={base}", f"--output={tmp_path / 'taken'}"], "is not empty"),
    ([str(folder), f"--from={made.vae_checkpoint}", output], "no model.json"),
    ([str(folder / "none.csv"), f"--from={base}", output], "no file at"),
    ([str(folder / "rows.csv"), f"--from={base}", output], "--column"),
  ]
  for argv, named in cases:
    with pytest.raises(SystemExit) as error:
      init.main(argv)
    assert named in str(error.value), argv
  assert not (tmp_path / "new").exists()
