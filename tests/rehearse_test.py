"""The dress rehearsal: the page's commands on look-alikes, narrow networks, a complete run, and its resumption."""

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

import gin
from beam_jobs import curate, preprocess
from data.lookalikes import corpora
from scripts import rehearsal_inputs, rehearse
from scripts.rehearsal_steps import (
  IMAGES,
  RUNS,
  SAMPLES,
  Step,
  gin_files,
  page_steps,
  steps_of,
  weights,
)
from tests import programs
from tests.docs_test import commands
from walt_t5x import engine, evaluate
from walt_t5x.config import gin_config
from walt_t5x.evaluation import benchmark_requests
from walt_t5x.metrics.networks import FeatureNetwork

ROOT = Path(__file__).resolve().parents[1]
# Rows for training and for the rest, so that the tests take seconds.
FEW = {"ROWS": 6, "VALIDATION_ROWS": 2}


def _arguments(step):
  return shlex.split(step.line)[3:]


@pytest.fixture(scope="module")
def laid(tmp_path_factory):
  """A function that returns the work folder of a corpus, laid out once, without its weights."""
  folders = {}

  def lay(corpus):
    if corpus not in folders:
      work = folders[corpus] = tmp_path_factory.mktemp(corpus)
      corpora.write_corpus(corpus, work / "corpus", seconds=3)
      if corpus != "imagenet":
        corpora.write_corpus("imagenet", work / "corpus" / IMAGES)
      with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        patch.setattr(rehearsal_inputs, "lay_weights", lambda names, work: None)
        for name, value in FEW.items():
          patch.setattr(rehearsal_inputs, name, value)
        assert rehearsal_inputs.main([corpus, "corpus"]) == 0
    return folders[corpus]

  return lay


@pytest.mark.parametrize("corpus", RUNS)
def test_the_commands_are_those_of_the_page(corpus):
  page = {*commands((ROOT / "docs/reproduce.md").read_text(encoding="utf-8"))}
  steps = page_steps(corpus)
  unquoted = {re.sub(r"\s+", " ", command) for command in page}
  assert [step.command for step in steps if step.command not in unquoted] == []
  # What a run needs, in order, and counts for programs that would need days.
  kinds = [step.program.rpartition(".")[2] for step in steps]
  images = [] if corpus == "imagenet" else ["preprocess", "train"]
  text = ["import_encoder", "curate"] if corpus == "t2v" else []
  order = ["preprocess", "train", "preprocess", "benchmark_requests", "train", "generate"]
  assert kinds == [*images, *text, *order, "evaluate"]
  added = {kind for kind, step in zip(kinds, steps) if step.added}
  assert added == {"evaluate", *(["benchmark_requests"] if corpus == "k600" else [])}
  assert all(re.fullmatch(r"(--(\w+_)?count=\d+ ?|--folds=1 ?)*", s.added) for s in steps)
  made = {name.partition(".")[0] for name in weights(steps)}
  assert (
    made
    == {
      "ucf101": {"i3d", "c3d", "resnet50"},
      "k600": {"i3d", "resnet50"},
      "imagenet": {"inception", "VIRTUAL_imagenet256_labeled", "resnet50"},
      "t2v": {"i3d", "c3d", "t5-v1_1-xl", "resnet50"},
    }[corpus]
  )


