"""Writes a trained cascade as a preset: a folder with weights in bfloat16, for `walt_t5x.generate --preset=FOLDER`.

  python -m walt_t5x.export_preset --gin_file=gin/tiny/generate.gin --gin.BASE_CHECKPOINT=\\"runs/base\\" ... \\
    --output=shapes --license=CC0-1.0 --trained_by="bash scripts/quickstart.sh"

The gin files are those of `walt_t5x.generate`. The same cascade gives the same bytes. See docs/generation.md.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging

from walt_t5x.config import gin_flags, programs

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the flags of the program."""
  gin_flags.define()
  flags.DEFINE_string("output", None, "Folder to write; it must be new or empty.")
  flags.DEFINE_string("name", None, "Name of the preset; by default that of the folder.")
  flags.DEFINE_string("description", "", "One sentence about what it generates.")
  flags.DEFINE_string("license", None, "License of the weights, such as CC0-1.0.")
  flags.DEFINE_string("trained_by", None, "The command that trained the cascade.")


def main(argv: Sequence[str]) -> None:
  """Reads flags and gin, and writes the folder."""
  gin_flags.check(
    argv,
    "gin_file=gin/tiny/generate.gin",
    "output=preset",
    "license=CC0-1.0",
    "trained_by='bash scripts/quickstart.sh'",
    scripts=("train", "generate"),
  )
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  if not FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)
  import gin
  from walt_t5x.generation.cascade_flags import of_gin
  from walt_t5x.generation.preset_export import export

  with programs.user_errors("export_preset"):
    output = Path(FLAGS.output)
    config = of_gin().config
    preset = export(
      config,
      # gin breaks longer lines, and a path must be on one.
      gin_config=gin.config_str(max_line_length=2000),
      output=output,
      name=FLAGS.name or output.absolute().name,
      description=FLAGS.description,
      license_name=FLAGS.license,
      trained_by=FLAGS.trained_by,
    )
  print(json.dumps({"preset": str(output), **preset.identity, "bytes": preset.record["bytes"]}))


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=gin_flags.parse_args)
