"""The page pairs samples of the same prompt and seed, and names the others."""

import json

import numpy as np
import pytest

from tests.html.html_page import Page
from walt_t5x import compare_samples
from walt_t5x.generation.sample_folder import SampleFolder


def _folder(path, prompts, *, seed=0, stages=("base",)):
  folder = SampleFolder(path)
  videos = {stage: np.full((3, 16, 16, 3), 0.5, np.float32) for stage in stages}
  for index, prompt in enumerate(prompts):
    folder.write(
      index,
      prompt=prompt,
      videos=videos,
      fps=8,
      seed=seed,
      steps=dict.fromkeys(stages, 1),
      fingerprints={},
    )
  return folder


def _run(first, second, path, *flags):
  compare_samples.main([str(first.path), str(second.path), f"--output={path}", *flags])
  return Page(path.read_text("utf-8"))


def test_samples_of_the_same_prompt_and_seed_are_paired_and_others_are_named(tmp_path, capsys):
  first = _folder(tmp_path / "a" / "samples", ["x", "x", "y", "x"])
  second = _folder(tmp_path / "b" / "samples", ["z", "x", "x"])
  first.write_scores({"verdicts": {"1": {"base": {"color": True}}}})
  page = _run(first, second, tmp_path / "page.html")
  # The second "x" of one folder belongs to the second of the other.
  names = [attrs["data-name"] for attrs in page.of("button") if "data-name" in attrs]
  assert names == ["00000_base.mp4", "00001_base.mp4", "00001_base.mp4", "00002_base.mp4"]
  assert page.words("b") == ["a base", "b base"] * 2
  assert "seed 0 · a #1 · b #2" in page.words("span") and page.words("span").count("✓ color") == 1
  assert page.words("summary") == ["Only in a: 2 of 4 samples", "Only in b: 1 of 3 samples"]
  assert page.words("li") == ["#2 y (seed 0)", "#3 x (seed 0)", "#0 z (seed 0)"]
  assert json.loads(capsys.readouterr().out) == {
    "page": str(tmp_path / "page.html"),
    "pairs": 2,
    "shown": 2,
    "unpaired": {"a": 2, "b": 1},
  }
  assert len(_run(first, second, tmp_path / "page.html", "--max_samples=1").of("article")) == 1


def test_a_stage_of_one_run_is_next_to_that_of_the_other(tmp_path):
  first = _folder(tmp_path / "a", ["x"], stages=("base", "sr1"))
  second = _folder(tmp_path / "b", ["x"], stages=("base", "sr1", "sr2"))
  page = _run(first, second, tmp_path / "page.html")
  assert page.words("b") == ["a base", "b base", "a sr1", "b sr1", "b sr2"]


@pytest.mark.parametrize(
  "first, second, names",
  [
    ("/r/a/samples", "/r/b/samples", ("a", "b")),
    ("/r/samples", "/r/other", ("samples", "other")),
    ("/r/a/x/s", "/r/b/y/s", ("a/x", "b/y")),
    ("/r/a", "/r/a/b", ("/r/a", "/r/a/b")),
  ],
)
def test_runs_are_named_by_what_differs_in_their_paths(tmp_path, first, second, names):
  paths = (tmp_path / path[1:] for path in (first, second))
  assert compare_samples.run_names(*paths) == tuple(
    str(tmp_path / name[1:]) if name.startswith("/") else name for name in names
  )


def test_folders_without_a_pair_are_rejected(tmp_path, capsys):
  first, other = _folder(tmp_path / "a", ["x"]), _folder(tmp_path / "b", ["x"], seed=1)
  with pytest.raises(SystemExit, match=r"seeds \[0\] and \[1\]\): generate both"):
    _run(first, other, tmp_path / "page.html")
  with pytest.raises(SystemExit, match="no samples in"):
    _run(first, SampleFolder(tmp_path / "none"), tmp_path / "page.html")
  with pytest.raises(SystemExit):
    _run(first, first, tmp_path / "page.html")
  assert "compared with itself" in capsys.readouterr().err
  assert not (tmp_path / "page.html").exists()
