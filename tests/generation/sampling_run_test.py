"""Interrupted runs end with the same bytes as uninterrupted ones; other commands and invalid inputs are rejected.

The models are replaced by fakes: these tests are about the loop, the files and the messages.
"""

import dataclasses
import json
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.generation import cascades
from walt_t5x import generate
from walt_t5x.diffusion.samplers.caching import EveryNth
from walt_t5x.files import storage
from walt_t5x.files.mismatch import Mismatch
from walt_t5x.generation import prepared_requests, run_identity, sampling_run
from walt_t5x.generation import requests as reading
from walt_t5x.generation.cascade import Sample
from walt_t5x.generation.prepared_requests import Prepared, SamplingSettings, prepare
from walt_t5x.generation.requests import Request
from walt_t5x.generation.sample_folder import SampleFolder
from walt_t5x.generation.sampling_run import batches_of, make_samples
from walt_t5x.media import writing
from walt_t5x.media.reading import read_video

CONFIG = cascades.config(Path("/nowhere"))


class _Cascade:
  """Frames that encode seed and number of a sample; interrupted after some batches."""

  one_at_a_time = False
  fingerprints = {"base": "b", "sr1": "s"}  # noqa: RUF012 - a fake

  def __init__(self, stop_after=None):
    self.stop_after, self.asked = stop_after, []
    self.infos = [
      types.SimpleNamespace(
        config=stage, step=7, provenance=types.SimpleNamespace(vae={"fingerprint": "v"})
      )
      for stage in CONFIG.stages
    ]

  def run(self, batches, *, progress, stage_finished=None):
    for batch in batches:
      if self.stop_after is not None and len(self.asked) >= self.stop_after:
        raise KeyboardInterrupt
      self.asked.append(list(batch.indices))
      for name in ("base", "sr1"):
        progress(name, 0)
      yield [
        Sample(
          index=i,
          prompt=prompt,
          videos={
            name: np.random.default_rng([batch.seed, i]).integers(
              0, 256, (5, side, side, 3), np.uint8
            )
            for name, side in (("base", 16), ("sr1", 32))
          },
          latents={name: np.full((1, 3, 4, 4, 4), i, np.float32) for name in ("base", "sr1")},
          seconds={"base": {"sample": 0.5}},
        )
        for i, prompt in zip(batch.indices, batch.prompts)
      ]


def _run(folder, cascade, *, prompts=("a", "b", "c"), shard=(0, 1), **settings):
  settings = SamplingSettings(
    **({"num_samples": 3, "batch_size": 4, "formats": ("mp4",)} | settings)
  )
  requests = reading.make_requests(prompts)
  identity = {**dataclasses.asdict(settings), "requests": [r.as_dict() for r in requests]}
  identity["gin"] = "a = 1\nb = 2\n"
  run_identity.begin(folder.path, identity)
  prepared = Prepared(requests=requests, settings=settings, size=(32, 32), conditioning_frames=5)
  made = make_samples(cascade, prepared, folder, details={"gin_sha256": "x"}, shard=shard)
  return sum(1 for _ in made)


def _bytes(folder, *suffixes):
  return {
    str(file.relative_to(folder.path)): file.read_bytes()
    for suffix in suffixes
    for file in sorted(folder.path.rglob(f"*{suffix}"))
  }


def test_an_interrupted_run_keeps_finished_samples_and_the_same_command_makes_the_rest(tmp_path):
  complete, broken = SampleFolder(tmp_path / "complete"), SampleFolder(tmp_path / "broken")
  assert _run(complete, _Cascade()) == 9
  with pytest.raises(KeyboardInterrupt):
    _run(broken, _Cascade(stop_after=2))
  assert [s.index for s in broken.samples()] == list(range(8))
  # A kill between two samples of a batch, and a missing file.
  broken.sidecar(6).unlink()
  (broken.path / "00001_sr1.mp4").unlink()
  again = _Cascade()
  assert _run(broken, again) == 3
  assert again.asked == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]
  assert _bytes(complete, ".mp4", ".json") == _bytes(broken, ".mp4", ".json")
  assert len(_bytes(complete, ".mp4")) == 18
  idle = _Cascade()
  assert _run(broken, idle) == 0 and idle.asked == []


def test_shards_make_each_sample_once_and_the_same_as_one_job(tmp_path):
  complete, parts = SampleFolder(tmp_path / "complete"), SampleFolder(tmp_path / "parts")
  _run(complete, _Cascade())
  assert sum(_run(parts, _Cascade(), shard=(i, 2)) for i in (0, 1)) == 9
  assert _bytes(complete, ".mp4", ".json") == _bytes(parts, ".mp4", ".json")
  assert batches_of(9, 4, shard=1, shards=2) == [range(4, 8)]


