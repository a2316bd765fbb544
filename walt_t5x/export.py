"""Writes a trained cascade as a preset: a folder of safetensors and JSON, for `walt_t5x.generate --preset=FOLDER`.

  python -m walt_t5x.export --run=runs/base --run=runs/sr1 --output=shapes --license=CC0-1.0 \\
    --trained_by="bash scripts/quickstart.sh"

The folder has the denoisers, the tokenizer, the text encoder and a model card for the Hugging Face hub. The cascade is
chosen as for `walt_t5x.generate`; low-rank adapters are merged into the weights. The same cascade gives the same bytes.
See docs/generation.md.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from absl import app, flags, logging

from walt_t5x.config import gin_flags, programs
from walt_t5x.files import storage
from walt_t5x.generation import cascade_flags

FLAGS = flags.FLAGS


def define_flags() -> None:
  """Defines the flags of the program."""
  cascade_flags.define_flags()
  flags.DEFINE_string("output", None, "Folder to write; it must be new or empty.")
  flags.DEFINE_string("name", None, "Name of the preset; by default that of the folder.")
  flags.DEFINE_string("description", "", "One sentence about what it generates.")
  flags.DEFINE_string("license", None, "License of the weights, such as CC0-1.0.")
  flags.DEFINE_string("trained_by", None, "The command that trained the cascade.")
  flags.DEFINE_enum(
    "dtype",
    "bfloat16",
    ["bfloat16", "float32"],
    "Of the weights in the files: bfloat16 rounds them, float32 keeps them as they were trained.",
  )


def main(argv: Sequence[str]) -> None:
  """Reads flags and gin, and writes the folder."""
  cascade_flags.check(
    argv, "output=preset", "license=CC0-1.0", "trained_by='bash scripts/quickstart.sh'"
  )
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  if not FLAGS["verbosity"].present:
    logging.set_verbosity(logging.WARNING)
  from walt_t5x.generation.preset_export import export

  with programs.user_errors("export"):
    if not storage.is_local(FLAGS.output):
      raise ValueError(f"--output: got {FLAGS.output}, expected a local folder")
    output = Path(FLAGS.output)
    preset = export(
      cascade_flags.read().config,
      output=output,
      name=FLAGS.name or output.absolute().name,
      description=FLAGS.description,
      license_name=FLAGS.license,
      trained_by=FLAGS.trained_by,
      dtype=FLAGS.dtype,
    )
  print(json.dumps({"preset": str(output), **preset.identity, "bytes": preset.record["bytes"]}))


if __name__ == "__main__":
  define_flags()
  app.run(main, flags_parser=gin_flags.parse_args)
