"""Findings in miniature: files of every variant configure a training and a sampler, verdicts follow the spread."""

import sys

import pytest

import gin
from benchmarks import findings
from walt_t5x import engine
from walt_t5x.config import gin_config, gin_text
from walt_t5x.engine import flops
from walt_t5x.generation.loading import CascadeConfig
from walt_t5x.planning.run_plan import plan_gin


@pytest.fixture
def parsed(monkeypatch):
  main = sys.modules["__main__"]
  monkeypatch.setattr(main, "train", engine.train, raising=False)
  monkeypatch.setattr(main, "generate", CascadeConfig, raising=False)
  # Their count takes longer than the sizes of a plan.
  monkeypatch.setattr(flops, "count_flops_of", lambda *_: 0)

  def parse(stage):
    files = [a.partition("=")[2] for a in stage.command if a.startswith("--gin_file=")]
    bindings = [a.removeprefix("--gin.") for a in stage.command if a.startswith("--gin.")]
    gin.clear_config()
    gin_config.parse(files, bindings, [gin_text.FOLDER])

  yield parse
  gin.clear_config()


@pytest.mark.parametrize("name", findings.FINDINGS)
def test_every_variant_trains_and_samples_another_model_or_other_data(name, parsed, tmp_path):
  finding, configurations, sizes = findings.FINDINGS[name], set(), []
  bases, vaes = [], []
  for variant in finding.variants:
    stages = findings.stages_of(name, variant, 1, folder=tmp_path, quickstart=tmp_path / "quick")
    assert [stage.name.rpartition(": ")[2] for stage in stages] == [
      "train", "generate", "accuracy", "distance",
    ]  # fmt: skip
    parsed(stages[0])
    model = gin_config.macro_value("MODEL")
    configurations.add(gin.config_str())
    if name in ("adaln", "size"):
      sizes.append(plan_gin().parameters)
    parsed(stages[1])
    (base, _) = gin_config.macro_value("STAGES")
    assert base.model.module == model.module
    bases.append(base)
    vaes.append(gin_config.macro_value("VAE"))
  assert len(configurations) == len(finding.variants)
  if name == "adaln":
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)
  if finding.channels:
    assert sorted(base.model.module.latent_channels for base in bases) == [4, 8, 16]
    assert all(
      base.model.module.latent_channels == vae.latent_channels for base, vae in zip(bases, vaes)
    )
  if name == "size":
    assert sizes[0] > 2 * sizes[1]


def test_a_verdict_compares_the_difference_with_the_spread():
  close, apart, noisy = (0.9, 0.91, 0.92), (0.7, 0.71, 0.72), (0.5, 0.8, 1.1)
  assert findings.verdict(close, apart, more_is_better=True) == "seen"
  assert findings.verdict(close, apart, more_is_better=False) == "not seen"
  assert findings.verdict(apart, close, more_is_better=False) == "seen"
  assert findings.verdict(close, noisy, more_is_better=True) == "inside the spread"


def test_the_page_has_every_finding():
  values = {measure: [0.1, 0.2, 0.3] for measure in findings.MEASURES}
  page = findings.page({"zero_snr": {"with": values, "without": values}})
  assert page.count("## ") == len(findings.FINDINGS)
  assert page.count("Not run:") == len(findings.FINDINGS) - 1
  # The losses of two noise schedules are different measures.
  assert "| first against last | - | inside the spread |" in page and "0.2 ± 0.1" in page