@pytest.mark.parametrize(
  "change, message",
  [
    ({"num_samples": 2}, "num_samples: was 3, is 2"),
    ({"seed": 5}, "seed: was 0, is 5"),
    ({"extensions": 2}, "extensions: was 0, is 2"),
    ({"decoded_conditioning": True}, "decoded_conditioning: was False, is True"),
    ({"prompts": ("a", "b", "d")}, r"requests\[2\]\.prompt: was 'c', is 'd'"),
    ({"prompts": ("a", "b")}, "requests: were 3, are 2"),
  ],
)
def test_another_command_is_rejected_with_both_values(tmp_path, change, message):
  folder = SampleFolder(tmp_path)
  with pytest.raises(KeyboardInterrupt):
    _run(folder, _Cascade(stop_after=1))
  with pytest.raises(Mismatch, match=message):
    _run(folder, _Cascade(), **change)


def test_of_another_model_only_the_settings_that_differ_are_named(tmp_path):
  def identity(steps, scale):
    model = {"sampler": {"num_steps": steps, "guidance": {"scale": scale}}, "width": 128}
    return {"gin": json.dumps({"base": model, "sr1": model | {"rank": 2}}, sort_keys=True)}

  run_identity.begin(tmp_path, identity(50, 2.5))
  (tmp_path / "00000.json").write_text("{}")
  run_identity.begin(tmp_path, identity(50, 2.5))
  with pytest.raises(Mismatch) as raised:
    run_identity.begin(tmp_path, identity(10, 4.0))
  assert [line.strip() for line in str(raised.value).splitlines()[1:-1]] == [
    f"gin.{stage}.sampler.{change}"
    for stage in ("base", "sr1")
    for change in ("guidance.scale: was 2.5, is 4.0", "num_steps: was 50, is 10")
  ]


