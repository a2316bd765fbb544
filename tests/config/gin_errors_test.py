"""What programs answer to a missing configuration or cache: a message that says what to set, and no traceback."""

import pytest

import gin
from tests import programs
from walt_t5x.config import gin_config

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
