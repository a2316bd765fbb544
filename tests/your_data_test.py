"""docs/your-data.md, as printed: from data to clips and a page about them, with what the page says that is printed.

Shortened here; complete in `benchmarks/docs_commands.py`.
"""

import re
import shlex

import pytest

from benchmarks import docs_commands, docs_sources
from data.samples.sample_corpus import write_corpus
from tests import programs
from walt_t5x.generation import presets

PAGE = programs.ROOT / "docs/your-data.md"
# Of the sections after the first, the first checkpoint is enough: the training step takes longest to compile.
TRAINED = "Videos and a table"
UNTRAINED = ["--gin.TRAIN_STEPS=0", "--gin.schedules.warmup_cosine.total_steps=2"]
# Added to shorten the run.
FLAGS = {
  "walt_t5x.init": ["--train_steps=2"],
  "walt_t5x.train": [
    "--gin.denoiser_model.DenoiserModel.self_conditioning_probability=0.0",
    "--gin.EVAL_PERIOD=0",
    "--gin.SAVE_PERIOD=2",
  ],
  "walt_t5x.generate": ["--num_steps=2"],
}
ENVIRONMENT = programs.ONE_DEVICE | {"JAX_PLATFORMS": "cpu"}


def _sections():
  """Title -> text of the sections that fine-tune the preset."""
  parts = re.split(r"^## (.*)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
  return {title: text for title, text in zip(parts[1::2], parts[2::2]) if "--from=shapes" in text}


def _masked(text):
  """Without what differs from run to run: numbers and folders."""
  return re.sub(r"\d[\d.,]*|(?<![\w])/\S*/", "#", text)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp("your_data")
  settings = {"num_clips": 24, "num_stills": 16, "num_frames": 12, "size": 96}
  write_corpus(folder / "corpus", **settings, real=False)
  docs_sources.make_own(folder / "corpus", folder)
  return folder


def _commands(text):
  return [command.text for command in docs_commands.commands("", text)]


def test_each_kind_of_data_takes_five_commands_and_twelve_flags():
  assert list(_sections()) == ["Videos and a table", "Images in a webdataset", "Class folders"]
  for text in _sections().values():
    commands = _commands(text)
    assert len(commands) <= 5 and sum(command.count(" --") for command in commands) <= 12


@pytest.mark.skipif("shapes" not in presets.shipped(), reason="the package has no preset")
@pytest.mark.parametrize("section", _sections())
def test_the_commands_lead_from_data_to_clips_and_a_page(data, section):
  text = _sections()[section]
  commands = _commands(text)
  printed = []
  for command in commands:
    module, *arguments = shlex.split(command)[2:]
    arguments += FLAGS.get(module, [])
    if module == "walt_t5x.train" and section != TRAINED:
      arguments += UNTRAINED
    done = programs.run(module, *arguments, environment=ENVIRONMENT, work=data)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
    printed += [line.strip() for line in done.stdout.splitlines()]
  output = re.search(r"--output=(\S+)", commands[0])
  assert output is not None
  project = data / output[1]
  assert (project / "report.html").stat().st_size > 10_000
  assert list(project.glob("samples/*.mp4")) and (project / "samples/gallery.html").exists()
  fences = re.findall(r"^```\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
  shown = [line.strip() for fence in fences for line in fence.splitlines() if line.strip()]
  said = {_masked(line) for line in printed}
  assert [line for line in shown if _masked(line) not in said] == []
