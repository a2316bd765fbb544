"""The project of `walt_t5x.init` is accepted by the programs that read it, and fits its run or published model."""

import csv
import json
import re
import shlex
from pathlib import Path

import pytest

import gin
from beam_jobs.runners import job_flags
from beam_jobs.sources import spec
from scripts.quickstart_recipes import FULL
from tests.beam_jobs import media
from tests.generation import cascades
from tests.generation.trained_runs_test import write_records
from walt_t5x import engine, init
from walt_t5x.config import gin_config, gin_text, programs
from walt_t5x.engine.run_record import RecordRun
from walt_t5x.generation.requests import read_requests
from walt_t5x.models import model_record
from walt_t5x.planning.projects import project_files
from walt_t5x.planning.projects.recipes import RECIPES
from walt_t5x.text.vocabulary import train_vocabulary

ROOT = Path(__file__).resolve().parents[1]
# Flags of preprocessing that belong to the model rather than to the data.
OF_MODEL = (
  "content",
  "resolutions",
  "num_frames",
  "fps",
  "clip_position",
  "clips_per_video",
  "no_text",
  "max_text_length",
)
# Name of --like -> the names of its caches on docs/reproduce.md.
PRINTED = {
  "ucf101": ("ucf101_pixels", "ucf101"),
  "k600": ("k600_pixels", "k600"),
  "imagenet": ("imagenet_pixels", "imagenet"),
  "t2v": ("t2v_pixels", "text_video"),
}


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


def _bound(file, *bindings, **macros):
  """The run of a gin file, whose macros have these values."""
  gin.clear_config()
  programs.register(train=engine.train)
  try:
    gin_config.parse([str(file)], list(bindings), [gin_text.FOLDER])
    assert {name: gin_config.macro_value(name) for name in macros} == macros
    return gin_config.bound(RecordRun)
  finally:
    gin.clear_config()


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

  record = _bound(project / "base.gin", TRAIN_STEPS=50).model
  assert record is not None
  trained = made.stages[0]
  assert record["model"] == model_record.record_of(model=trained.model, dataset=None)["model"]
  assert record["latents"] == trained.latents and record["text_length"] == made.text_length