@pytest.mark.parametrize("corpus", RUNS)
def test_pixels_and_requests_come_from_the_laid_corpus(corpus, laid, monkeypatch):
  work = laid(corpus)
  monkeypatch.chdir(work)
  steps = {step.program: step for step in page_steps(corpus)}
  clips = 0
  if curation := steps.get("beam_jobs.curate"):
    curated = curate.run([*_arguments(curation), "--decode_isolation=thread"])
    clips, starts = curated["clips"], {}
    for name in ("clips", "rejected"):
      for line in (work / curation.flag("--output") / f"{name}.jsonl").read_text().splitlines():
        row = json.loads(line)
        starts.setdefault(row["uri"], set()).add(row["start_seconds"])
    # Three scenes of three seconds, and one of one second, which is too short.
    assert set(map(frozenset, starts.values())) == {frozenset({0, 3, 6, 9})}
    assert clips > 0 and curated["seconds_rejected"]["seconds>=2.2"] == len(starts)
  pixels = [step for step in page_steps(corpus) if "--content=pixels" in step.command]
  result = preprocess.run([*_arguments(pixels[-1]), "--output=pixels"])
  counts = {"k600": (1, 0), "t2v": (2, 1)}.get(corpus, (1, 1))
  rows = counts[0] * FEW["ROWS"] + counts[1] * FEW["VALIDATION_ROWS"] + clips
  assert (result["rows"], result["written"]) == (rows, rows)
  requests = steps["walt_t5x.evaluation.benchmark_requests"]
  benchmark_requests.main(_arguments(requests))
  folder = work / requests.flag("--output")
  kept = rehearse.keep_first_requests(folder)
  assert kept.startswith(f"{SAMPLES} of ")
  assert len((folder / "requests.jsonl").read_text().splitlines()) == SAMPLES
  if corpus != "imagenet":
    lines = (folder / "reference.jsonl").read_text().splitlines()
    found = [Path(json.loads(line)["uri"]) for line in lines]
    # Of the corpus itself: the work folder has links.
    assert found and all(file.is_relative_to(work / "corpus") for file in found)


@pytest.mark.parametrize("corpus", RUNS)
def test_each_run_is_the_published_one_with_a_narrow_network(corpus, laid, monkeypatch):
  from walt_t5x.planning.run_plan import plan_gin

  monkeypatch.chdir(laid(corpus))
  monkeypatch.setattr(sys.modules["__main__"], "train", engine.train, raising=False)
  for step in page_steps(corpus):
    if step.program != "walt_t5x.train":
      continue
    fields = {}
    for name in (step.flag("--gin_file"), str(ROOT / step.flag("--gin_file"))):
      gin.clear_config()
      given = ["PERCEPTUAL_WEIGHTS = None"] if "vae_" in name else []
      gin_config.parse([name], ["MODEL_DIR = 'run'", *given], [".", str(ROOT)])
      names = ("LATENTS", "TASK", "TRAIN_STEPS", "BATCH_SIZE")
      fields[name] = {
        **{macro: gin_config.macro_value(macro) for macro in names},
        "pixels": gin_config.binding("pixel_task.pixels"),
      }
      if not name.startswith("/"):
        # The published tokenizers are traced by tests/gin_test.py, and a narrow one runs below.
        plan = plan_gin() if "vae_" not in step.command else None
    gin.clear_config()
    small, real = fields.values()
    assert (small.pop("TRAIN_STEPS"), small.pop("BATCH_SIZE")) == (2, 1)
    assert real.pop("TRAIN_STEPS") > 10_000 and real.pop("BATCH_SIZE") >= 256
    assert small == real
    assert plan is None or plan.parameters < 3e6


def test_a_gin_file_of_each_command_is_laid(laid):
  for corpus in RUNS:
    files = gin_files(page_steps(corpus))
    assert f"gin/{RUNS[corpus]}.gin" in files and len(files) == (3 if corpus == "imagenet" else 5)
    assert all((laid(corpus) / file).is_file() for file in files)


class _Stub:
  """A scoring network without weights: pixel means."""

  name, fingerprint, is_public, description = "stub", "0" * 64, False, "a stub"

  def __call__(self, videos, *, batch_size=None):
    means = videos.reshape(len(videos), -1, 3)[:, :64].reshape(len(videos), -1) / 255.0
    return dict.fromkeys(("pool_3", "logits_unbiased", "logits"), means.astype(np.float32))


def _append(gin_file, *lines):
  with open(gin_file, "a", encoding="utf-8") as file:
    file.writelines(f"{line}\n" for line in ("from __gin__ import dynamic_registration", *lines))


