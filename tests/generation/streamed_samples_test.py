"""Clips that are handed over stage by stage: complete when they are named, and the bytes of a run without it."""

import contextlib
import json

import numpy as np
import pytest

from walt_t5x import generate
from walt_t5x.files import storage
from walt_t5x.generation import requests as reading
from walt_t5x.generation import sample_files
from walt_t5x.generation.prepared_requests import Prepared, SamplingSettings
from walt_t5x.generation.sample_folder import SampleFolder
from walt_t5x.generation.sampling_run import make_samples

FORMATS = ("mp4", "png", "latents")


def _prepared():
  settings = SamplingSettings(num_samples=2, batch_size=2, formats=FORMATS)
  requests = reading.make_requests(["a red square", "a sun"])
  return Prepared(requests=requests, settings=settings, size=(8, 8), conditioning_frames=5)


def _run(cascade, path, streamed=None):
  """Generates the missing samples; returns their numbers."""
  made = make_samples(cascade, _prepared(), SampleFolder(path), details={}, streamed=streamed)
  return [sample.index for sample in made]


def _content(path):
  """Bytes of each file; of sidecars, everything but the times."""
  files = {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}
  for file in path.glob("[0-9]*.json"):
    files[file.name] = {**storage.read_json(file), "batch_seconds": None}
    files[file.name].pop("sha256", None)
  return files


@pytest.fixture(scope="module")
def undisturbed(two, tmp_path_factory):
  path = tmp_path_factory.mktemp("undisturbed")
  assert _run(two, path) == [0, 1, 2, 3]
  return _content(path)


@pytest.fixture
def started(two, monkeypatch):
  """The names of the stages that were started, one per batch."""
  names, run_stage = [], two._run_stage

  def run(info, *arguments, **options):
    names.append(info.config.name)
    return run_stage(info, *arguments, **options)

  monkeypatch.setattr(two, "_run_stage", run)
  return names


@pytest.mark.parametrize("one_at_a_time", [False, True])
def test_a_clip_is_complete_before_the_next_stage_starts_and_the_files_are_the_same(
  two, undisturbed, started, tmp_path, monkeypatch, one_at_a_time
):
  monkeypatch.setattr(two, "one_at_a_time", one_at_a_time)
  told, seen = [], {}

  def streamed(index, stage, file):
    told.append((index, stage, len(started)))
    assert started[-1] == stage and not SampleFolder(tmp_path).finished(index)
    stem = f"{index:05d}_{stage}"
    seen.update({name: data for name, data in _content(tmp_path).items() if stem in name})
    frames = sample_files.read_clip(file, (17, *[{"base": 4, "sr1": 8}[stage]] * 2, 3), 1)
    assert frames.shape[0] == 17

  assert _run(two, tmp_path, streamed) == [0, 1, 2, 3]
  stages = ["base", "base", "sr1", "sr1"] if one_at_a_time else ["base", "sr1"] * 2
  firsts = [0, 2, 0, 2] if one_at_a_time else [0, 0, 2, 2]
  assert started == stages
  assert told == [
    (first + row, stage, count + 1)
    for count, (first, stage) in enumerate(zip(firsts, stages))
    for row in (0, 1)
  ]
  assert _content(tmp_path) == undisturbed
  # Nothing of a clip was written again.
  assert seen == {name: data for name, data in undisturbed.items() if "_" in name}


@pytest.mark.parametrize("again", [True, False])
def test_a_run_that_ends_between_two_stages_resumes_to_the_same_bytes(
  two, undisturbed, started, tmp_path, again
):
  told = []

  def interrupted(index, stage, file):
    told.append((index, stage))
    if told[-1] == (3, "base"):
      raise KeyboardInterrupt

  with contextlib.suppress(KeyboardInterrupt):
    _run(two, tmp_path, interrupted)
  assert started == ["base", "sr1", "base"]
  folder = SampleFolder(tmp_path)
  assert [folder.finished(i) for i in range(4)] == [True, True, False, False]
  assert (tmp_path / "00003_base.mp4").exists() and not (tmp_path / "00003_sr1.mp4").exists()
  # One sample of the first batch is missing: the other one is not handed over again.
  folder.sidecar(0).unlink()
  told.clear()
  assert _run(two, tmp_path, (lambda i, s, f: told.append((i, s))) if again else None) == [0, 2, 3]
  expected = [(i, stage) for batch in ([0], [2, 3]) for stage in ("base", "sr1") for i in batch]
  assert told == (expected if again else [])
  assert _content(tmp_path) == undisturbed


def test_a_line_of_json_names_the_file(capsys, tmp_path):
  generate._print_clip(3, "sr1", tmp_path / "00003_sr1.mp4")
  assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
    {"sample": 3, "stage": "sr1", "file": str(tmp_path / "00003_sr1.mp4")}
  ]


def test_a_stage_is_written_as_a_sample_writes_it(tmp_path):
  clip = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
  fields = {"prompt": "a", "fps": 8.0, "seed": 0, "steps": {}, "fingerprints": {}}
  entire, parts = SampleFolder(tmp_path / "entire"), SampleFolder(tmp_path / "parts")
  entire.write(0, videos={"base": clip}, **fields)
  written = {"base": parts.write_stage(0, "base", clip, fps=8.0)}
  parts.write(0, videos={"base": clip}, written=written, **fields)
  assert _content(entire.path) == _content(parts.path)
