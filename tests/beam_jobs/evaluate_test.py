"""The Beam evaluation with two workers against the evaluation in one process."""

import uuid

import apache_beam as beam
import numpy as np
import pytest

from beam_jobs import evaluate as beam_evaluate
from beam_jobs.runners import evaluation_parts
from tests.metrics.network_parity import random_weights
from walt_t5x import evaluate
from walt_t5x.files import storage
from walt_t5x.files.paths import as_path
from walt_t5x.media import writing
from walt_t5x.metrics import networks
from walt_t5x.metrics.networks import KINDS

_TWO_WORKERS = (
  "--runner=FnApiRunner",
  "--direct_running_mode=multi_threading",
  "--direct_num_workers=2",
)


@pytest.mark.parametrize("stored", [False, True])
def test_two_workers_give_the_scores_of_one_process(tmp_path, monkeypatch, stored):
  monkeypatch.chdir(tmp_path)
  root = as_path(f"memory://{uuid.uuid4().hex}/a" if stored else tmp_path)
  rng = np.random.default_rng(0)
  for folder in ("fake", "real"):
    for i, video in enumerate(rng.integers(0, 256, size=(5, 5, 16, 16, 3)).astype(np.uint8)):
      writing.write_video(root / folder / f"{i}.mp4", video, fps=8)
  file = tmp_path / "shapes.safetensors"
  networks.save_weights(file, random_weights(KINDS["shapes"].expected(), seed=0))
  flags = ["--protocol=shapes_fvd", f"--samples={root / 'fake'}", "--frames=5", "--size=16x16"]
  flags += [f"--reference={root / 'real'}", f"--shapes_weights={file}", "--batch_size=2"]
  flags.append(f"--output={root / 'scores' / 'scores.json'}")
  one = evaluate.run(flags)
  many = beam_evaluate.run([*flags, "--clips_per_part=2", *_TWO_WORKERS])
  got, expected = (r["scores"]["shapes_fvd"] for r in (many, one))
  assert got["score"] == pytest.approx(expected["score"], rel=1e-9) and got["score"] > 0
  assert {**got, "score": 0} == {**expected, "score": 0}
  assert many["file"] == one["file"] and not list(root.rglob(".folds-*"))
  assert storage.names(root / "scores") == ["scores.json"]
  assert not (tmp_path / "memory:").exists()
  assert beam_evaluate.main([*flags, "--runer=x"]) == 2


def test_workers_that_cannot_write_to_the_folder_of_the_scores_need_an_output(
  tmp_path, monkeypatch, capsys
):
  """Samples of another program; the launcher's current folder is another one on the workers."""
  writing.write_video(tmp_path / "media/a.mp4", np.zeros((5, 16, 16, 3), np.uint8), fps=8)
  flags = ["--protocol=tokenizer", "--scores=psnr", "--frames=5", *_TWO_WORKERS[:1]]
  flags += [f"--{name}={tmp_path / 'media'}" for name in ("samples", "reference")]
  keep = evaluation_parts.keep_fold

  def on_another_machine(keyed, folder):
    assert folder.is_absolute()
    keep(keyed, tmp_path / "elsewhere")

  monkeypatch.chdir(tmp_path)
  assert beam_evaluate.main(flags) == 0 and (tmp_path / "scores_tokenizer.json").is_file()
  (tmp_path / "elsewhere").mkdir()
  monkeypatch.setattr(evaluation_parts, "keep_fold", on_another_machine)
  assert beam_evaluate.main(flags) == 2
  assert f"no worker wrote to {tmp_path}" in (told := capsys.readouterr().err)
  assert "set --output=FOLDER/" in told


def test_parts_merge_in_any_grouping():
  from tests.evaluation.scoring_test import _MeanColors, _videos
  from walt_t5x.evaluation.parts import PartStatistics
  from walt_t5x.metrics.feature_statistics import FeatureStatistics

  x = _MeanColors.of(_videos(np.random.default_rng(1), 9))
  parts = [
    PartStatistics(frechet={("i3d", "logits"): FeatureStatistics.from_model_output(x[a:b])})
    for a, b in ((0, 2), (2, 3), (3, 9))
  ]
  merge = beam.CombineFn.from_callable(evaluation_parts.merge_parts)
  left = merge.add_input(merge.add_input(merge.create_accumulator(), parts[2]), parts[0])
  right = merge.add_input(merge.create_accumulator(), parts[1])
  fold = merge.extract_output(merge.merge_accumulators([merge.create_accumulator(), right, left]))
  kept = fold.frechet["i3d", "logits"]
  assert kept.count == 9
  np.testing.assert_allclose(kept.covariance, np.cov(x.T), rtol=1e-9, atol=1e-12)
