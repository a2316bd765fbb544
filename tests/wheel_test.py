"""The wheel works outside the clone: it has the gin files, its commands run the programs, registries accept it."""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import gin
from walt_t5x.config import gin_config, gin_text

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
  "walt-train": "walt_t5x.train",
  "walt-generate": "walt_t5x.generate",
  "walt-evaluate": "walt_t5x.evaluate",
  "walt-preprocess": "beam_jobs.preprocess",
  "walt-plan": "walt_t5x.plan",
  "walt-init": "walt_t5x.init",
  "walt-report": "walt_t5x.report",
  "walt-inspect": "walt_t5x.inspect_data",
}

# A file of a preset that the package does not have.
PLANTED = Path("walt_t5x/presets/planted/base/checkpoint_1/weights.safetensors")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
  """A folder with the unpacked wheel, as site-packages has it."""
  folder = tmp_path_factory.mktemp("wheel")
  # A copy, because builds create folders next to setup.py.
  source = folder / "source"
  source.mkdir()
  for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, source)
  for name in ("gin", "walt_t5x", "data", "beam_jobs"):
    shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
  planted = source / PLANTED
  planted.parent.mkdir(parents=True)
  planted.write_bytes(b"x")
  # As pip calls it, with no part of the clone on the path (-P).
  build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
  subprocess.run(
    [sys.executable, "-P", "-c", build, str(folder)], cwd=source, check=True, capture_output=True
  )
  (wheel,) = folder.glob("*.whl")
  with zipfile.ZipFile(wheel) as archive:
    archive.extractall(folder / "site")
  return folder / "site"


def _files(folder, pattern):
  return {f.relative_to(folder): f.read_bytes() for f in folder.rglob(pattern) if f.is_file()}


def test_the_wheel_has_every_gin_file_template_and_module(site):
  assert _files(site / "walt_t5x/_gin/gin", "*.gin") == _files(ROOT / "gin", "*.gin")
  for package in ("walt_t5x", "data", "beam_jobs"):
    for pattern in ("*.py", "*.j2"):
      assert _files(site / package, pattern) == _files(ROOT / package, pattern)
  # gin-config owns this folder of site-packages.
  assert not (site / "gin").exists()
  assert {p.name for p in site.iterdir() if not p.name.endswith(".dist-info")} == {
    "walt_t5x", "data", "beam_jobs",
  }  # fmt: skip


def test_the_wheel_has_every_file_of_the_presets(site):
  planted = {PLANTED.relative_to("walt_t5x/presets"): b"x"}
  assert _files(site / "walt_t5x/presets", "*") == _files(ROOT / "walt_t5x/presets", "*") | planted


def test_extras_have_no_addresses(site):
  (distribution,) = metadata.distributions(path=[str(site)])
  assert [r for r in distribution.requires or () if "@" in r or "://" in r] == []


def test_each_command_runs_its_program(site, tmp_path):
  (distribution,) = metadata.distributions(path=[str(site)])
  points = {p.name: p for p in distribution.entry_points if p.group == "console_scripts"}
  assert points.keys() == COMMANDS.keys()
  environment = os.environ | {"PYTHONPATH": str(site), "COLUMNS": "100"}

  def help_of(*command):
    done = subprocess.run(
      [sys.executable, *command, "--help"],
      cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr

  for name, module in COMMANDS.items():
    point = points[name]
    # The script that the installer writes into bin/.
    script = tmp_path / name
    script.write_text(
      f"import sys\nfrom {point.module} import {point.attr}\nsys.exit({point.attr}())\n"
    )
    assert help_of(str(script)) == help_of("-m", module)


def test_a_gin_file_is_found_from_any_folder_and_a_local_one_takes_precedence(
  tmp_path, monkeypatch, caplog
):
  package, here = tmp_path / "package", tmp_path / "here"
  for folder in (package / "gin/runs", here / "gin/runs"):
    folder.mkdir(parents=True)
  (package / "gin/launched.gin").write_text("include 'gin/runs/run.gin'\nSTEPS = 10\n")
  (package / "gin/runs/run.gin").write_text("SEED = 0\n")
  monkeypatch.chdir(here)

  def parsed():
    gin.clear_config()
    try:
      gin_config.parse(["gin/launched.gin"], [], [".", str(package)])
      return gin_config.macro_value("STEPS"), gin_config.macro_value("SEED")
    finally:
      gin.clear_config()

  with caplog.at_level("INFO"):
    assert parsed() == (10, 0)
  # gin logs an error for each folder without the file, before it searches the next one.
  assert "not found" not in caplog.text
  (here / "gin/runs/run.gin").write_text("SEED = 7\n")
  assert parsed() == (10, 7)


def test_a_missing_gin_file_is_named_with_the_searched_folders(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(gin_config.GinError) as error:
    gin_config.parse(["gin/walt_4b.gin"], [], [".", gin_text.FOLDER])
  for folder in (tmp_path, ROOT):
    assert str(folder / "gin/walt_4b.gin") in str(error.value)
  assert "--gin_search_paths" in str(error.value)
  with pytest.raises(FileNotFoundError, match=r"--vae_gin_file: no file at .*nowhere\.gin"):
    gin_text.find("nowhere.gin", flag="--vae_gin_file")


def test_a_program_that_ends_without_an_exit_is_a_success(monkeypatch):
  from walt_t5x import __main__ as commands

  monkeypatch.setattr("runpy.run_module", lambda module, **_: {"__name__": module})
  for name in COMMANDS:
    assert getattr(commands, name.removeprefix("walt-"))() is None
