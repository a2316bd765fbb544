"""What programs answer to a missing configuration or cache: a message that says what to set, and no traceback."""

import re

import pytest

import gin
from tests import programs
from walt_t5x.config import gin_config, gin_text

CASCADE = "gin/tiny/generate.gin"


@pytest.mark.parametrize(
  ("program", "arguments", "expected"),
  [
    (
      "walt_t5x.train",
      ["--gin_file=gin/vae_ucf101.gin"],
      [
        "require MODEL_DIR and PERCEPTUAL_WEIGHTS",
        r"--gin.PERCEPTUAL_WEIGHTS=\"PATH\"",
        "None trains",
      ],
    ),
    (
      "walt_t5x.generate",
      [f"--gin_file={CASCADE}", "--prompt=a"],
      [r"--gin.BASE_CHECKPOINT=\"PATH\""],
    ),
    (
      "walt_t5x.plan_sampling",
      ["--gin_file=gin/walt_3b.gin"],
      ["gin/walt_3b.gin: a configuration for another", "`python -m walt_t5x.plan`"],
    ),
    ("walt_t5x.plan", [f"--gin_file={CASCADE}"], [CASCADE, "`python -m walt_t5x.plan_sampling`"]),
    (
      "walt_t5x.train",
      ["--gin_file=gin/tiny/vae.gin", "--seqio_additional_cache_dirs=nowhere"],
      ["train: no cache of task 'shapes_pixels_videos' in ['nowhere']: run `beam_jobs.preprocess`"],
    ),
  ],
)
def test_the_message_says_what_to_set(program, arguments, expected, tmp_path):
  code = 1 if "nowhere" in arguments[-1] else 2
  if "nowhere" in arguments[-1]:
    arguments = [*arguments, f'--gin.MODEL_DIR="{tmp_path / "run"}"', "--gin.BATCH_SIZE=8"]
  if program == "walt_t5x.generate":
    arguments = [*arguments, f"--output={tmp_path / 'samples'}"]
  done = programs.run(program, *arguments)
  assert done.returncode == code
  for part in expected:
    assert part in done.stderr
  assert "Traceback" not in done.stderr


@pytest.mark.parametrize("finalize", [False, True])
def test_a_required_macro_is_an_error_or_none(finalize, tmp_path):
  file = tmp_path / "needs.gin"
  file.write_text("WIDTH = %gin.REQUIRED\nDEPTH = 3\nSIZE = %WIDTH\n")
  gin.clear_config()
  try:
    if finalize:
      with pytest.raises(
        gin_config.GinError, match=r"require WIDTH, and .*: add --gin\.WIDTH=VALUE\.$"
      ):
        gin_config.parse([str(file)], [], [])
    else:
      gin_config.parse([str(file)], [], [], finalize=False)
      assert gin_config.macro_value("WIDTH", 1) is None and gin_config.macro_value("DEPTH") == 3
    gin.clear_config()
    gin_config.parse([str(file)], ["WIDTH = 2"], [], finalize=False)
    assert gin_config.macro_value("WIDTH") == 2
  finally:
    gin.clear_config()


def test_everything_that_is_missing_is_listed_at_once(tmp_path):
  (tmp_path / "part.gin").write_text("WIDTH = %gin.REQUIRED\nDEPTH = %gin.REQUIRED\n")
  file = tmp_path / "needs.gin"
  file.write_text(
    "include 'part.gin'\nDEPTH = 2\nlayer.size = %SIZE\na/layer.rate = %gin.REQUIRED\n"
  )
  text = gin_text.Text()
  text.read_file(str(file), [str(tmp_path)])
  assert text.required() == ["WIDTH", "a/layer.rate", "SIZE"]
  with pytest.raises(gin_config.GinError) as error:
    gin_text.check([str(file)], ["SIZE = 3"], [str(tmp_path)], complete=True)
  flags = re.findall(r"--gin\.(\S+)=VALUE", str(error.value))
  assert flags == ["WIDTH", "a/layer.rate"]
  bindings = ["SIZE = 3", *(f"{name} = 1" for name in flags)]
  gin_text.check([str(file)], bindings, [str(tmp_path)], complete=True)


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ("A = 1\nB = [1,\n", "bad.gin, line "),
    ("A = 1\nB = /path\n", "bad.gin, line 2: Unable to parse value. B = /path"),
    ("include 'gin/tiny/bse.gin'\n", "did you mean gin/tiny/base.gin?"),
  ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_line(tmp_path, text, expected):
  (tmp_path / "bad.gin").write_text(text)
  with pytest.raises(gin_config.GinError, match=re.escape(expected)):
    gin_text.check([str(tmp_path / "bad.gin")], [], [gin_text.FOLDER], complete=False)