@pytest.mark.timeout(300)
def test_every_command_of_a_corpus_runs(laid, monkeypatch, capsys):
  work = laid("imagenet")
  monkeypatch.chdir(work)
  monkeypatch.setattr(FeatureNetwork, "load", lambda name, file: _Stub())
  mean = np.zeros(192)
  np.savez("VIRTUAL_imagenet256_labeled.npz", mu=mean, sigma=np.eye(mean.size))
  # Its first checkpoint is enough: compiling its training step takes longer than everything else.
  rehearsal_inputs.random_perceptual_network(work / "resnet50.safetensors")
  _append(
    "gin/vae_imagenet.gin",
    "from walt_t5x.engine import schedules",
    "from walt_t5x.vae import discriminator",
    "TRAIN_STEPS = 0",
    "schedules.warmup_cosine.total_steps = 2",
    "discriminator.Discriminator.channel_multipliers = (2,)",
  )
  # Their programs compile faster.
  _append(
    "gin/models/vae_image.gin",
    "from walt_t5x.vae import autoencoder",
    "autoencoder.CausalVae.num_res_blocks = 0",
  )
  _append(
    "gin/walt_l_imagenet.gin",
    "from walt_t5x.denoiser import transformer",
    "from walt_t5x.models import denoiser_model",
    "denoiser_model.DenoiserModel.self_conditioning_probability = 0.0",
    "transformer.WaltDenoiser.scan_layers = False",
    "transformer.WaltDenoiser.width = 16",
  )
  found = {}
  for step in page_steps("imagenet"):
    if step.program == "walt_t5x.evaluate":
      printed = evaluate.run(_arguments(step))
    else:
      one = rehearse.environment(step) | programs.ONE_DEVICE
      done = programs.run(step.program, *_arguments(step), environment=one, work=work)
      assert done.returncode == 0, f"{step.line}\n{done.stderr[-4000:]}"
      lines = [line for line in done.stdout.splitlines() if line.startswith('{"')]
      printed = json.loads(lines[-1]) if lines else {}
    if step.name != "the tokenizer":
      found[step.name] = rehearse.result_of(step, printed, work)
  assert found["latents"] == "8 of 8 rows written, 0 rejected, 0 dead"
  assert found["training"].startswith("step 2, loss ")
  assert found["labels to sample"] == f"{SAMPLES} of 50,000 requests kept"
  assert found["sampling"] == f"{SAMPLES} samples"
  assert re.match(r"fid [\d.]+, is [\d.]+: of random networks", found["scoring"])


def test_a_random_network_has_the_shapes_of_the_real_one(tmp_path):
  rehearsal_inputs.random_network(tmp_path / "shapes.safetensors")
  network = FeatureNetwork.load("shapes", tmp_path / "shapes.safetensors")
  clips = np.random.default_rng(0).integers(0, 255, (2, 9, 64, 64, 3), np.uint8)
  features = network(clips)["features"]
  assert np.isfinite(features).all() and np.abs(features[0] - features[1]).max() > 1e-3


def test_a_failure_names_its_command_and_the_next_call_resumes_with_it(tmp_path, capsys):
  steps = [
    Step("first", "echo begun >> first.txt && echo python -m"),
    Step("second", "echo one; echo reason; test -e repaired && echo python -m"),
    Step("third", "echo third >> third.txt && echo python -m", added="&& true"),
  ]
  with pytest.raises(SystemExit) as error:
    rehearse.rehearse("ucf101", steps, tmp_path)
  for part in (
    "second failed (exit code 1)",
    "  one\n  reason\n",
    steps[1].line,
    "resumes with this",
  ):
    assert part in str(error.value)
  assert not (tmp_path / "third.txt").exists()
  (tmp_path / "repaired").touch()
  done = rehearse.rehearse("ucf101", steps, tmp_path)
  assert [d.name for d in done] == ["first", "second", "third"]
  assert (tmp_path / "first.txt").read_text() == "begun\n"
  written = json.loads((tmp_path / rehearse.REPORT).read_text())
  assert written["corpus"] == "ucf101" and len(written["steps"]) == 3
  assert all(
    {"seconds", "peak_mib", "result", "command"} <= step.keys() for step in written["steps"]
  )
  assert "finished before" in capsys.readouterr().out
  with pytest.raises(SystemExit, match="another corpus"):
    rehearse.rehearse("ucf101", [Step("other", "echo python -m")], tmp_path)


def test_a_corpus_without_a_file_is_named(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "UCF-101").mkdir()
  with pytest.raises(SystemExit, match=r"--corpus: .* has no ucfTrainTestlist; expected .*UCF-101"):
    rehearsal_inputs.main(["ucf101", str(tmp_path)])
  # A corpus that is given is not made.
  names = [step.name for step in steps_of("ucf101", tmp_path)]
  assert names[0] == "inputs" and "look-alike corpus" not in names and names[-1] == "report"
