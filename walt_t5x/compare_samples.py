"""Shows the samples of two runs side by side: one self-contained HTML page with pairs of the same prompt and seed.

  python -m walt_t5x.compare_samples runs/a/samples runs/b/samples --output=compare.html

Both folders are the --output of `generate`. The clips of a pair play in step, with the verdicts of `evaluate` if the
folders were scored. Repeated prompts are paired in the order of their samples. Samples that only one folder has are
named at the top of the page and counted in the JSON that is printed.
"""

import argparse
import collections
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from walt_t5x.config import programs
from walt_t5x.files.paths import AnyPath, as_path

# Prompt, seed, and the number of earlier samples with both.
Key = tuple[str, int, int]


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the flags."""
  parser = programs.parser("walt_t5x.compare_samples", __doc__)
  parser.add_argument("first", type=as_path, help="--output of generate")
  parser.add_argument("second", type=as_path, help="--output of another generate")
  parser.add_argument("--max_samples", type=int, default=64, help="pairs shown (64)")
  parser.add_argument("--output", type=as_path, required=True, help=".html file")
  args = parser.parse_args(argv)
  if args.first.resolve() == args.second.resolve():
    parser.error(f"{args.first} is compared with itself: give two folders")
  if args.max_samples < 1:
    parser.error(f"--max_samples: got {args.max_samples}, expected 1 or more")
  return args


def run_names(first: AnyPath, second: AnyPath) -> tuple[str, str]:
  """Names of two folders: their paths without the parts that both begin or end with."""
  parts = [list(path.resolve().parts) for path in (first, second)]
  for end in (0, -1):
    while all(parts) and parts[0][end] == parts[1][end]:
      for path in parts:
        path.pop(end)
  if not all(parts):
    return str(first), str(second)
  return "/".join(parts[0]), "/".join(parts[1])


def by_key(samples: Iterator[Any]) -> dict[Key, Any]:
  """The samples of a folder, in order."""
  seen = collections.Counter[tuple[str, int]]()
  found = {}
  for sample in samples:
    said = sample.prompt, sample.sidecar["seed"]
    found[*said, seen[said]] = sample
    seen[said] += 1
  return found


def compare(args: argparse.Namespace) -> dict[str, Any]:
  """Writes the page.

  Returns:
    {"page", "pairs", "shown", "unpaired"}: the file, numbers of pairs, and name -> number of unpaired samples.

  Raises:
    FileNotFoundError: a folder has no samples.
    ValueError: no sample of one folder has the prompt and the seed of one of the other.
  """
  from walt_t5x.generation.sample_folder import SampleFolder
  from walt_t5x.html import gallery

  names = run_names(args.first, args.second)
  folders = SampleFolder(args.first), SampleFolder(args.second)
  samples = [by_key(folder.samples()) for folder in folders]
  pairs = [key for key in samples[0] if key in samples[1]]
  if not pairs:
    seeds = [sorted({seed for _, seed, _ in found}) for found in samples]
    raise ValueError(
      f"{args.first} and {args.second} share no prompt with the same seed (seeds {seeds[0]} and {seeds[1]}): "
      "generate both with the same prompts and --seed"
    )

  def item(key: Key) -> Any:
    stages: dict[str, list[gallery.ShownClip]] = {}
    verdict: dict[str, Mapping[str, bool]] = {}
    details: dict[str, object] = {}
    for name, folder, found in zip(names, folders, samples):
      sample = found[key]
      details[name] = f"#{sample.index}"
      for clip in folder.shown_clips(sample):
        shown = dataclasses.replace(clip, name=f"{name} {clip.name}")
        stages.setdefault(clip.name, []).append(shown)
        verdict[shown.name] = sample.verdict.get(clip.name, {})
    return gallery.GalleryItem(
      prompt=key[0],
      seed=key[1],
      # A stage's clips of both runs are next to each other.
      stages=[clip for clips in stages.values() for clip in clips],
      verdict=verdict,
      details=details,
    )

  remarks, unpaired = {}, {}
  for name, found, others in zip(names, samples, reversed(samples)):
    alone = [key for key in found if key not in others]
    unpaired[name] = len(alone)
    if alone:
      lines = [f"#{found[key].index} {key[0]} (seed {key[1]})" for key in alone]
      remarks[f"Only in {name}: {len(alone)} of {len(found)} samples"] = lines
  page = gallery.write_gallery(
    args.output,
    map(item, pairs[: args.max_samples]),
    title=f"{names[0]} and {names[1]}",
    remarks=remarks,
  )
  shown = min(len(pairs), args.max_samples)
  return {"page": str(page), "pairs": len(pairs), "shown": shown, "unpaired": unpaired}


def main(argv: Sequence[str] | None = None) -> None:
  """Writes the page and prints a summary."""
  args = parse_arguments(argv)
  with programs.user_errors("compare_samples"):
    print(json.dumps(compare(args)))


if __name__ == "__main__":
  main()