def test_a_command_without_a_folder_finds_its_own_again(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  found = [run_identity.begin_free("samples", {"seed": seed}) for seed in (0, 1, 0, 2, 1)]
  assert list(map(str, found)) == ["samples", "samples_2", "samples", "samples_3", "samples_2"]
  # It was killed after its first sample.
  Path("samples/00000.json").write_text("{}")
  assert run_identity.begin_free("samples", {"seed": 0}) == Path("samples")


def test_a_start_without_a_sample_does_not_bind_the_corrected_command(tmp_path, monkeypatch):
  """It failed, or was killed; the folder of a command that runs is not taken."""
  monkeypatch.chdir(tmp_path)
  wrong, right = {"seed": 0}, {"seed": 1}
  with pytest.raises(KeyboardInterrupt):
    with run_identity.begun(run_identity.begin_free("samples", wrong), wrong):
      raise KeyboardInterrupt
  folder = run_identity.begin_free("samples", right)
  assert folder == Path("samples") and storage.read_json(folder / "run.json") == right
  assert run_identity.begin_free("samples", wrong) == Path("samples_2")
  run_identity.begin(folder, wrong)  # A folder that the command names; the other one was killed.
  with run_identity.begun(folder, wrong) as confirm:
    confirm()
    (folder / "run.json").unlink()  # A second job of the same command failed.
    confirm()
    assert storage.read_json(folder / "run.json") == wrong
  with pytest.raises(Mismatch, match=r"another command began samples .* seed: was 1, is 0"):
    with run_identity.begun(folder, wrong) as confirm:
      run_identity.begin(folder, right)
      confirm()
  assert storage.read_json(folder / "run.json") == right
  with pytest.raises(KeyboardInterrupt), run_identity.begun(folder, right):
    (folder / "00000.json").write_text("{}")
    raise KeyboardInterrupt
  with pytest.raises(Mismatch, match="started by another command"):
    run_identity.begin(folder, wrong)


def test_settings_have_the_names_of_the_flags_also_in_a_folder_of_an_earlier_version(tmp_path):
  stages = _stage_infos(tmp_path / "checkpoint_1")
  prepared = prepare([Request(prompt="p")], CONFIG, SamplingSettings(extensions=1))
  now = prepared.identity(stages, "")
  assert {field.name for field in dataclasses.fields(SamplingSettings)} <= now.keys()
  before = {k: v for k, v in now.items() if k not in ("extensions", "decoded_conditioning")}
  run_identity.begin(tmp_path, before | {"rounds": 2, "decoded_given": False})
  (tmp_path / "00000.json").write_text("{}")
  run_identity.begin(tmp_path, now)
  with pytest.raises(Mismatch, match=r"extensions: was 1, is 4\n") as error:
    run_identity.begin(tmp_path, now | {"extensions": 4, "decoded_conditioning": True})
  assert "decoded_conditioning: was False, is True\n" in str(error.value)


def test_changed_lines_of_gin_are_shown_and_unknown_samples_are_rejected(tmp_path):
  run_identity.begin(tmp_path, {"gin": "a = 1\nb = 2\n"})
  (tmp_path / "00000.json").write_text("{}")
  with pytest.raises(Mismatch, match=r"gin: was b = 2\n  gin: is b = 3"):
    run_identity.begin(tmp_path, {"gin": "a = 1\nb = 3\n"})
  other = tmp_path / "other"
  other.mkdir()
  (other / "00000.json").write_text("{}")
  with pytest.raises(Mismatch, match="has samples but no run"):
    run_identity.begin(other, {})


def test_every_format_has_the_frames_and_the_manifest_names_the_files(tmp_path):
  folder, formats = SampleFolder(tmp_path), ("mp4", "webm", "gif", "png", "latents")
  _run(folder, _Cascade(), prompts=("a",), num_samples=1, formats=formats)
  (sample,) = folder.samples()
  (line,) = folder.write_manifest().read_text().splitlines()
  files = json.loads(line)["files"]["sr1"]
  assert set(files) == set(formats)
  expected = np.random.default_rng([0, 0]).integers(0, 256, (5, 32, 32, 3), np.uint8)
  frames = sorted((tmp_path / files["png"]).iterdir())
  np.testing.assert_array_equal([np.asarray(Image.open(f)) for f in frames], expected)
  # Reading uses the best file available: here the lossless one.
  np.testing.assert_allclose(folder.read(sample, "sr1"), expected / 255, atol=1e-6)
  np.testing.assert_array_equal(np.load(tmp_path / files["latents"]), 0)
  assert np.load(tmp_path / files["latents"]).shape == (1, 3, 4, 4, 4)
  for name in ("mp4", "webm", "gif"):
    decoded = read_video(tmp_path / files[name])
    assert len(decoded.frames) == 5 and abs(decoded.fps - 8) < 0.5, name
  sidecar = sample.sidecar
  assert sidecar["samplers"]["base"] == {
    "num_steps": 3,
    "guidance": "ConstantGuidance(scale=2.0)",
    "solver": "Ddim(eta=0.0)",
    "grid": "Trailing()",
  }
  assert sidecar["fingerprints"] == {"vae": "v", "base": "b", "sr1": "s"}
  assert sidecar["batch_seconds"] == {"base": {"sample": 0.5}} and sidecar["gin_sha256"] == "x"


def test_a_sidecar_names_the_cache_of_a_sampler():
  stage = cascades.config(Path("/nowhere"), base=cascades.model()).stages[0]
  assert "cache" not in sampling_run.sampler_of(stage)
  stage.model.sampler = dataclasses.replace(stage.model.sampler, cache=EveryNth(3))
  assert sampling_run.sampler_of(stage)["cache"] == "EveryNth(every=3, low=0.0, high=1.0)"


def _prepare(settings=None, config=CONFIG, **request):
  return prepare([Request(**request)], config, settings or SamplingSettings())


def test_invalid_requests_are_named_before_anything_is_read(tmp_path):
  picture, clip = tmp_path / "a.png", tmp_path / "a.mp4"
  Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(picture)
  writing.write_video(clip, np.zeros((3, 32, 32, 3), np.uint8), fps=8)
  cases = [
    ({"prompt": ""}, "request 0 has no prompt"),
    ({"prompt": "a", "label": 3}, "has a label, but the stages have no classes"),
    ({"prompt": "a", "image": str(tmp_path / "no.png")}, "which does not exist"),
    ({"prompt": "a", "image": str(clip)}, "cannot be read as an image"),
    ({"prompt": "a", "image": str(picture)}, r"is 20x30 \(height x width\), expected 32x32"),
    ({"prompt": "a", "video": str(clip)}, "has 3 frames at 8 fps .* at least 5"),
    ({"prompt": "a", "video": str(picture)}, "cannot be read as a video|has 1 frames"),
  ]
  for request, message in cases:
    with pytest.raises(ValueError, match=message):
      _prepare(**request)
  with pytest.raises(ValueError, match="different kinds of media"):
    prepare(
      [Request(prompt="a"), Request(prompt="b", image=str(picture))], CONFIG, SamplingSettings()
    )
  with pytest.raises(ValueError, match="--formats=avi"):
    _prepare(SamplingSettings(formats=("avi",)), prompt="a")
  alone = cascades.config(tmp_path, stages=("base",), base=cascades.model(frame_prediction=False))
  with pytest.raises(ValueError, match="--extensions=1 gives past frames, but stage 'base'"):
    _prepare(SamplingSettings(extensions=1), alone, prompt="a")


def _stage_infos(folder, *, written=1, vae="v", text="t"):
  """Stages whose checkpoint was written at a given time, on data of given encoders."""
  folder.mkdir(exist_ok=True)
  (folder / "_CHECKPOINT_METADATA").write_text(json.dumps({"commit_timestamp_nsecs": written}))
  provenance = types.SimpleNamespace(vae={"fingerprint": vae}, text_encoder={"fingerprint": text})
  return [
    types.SimpleNamespace(config=stage, checkpoint=str(folder), provenance=provenance)
    for stage in CONFIG.stages
  ]


def test_the_identity_of_a_run_has_everything_that_determines_its_samples(tmp_path):
  for name, level in (("a", 10), ("b", 20)):
    Image.fromarray(np.full((32, 32, 3), level, np.uint8)).save(tmp_path / f"{name}.png")

  def identity(*, prompts=("p", "q"), pictures=("a", "b"), gin="x = 1\n", stage=None, **settings):
    requests = [
      Request(prompt=prompt, image=str(tmp_path / f"{picture}.png"))
      for prompt, picture in zip(prompts, pictures)
    ]
    prepared = prepare(requests, CONFIG, SamplingSettings(**settings))
    return prepared.identity(_stage_infos(tmp_path / "checkpoint_1", **stage or {}), gin)

  first = identity()
  assert identity() == first and json.loads(json.dumps(first)) == first
  for change in (
    {"prompts": ("p", "r")},
    {"pictures": ("b", "a")},
    {"gin": "x = 2\n"},
    {"stage": {"written": 2}},
    {"stage": {"vae": "w"}},
    {"stage": {"text": "u"}},
    {"seed": 1},
    {"num_samples": 2},
    {"extensions": 1},
    {"fps": 9.0},
    {"fit": "crop"},
    {"batch_size": 3},
    {"decoded_conditioning": True},
    {"formats": ("mp4", "gif")},
  ):
    assert identity(**change) != first, change
  # The same file name with another image in it.
  Image.fromarray(np.full((32, 32, 3), 30, np.uint8)).save(tmp_path / "a.png")
  prepared_requests._read_image.cache_clear()
  assert identity() != first


def test_empty_or_invalid_prompt_files_and_requests_are_rejected(tmp_path):
  file = tmp_path / "prompts.txt"
  file.write_text("\n  \n")
  with pytest.raises(ValueError, match="has no prompt"):
    reading.read_prompts([], str(file))
  with pytest.raises(ValueError, match="--prompts_file=/no/file cannot be read: No such file"):
    reading.read_prompts([], "/no/file")
  with pytest.raises(OSError, match=r"--output=.*prompts.txt cannot be written: File exists"):
    run_identity.begin(file, {})
  with pytest.raises(ValueError, match="prompt 2 of 2 is empty"):
    reading.read_prompts(["a", " "], None)
  file.write_text('{"prompt": "a", "video": "v.mp4"}\n{"promt": "a"}\n')
  with pytest.raises(ValueError, match=r":2 has the fields \['promt'\]"):
    reading.read_requests(str(file))
  for line, message in (
    ("[1]", r":1 is \[1\], expected a JSON object"),
    ("{", ":1 is not a JSON object"),
    ('{"prompt": 3}', ":1 has prompt 3, expected a string"),
    ('{"label": "cat"}', ":1 has label 'cat', expected a complete number"),
    ('{"label": true}', ":1 has label True, expected a complete number"),
  ):
    file.write_text(line)
    with pytest.raises(ValueError, match=message):
      reading.read_requests(str(file))
  file.write_text('{"prompt": "a", "video": "v.mp4", "label": null}\n')
  assert reading.read_requests(str(file))[0].video == str(tmp_path / "v.mp4")
  with pytest.raises(ValueError, match="expected NUMBER/COUNT"):
    generate.read_shard("8/8")
  assert generate.read_shard("3/8") == (3, 8)
