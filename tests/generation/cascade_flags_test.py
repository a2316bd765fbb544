"""The flags of a cascade's samplers, for all stages or for each; what does not fit is named."""

import types

import pytest

from tests.generation import cascades
from tests.generation.trained_runs_test import write_records
from walt_t5x.diffusion.guidance import ConstantGuidance
from walt_t5x.diffusion.samplers.solvers import Ddim, UniPC
from walt_t5x.generation import cascade_flags


class _Flags(dict):
  """Values by name, read as absl's are."""

  def __getitem__(self, name):
    return types.SimpleNamespace(value=self.get(name))

  def __getattr__(self, name):
    return self.get(name)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  made = cascades.written(tmp_path_factory.mktemp("runs"))
  write_records(made)
  return [stage.checkpoint for stage in made.stages]


@pytest.fixture
def read(monkeypatch, runs):
  """Reads the cascade of the runs and of other flags."""

  def read(*stages, **given):
    monkeypatch.setattr(cascade_flags, "FLAGS", _Flags(run=runs, **given))
    return cascade_flags.read(stages)

  return read


def _samplers(cascade):
  return [(s.model.sampler.num_steps, s.model.sampler.guidance) for s in cascade.config.stages]


def test_samplers_are_those_of_the_runs_unless_flags_change_them(read):
  trained = read()
  assert _samplers(trained) == [(3, ConstantGuidance(2.0)), (3, None)]
  assert _samplers(read(num_steps=["5"])) == [(5, ConstantGuidance(2.0)), (5, None)]
  both = read(num_steps=["5", "4"], guidance=["1", "6.5"])
  assert _samplers(both) == [(5, None), (4, ConstantGuidance(6.5))]
  assert _samplers(read("base", guidance=["3"])) == [(3, ConstantGuidance(3.0))]
  solved = read(solver=["unipc", "ddim"]).config.stages
  assert [stage.model.sampler.solver for stage in solved] == [UniPC(), Ddim()]
  # They are part of what tells these samples from others.
  assert both.described != trained.described and both.described.startswith(trained.described)
  assert _samplers(read()) == _samplers(trained)
  # Where the weights are determines no sample.
  split = read(stage_weights="sharded")
  assert (trained.config.stage_weights, split.config.stage_weights) == ("auto", "sharded")
  assert split.described == trained.described


@pytest.mark.parametrize(
  ("flag", "named"),
  [
    ("--num_steps=5,4,3", "one for each of the stages base, sr1"),
    ("--num_steps=0", "one number from 1 on"),
    ("--num_steps=2.5", "--num_steps=2.5: expected one number"),
    ("--guidance=strong", "--guidance=strong: expected one number from 0 on"),
    ("--guidance=-1", "one number from 0 on"),
    ("--solver=euler", r"--solver=euler: expected one solver \(ddim or dpmpp_2m or"),
  ],
)
def test_values_that_do_not_fit_the_stages_are_named(read, flag, named):
  with pytest.raises(ValueError, match=named):
    name, _, value = flag.removeprefix("--").partition("=")
    read(**{name: value.split(",")})
