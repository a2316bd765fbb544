"""An old name in a gin file, or on the command line, is answered with the new one."""

import sys

import pytest

import gin
from walt_t5x.config import gin_config, gin_flags, gin_text


@pytest.fixture(autouse=True)
def empty():
  gin.clear_config()
  yield
  gin.clear_config()


@pytest.mark.parametrize(
  ("text", "answer"),
  [
    ("DATASET = 'a'", "DATASET is now MIXTURE_OR_TASK_NAME"),
    ("HARDWARE_RNG = True", "HARDWARE_RNG is now USE_HARDWARE_RNG"),
    (
      "from __gin__ import dynamic_registration\nfrom data import tasks\n"
      "tasks.RowFormat.normalise_latents = False",
      "normalise_latents is now normalize_latents",
    ),
    (
      "from __gin__ import dynamic_registration\nfrom walt_t5x import partitioning\n"
      "partitioning.rules.fully_sharded = True",
      "write `from walt_t5x.sharding import partitioning`",
    ),
  ],
)
def test_a_file_with_an_old_name_is_told_the_new_one(tmp_path, text, answer):
  (tmp_path / "old.gin").write_text(text + "\n")
  with pytest.raises(gin_config.GinError, match=answer):
    gin_config.parse([str(tmp_path / "old.gin")], [], [])


@pytest.mark.parametrize("name", gin_text.OLD_MACROS)
def test_an_old_macro_on_the_command_line_is_told_the_new_one(tmp_path, name):
  (tmp_path / "new.gin").write_text("A = 1\n")
  with pytest.raises(gin_config.GinError) as error:
    gin_config.parse([str(tmp_path / "new.gin")], [f"{name} = 1"], [])
  assert str(error.value).count(gin_text.macro_hint(name)) == 1


def test_a_file_that_sets_what_is_no_longer_needed_is_read(tmp_path):
  (tmp_path / "old.gin").write_text("FEATURE_LENGTHS = {'video': 9}\n")
  gin_config.parse([str(tmp_path / "old.gin")], [], [])


@pytest.mark.parametrize(
  ("old", "answer"),
  [
    ("--rounds=2", "--rounds is now --extensions, which counts one less"),
    ("--decoded_given", "--decoded_given is now --decoded_conditioning"),
    ("-nodecoded_given", "--nodecoded_given is now --decoded_conditioning"),
  ],
)
def test_an_old_flag_is_told_the_new_one(old, answer, capsys, monkeypatch):
  monkeypatch.setattr(sys, "excepthook", sys.excepthook)
  with pytest.raises(SystemExit, match="2"):
    gin_flags.parse_args(["program", "--gin_file=a.gin", old])
  assert answer in capsys.readouterr().err


def test_what_looks_like_an_old_flag_is_left_alone():
  for argument in ("rounds=2", "--extensions=2", "--prompt=--rounds=2"):
    assert gin_flags.flag_hint(argument) is None
