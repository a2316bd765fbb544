"""Writes an animated WebP of the first clips of a sample folder, with their prompts: the picture of README.md.

.venv/bin/python -m scripts.samples_picture runs/quickstart/samples docs/samples.webp
"""

import argparse
import itertools
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from walt_t5x.generation.sample_folder import SampleFolder, StoredSample
from walt_t5x.media.pixels import to_uint8

GAP, LINE = 6, 12
# Width of a letter of Pillow's own font, in pixels; it is a little wider than most.
LETTER = 6


def cell(
  folder: SampleFolder, sample: StoredSample, stage: str, *, side: int, lines: int
) -> list[Image.Image]:
  """The frames of one clip, each above its prompt, which takes at most `lines` lines."""
  frames = []
  caption = "\n".join(textwrap.wrap(sample.prompt, side // LETTER))
  for frame in to_uint8(folder.read(sample, stage)):
    image = Image.new("RGB", (side + GAP, side + lines * LINE + GAP), "white")
    image.paste(Image.fromarray(frame).resize((side, side), Image.Resampling.NEAREST), (0, 0))
    ImageDraw.Draw(image).multiline_text((2, side + 1), caption, fill="black", spacing=1)
    frames.append(image)
  return frames


def main() -> None:
  """Writes the picture."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("samples", type=Path, help="folder that `walt_t5x.generate` wrote")
  parser.add_argument("output", type=Path, help=".webp")
  parser.add_argument("--columns", type=int, default=6)
  parser.add_argument("--rows", type=int, default=2)
  parser.add_argument("--side", type=int, default=128, help="edge of a clip in pixels")
  args = parser.parse_args()
  folder = SampleFolder(args.samples)
  chosen = list(itertools.islice(folder.samples(), args.columns * args.rows))
  stage = list(chosen[0].files)[-1]
  lines = max(len(textwrap.wrap(sample.prompt, args.side // LETTER)) for sample in chosen)
  clips = [cell(folder, sample, stage, side=args.side, lines=lines) for sample in chosen]
  length = min(map(len, clips))
  pages = []
  for t in range(length):
    rows = [
      np.concatenate([np.asarray(clip[t]) for clip in clips[start : start + args.columns]], axis=1)
      for start in range(0, len(clips), args.columns)
      if len(clips[start : start + args.columns]) == args.columns
    ]
    pages.append(Image.fromarray(np.concatenate(rows)))
  fps = chosen[0].sidecar["fps"]
  # The last frame stays a while before the clips start again.
  durations = [round(1000 / fps)] * (length - 1) + [1000]
  pages[0].save(
    args.output, save_all=True, append_images=pages[1:], duration=durations, loop=0, quality=80
  )
  print(
    f"{args.output}: {len(clips)} clips of stage {stage}, {args.output.stat().st_size / 1e3:.0f} kB"
  )


if __name__ == "__main__":
  main()
