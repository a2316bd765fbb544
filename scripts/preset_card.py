"""Writes model card and preset.json of presets again, after the code that writes cards has changed.

  python -m scripts.preset_card walt_t5x/presets/shapes

Weights and all other files stay as they are; every file is checked against its hash before.
"""

import argparse
from pathlib import Path

from walt_t5x.generation import presets
from walt_t5x.generation.preset_export import finish


def main() -> None:
  """Checks and rewrites the folders."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER")
  for folder in parser.parse_args().folders:
    record = presets.read(folder).record
    # Exports of earlier versions were all in bfloat16.
    finish(folder, {"dtype": "bfloat16", **record})
    print(folder, presets.read(folder).sha256)


if __name__ == "__main__":
  main()
