"""Parts of an evaluation: interrupted and resumed, or shared by processes, they give the scores of a single run."""

import dataclasses

import numpy as np
import pytest

from tests.evaluation.scoring_test import _IS, _SMALL, _MeanColors, _media, _videos, score
from walt_t5x import evaluate
from walt_t5x.evaluation import clip_sources, media_files
from walt_t5x.evaluation.parts import load_part, plan_parts, save_part
from walt_t5x.evaluation.scoring import Evaluation, score_evaluation
from walt_t5x.media import writing
from walt_t5x.metrics import networks
from walt_t5x.metrics.protocols import PROTOCOLS
from walt_t5x.metrics.protocols.protocol import FVD, ClipRule, ScoreRule, Statistic

_PSNR = ScoreRule(name="psnr", statistic=Statistic.PSNR)
_PROTOCOL = _SMALL.replace(
  scores=(FVD, _IS, _PSNR),
  sample_count=10,
  reference_count=14,
  folds=2,
  reference_clip=ClipRule.RANDOM,
)


class _Dies(_MeanColors):
  """The network of a run that is killed after some batches."""

  def __init__(self, batches):
    super().__init__()
    self._left = batches

  def __call__(self, videos, *, batch_size):
    if not self._left:
      raise KeyboardInterrupt
    self._left -= 1
    return super().__call__(videos, batch_size=batch_size)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  path, rng = tmp_path_factory.mktemp("media"), np.random.default_rng(0)
  for folder in ("fake", "real"):
    for i, video in enumerate(_videos(rng, 20, size=16)):
      writing.write_video(path / folder / f"{i}.mp4", video, fps=8)
  return path


def _evaluation(folders, network=None, **options):
  fake, real = (media_files.find_media(folders / name) for name in ("fake", "real"))
  networks = {"i3d": network or _MeanColors()}
  return Evaluation(_PROTOCOL, fake, real, networks, batch_size=2, clips_per_part=4, **options)


def _values(scores):
  return [s.value.values for s in scores]


def test_parts_of_any_size_merge_to_the_same_scores(folders):
  fake, real = (media_files.find_media(folders / name) for name in ("fake", "real"))
  by_size = [
    score(_PROTOCOL, fake, real, {"i3d": _MeanColors()}, batch_size=b, clips_per_part=p)
    for b, p in ((64, 1000), (3, 1), (2, 4), (5, 7))
  ]
  for other in by_size[1:]:
    for a, b in zip(by_size[0], other):
      np.testing.assert_allclose(a.value.values, b.value.values, rtol=1e-9)
  assert [len(s.value.values) for s in by_size[0]] == [2, 4, 20]


@pytest.mark.parametrize("batches", [0, 3, 7, 14, 20])
def test_a_killed_run_resumes_and_equals_an_uninterrupted_one(folders, tmp_path, batches):
  undisturbed = _evaluation(folders)
  expected = _values(score_evaluation(undisturbed))
  with pytest.raises(KeyboardInterrupt):
    score_evaluation(_evaluation(folders, _Dies(batches), parts_dir=tmp_path))
  resumed = _evaluation(folders, parts_dir=tmp_path)
  assert _values(score_evaluation(resumed)) == expected
  # Two batches make a part of four clips, and only complete parts are stored.
  assert resumed.clips + resumed.kept == undisturbed.clips == 48
  assert resumed.kept >= 2 * batches - 8 and (resumed.kept > 0) == (batches >= 2)
  again = _evaluation(folders, parts_dir=tmp_path)
  assert _values(score_evaluation(again)) == expected and again.clips == 0


def test_parts_of_other_files_or_weights_are_not_used(folders, tmp_path):
  first = _evaluation(folders, parts_dir=tmp_path / "parts")
  score_evaluation(first)
  clips = first.plans[0].clips
  moved = dataclasses.replace(clips[0].media, path=clips[1].media.path, read=clips[1].media.read)
  plan = dataclasses.replace(
    first.plans[0], clips=(dataclasses.replace(clips[0], media=moved), *clips[1:])
  )
  changed = _evaluation(folders, parts_dir=tmp_path / "parts")
  changed.part(plan)
  assert (changed.clips, changed.kept) == (4, 0)
  other = _MeanColors()
  other.fingerprint = "e" * 64
  weights = _evaluation(folders, other, parts_dir=tmp_path / "parts")
  weights.part(weights.plans[0])
  assert (weights.clips, weights.kept) == (4, 0)
  nowhere = plan_parts([clip_sources.PlannedClip(media=_media("x", None), fold=0, number=0)],
                       references=False, clips_per_part=4)  # fmt: skip
  with pytest.raises(ValueError, match="x does not come from a file"):
    next(nowhere).contents()


def test_a_part_is_restored_from_its_file_exactly(folders, tmp_path):
  evaluation = _evaluation(folders)
  part = evaluation.part(evaluation.plans[0])
  save_part(tmp_path / "part.npz", part, contents="c")
  got = load_part(tmp_path / "part.npz", contents="c")
  assert load_part(tmp_path / "part.npz", contents="d") is None
  assert load_part(tmp_path / "none.npz", contents="c") is None
  assert got.of_clips == part.of_clips and got.inception.keys() == part.inception.keys()
  for key, kept in part.frechet.items():
    np.testing.assert_equal(vars(got.frechet[key]), vars(kept))
  for key, kept in part.inception.items():
    assert got.inception[key].entropy == kept.entropy
    np.testing.assert_array_equal(got.inception[key].probabilities, kept.probabilities)


def test_a_damaged_part_is_named_and_made_again(folders, tmp_path, caplog):
  evaluation = _evaluation(folders, parts_dir=tmp_path)
  expected = _values(score_evaluation(evaluation))
  file = min(tmp_path.rglob("*.npz"))
  content = file.read_bytes()
  for changed in (
    content[:40],
    b"",
    content[: len(content) // 2] + b"\0" + content[len(content) // 2 + 1 :],
  ):
    file.write_bytes(changed)
    again = _evaluation(folders, parts_dir=tmp_path)
    with caplog.at_level("WARNING"):
      assert _values(score_evaluation(again)) == expected
    assert again.clips == 4 and f"{file} is damaged" in caplog.text
    caplog.clear()


def test_processes_share_an_evaluation(folders, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(networks.FeatureNetwork, "load", lambda name, path: _MeanColors())
  flags = ["--protocol=tokenizer", f"--samples={folders / 'fake'}", "--frames=4", "--size=16x16"]
  flags += ["--scores=rfvd,psnr,ssim"]
  flags += [f"--reference={folders / 'real'}", "--clips_per_part=3", f"--output={tmp_path / 's'}"]
  one = evaluate.run(flags)
  shared = [*flags, f"--parts_dir={tmp_path / 'parts'}"]
  made = [evaluate.run([*shared, f"--process_index={i}", "--process_count=2"]) for i in (1, 0)]
  assert [m["parts"] for m in made] == [7, 7] and made[0]["of"] == 14
  assert sum(m["clips"] for m in made) == 40
  assert evaluate.run(shared)["scores"] == one["scores"]
  assert "scored no clips; 40 from stored parts" in capsys.readouterr().out
  assert made[0]["protocol_hash"] == one["protocol_hash"] != PROTOCOLS["tokenizer"].hash
  for wrong in (["--process_index=2", "--process_count=2"], ["--process_count=2"]):
    with pytest.raises(SystemExit):
      evaluate.parse_arguments([*shared, *wrong])
  with pytest.raises(SystemExit):
    evaluate.parse_arguments([*flags, "--process_index=0"])