def test_an_interrupted_start_leaves_nothing(world, tmp_path, monkeypatch):
  def interrupted(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(project_files, "readme", interrupted)
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


@pytest.fixture(scope="module")
def corpora(world, tmp_path_factory):
  """Name of --like -> flags of data that fit it: class folders, and the table; and the folder of them all."""
  folder, _ = world
  own = tmp_path_factory.mktemp("corpora")
  video = media.video(num_frames=60, height=128, width=144, fps=25)
  files = {"a.mp4": video, "b.png": media.image(height=64, width=64)}
  for file, content in files.items():
    for name in ("cats", "golden retriever", "Dogs"):
      (own / file[0] / name).mkdir(parents=True)
      (own / file[0] / name / file).write_bytes(content)
  (own / "text").mkdir()
  (own / "text" / "config.json").write_text(json.dumps({"d_model": 2048}))
  (own / "text" / "spiece.model").write_bytes(train_vocabulary(["cats and dogs"] * 9).model)
  return own, {
    "ucf101": [str(own / "a")],
    "k600": [str(own / "a")],
    "imagenet": [str(own / "b")],
    "t2v": [str(own / "a"), f"--text_encoder={own / 'text'}"],
    "tiny": [str(folder / "rows.csv"), "--column=uri=file"],
  }


def _parsed(*argv):
  args, _ = job_flags.parse(argv, description=None)
  return args


def _printed(task):
  """The flags of the command of docs/reproduce.md that makes a cache."""
  page = (ROOT / "docs/reproduce.md").read_text(encoding="utf-8").replace("\\\n", " ")
  (command,) = {line for line in page.splitlines() if re.search(rf"--task={task}(?= |$)", line)}
  return _parsed(*shlex.split(command)[3:])


@pytest.mark.parametrize("name", RECIPES)
def test_a_project_from_nothing_trains_what_is_published(name, corpora, tmp_path, capsys):
  project = tmp_path / "my project"
  assert init.main([*corpora[1][name], f"--like={name}", f"--output={project}"]) == 0
  told, readme = capsys.readouterr().out, (project / "README.md").read_text()

  pixels, latents = (_parsed(f"--config={project / f'{of}.toml'}") for of in ("pixels", "data"))
  for args, task in zip((pixels, latents), PRINTED.get(name, ()), strict=False):
    printed = _printed(task)
    assert {flag: getattr(args, flag) for flag in OF_MODEL} == {
      flag: getattr(printed, flag) for flag in OF_MODEL
    }
    assert args.allow_upscale == printed.allow_upscale
  if name == "tiny":
    sizes = [f"{height}x{width}" for height, width in latents.resolutions]
    assert sizes == [FULL.sizes[0]] and latents.resolutions == pixels.resolutions
    assert latents.num_frames == pixels.num_frames == FULL.num_frames
    assert latents.fps == pixels.fps == 8 and latents.max_text_length == FULL.text_length
  assert latents.vae_checkpoint == str(project / "vae") and latents.validation_percent > 0

  # The networks and the batches are those of the included files, but for the number of classes.
  given = ["MODEL_DIR = '/run'"]
  files = ("tiny/vae", "tiny/base") if name == "tiny" else (f"vae_{name}", f"walt_l_{name}")
  own, published = _bound(project / "base.gin"), _bound(f"gin/{files[1]}.gin", *given)
  classes = own.model["model"]["module"].pop("num_classes")
  assert classes == (3 if published.model["model"]["module"].pop("num_classes") else 0)
  assert own.model == published.model
  perceptual = [] if name == "tiny" else ["PERCEPTUAL_WEIGHTS = None"]
  tokenizer = _bound(project / "vae.gin"), _bound(f"gin/{files[0]}.gin", *given, *perceptual)
  assert tokenizer[0].model == tokenizer[1].model
  rows = {"imagenet": "images", "tiny": "mixture"}.get(name, "videos")
  assert own.dataset.name == f"corpus_{rows}"
  assert tokenizer[0].dataset.name == f"corpus_pixels_{'images' if rows == 'images' else 'videos'}"
  assert tokenizer[0].dataset.walt_features == tokenizer[1].dataset.walt_features
  if name != "t2v":  # The published run mixes images with the videos.
    assert own.dataset.walt_features == published.dataset.walt_features

  # The tokenizer reads only what its cache has.
  files = [str(project / "vae.gin")]
  values = gin_text.check(files, [], [gin_text.FOLDER], complete=True).values
  read = {values["", "pixel_task", "pixels"], *values.get(("", "pixel_task", "crops_of"), ())}
  (height, width), *_ = pixels.resolutions
  assert read == {f"pixels/{pixels.num_frames}x{height}x{width}"}

  # The commands read files of the project, or what an earlier command writes.
  commands = [line.strip() for line in readme.splitlines() if line.startswith("    python")]
  assert all(f"  {command}\n" in told for command in commands)
  there = {str(file) for file in project.iterdir()}
  for command in commands:
    flags = shlex.split(command)[3:]
    for flag, _, value in (flag.partition("=") for flag in flags):
      if flag in ("--config", "--gin_file", "--requests", "--captions"):
        assert value in there, command
      elif flag == "--output":
        there.add(value)


def test_class_folders_become_labels_in_their_order(corpora, tmp_path):
  project = tmp_path / "project"
  assert init.main([*corpora[1]["imagenet"], "--like=imagenet", f"--output={project}"]) == 0
  args = _parsed(f"--config={project / 'data.toml'}")
  with_file = spec.source_of(args, scores=()).columns.classes
  args.class_names = None
  assert with_file == spec.source_of(args, scores=()).columns.classes
  assert with_file["golden retriever"] == (2, "golden retriever")
  requests = read_requests(str(project / "requests.jsonl"))
  assert [request.label for request in requests] == [0, 1, 2]


def test_images_alone_make_a_model_of_images(corpora, tmp_path):
  project, steps = tmp_path / "project", 40
  argv = [*corpora[1]["imagenet"], "--like=tiny", f"--train_steps={steps}", f"--output={project}"]
  assert init.main(argv) == 0
  assert _parsed(f"--config={project / 'pixels.toml'}").num_frames == 1
  tokenizer = _bound(project / "vae.gin", TRAIN_STEPS=steps).dataset
  assert tokenizer.name == "corpus_pixels_images"
  assert tokenizer.walt_features["video"].shape == (1, 32, 32, 3)
  base = _bound(project / "base.gin", TRAIN_STEPS=steps)
  assert base.dataset.name == "corpus_images" and base.model["latents"] == "latents/1x8x8"
  assert base.model["model"]["module"]["spatiotemporal_window"] == [1, 4, 4]
  captions = (project / "captions.jsonl").read_text().splitlines()
  assert {json.loads(line)["caption"] for line in captions} == {"cats", "dogs", "golden retriever"}


def test_data_that_do_not_fit_a_model_are_named(corpora, tmp_path, capsys):
  own, fitting = corpora
  (tmp_path / "flat").mkdir()
  slow = media.video(num_frames=20, height=128, width=128, fps=8)
  (tmp_path / "flat" / "slow.mp4").write_bytes(slow)
  flat, videos, images = (
    str(tmp_path / "flat"),
    *(fitting[name][0] for name in ("k600", "imagenet")),
  )
  narrow = tmp_path / "narrow"
  narrow.mkdir()
  (narrow / "config.json").write_text(json.dumps({"d_model": 64}))
  cases = [
    ([images, "--like=ucf101"], ["got 3 images", "expected videos", "imagenet"]),
    ([videos, "--like=imagenet"], ["got 3 videos", "expected images"]),
    ([flat, "--like=k600"], ["got videos of 8", "at least 18.75", "--fps=8"]),
    ([flat, "--like=k600", "--fps=6"], ["clips of 2.83 s", "got videos of 2.5", "--fps=7"]),
    ([flat, "--like=ucf101", "--fps=8"], ["without any", "class folders", "--class_names"]),
    ([flat, "--like=tiny"], ["without any", "--column=caption=COLUMN"]),
    ([videos, "--like=t2v", f"--text_encoder={narrow}"], ["width 64", "expected 2048", "xl"]),
    ([videos, "--like=tiny", "--perceptual_weights=none"], ["has no effect"]),
    ([videos, "--like=k600", "--perceptual_weights=none"], ["no file at"]),
    ([videos, "--like=t2v", "--text_encoder=none"], ["--text_encoder", "import_encoder"]),
  ]
  for argv, named in cases:
    with pytest.raises(SystemExit) as error:
      init.main([*argv, f"--output={tmp_path / 'new'}"])
    assert [part for part in named if part not in str(error.value)] == [], (argv, error.value)
  assert not (tmp_path / "new").exists()

  wrong = [
    ([], "--from --like is required"),
    (["--from=run", "--like=tiny"], "not allowed with"),
    (["--like=t2v"], "import_encoder --source"),
    (["--like=k600", f"--text_encoder={own / 'text'}"], "reads no text"),
    (["--from=run", "--fps=8"], "only with --like"),
    (["--from=run", "--train_steps=0"], "more than 0"),
    (["--like=ucf10"], "did you mean --like=ucf101"),
  ]
  capsys.readouterr()
  for flags, named in wrong:
    with pytest.raises(SystemExit) as error:
      init.main([videos, f"--output={tmp_path / 'new'}", *flags])
    assert error.value.code == 2 and named in capsys.readouterr().err, flags
