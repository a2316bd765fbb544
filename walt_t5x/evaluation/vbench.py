"""VBench's prompts for `generate`, and the samples under the names that VBench reads.

  python -m walt_t5x.evaluation.vbench --full_info=VBench_full_info.json --prompts=vbench.txt
  python -m walt_t5x.generate --gin_file=... --prompts_file=vbench.txt --num_samples=5 --output=samples
  python -m walt_t5x.evaluation.vbench --full_info=VBench_full_info.json --samples=samples --output=vbench

VBench (2311.17982) scores files named `<prompt>-<0..4>.mp4`, five clips of each prompt. `VBench_full_info.json` is in
its package; --dimension keeps the prompts of some of its 16 dimensions. The scores themselves need VBench and its
networks: `vbench evaluate --videos_path vbench --dimension ...`.
"""

import argparse
import itertools
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from walt_t5x.config import programs, usage
from walt_t5x.files import storage
from walt_t5x.files.paths import AnyPath
from walt_t5x.generation.sample_folder import SampleFolder

CLIPS_PER_PROMPT = 5
# What VBench reads; each index of a prompt has the suffix of the folder's first file.
SUFFIXES = (".mp4", ".gif")


def prompts_of(info: Iterable[Mapping[str, Any]], dimensions: Sequence[str] = ()) -> list[str]:
  """The different prompts of the dimensions (all by default), in VBench's order.

  Raises:
    ValueError: no prompt has one of the dimensions.
  """
  rows = list(info)
  known = {name for row in rows for name in row["dimension"]}
  if unknown := sorted(set(dimensions) - known):
    raise ValueError(
      f"--dimension: got {', '.join(unknown)}, expected some of {', '.join(sorted(known))}"
    )
  chosen = set(dimensions) or known
  return list(dict.fromkeys(row["prompt_en"] for row in rows if chosen & set(row["dimension"])))


def files_by_name(
  samples: Path, prompts: Sequence[str], stage: str | None = None
) -> dict[str, AnyPath]:
  """VBench's name -> the sample's file, the first five samples of each prompt.

  Raises:
    ValueError: a prompt has fewer samples, a file is not of a kind that VBench reads, or a stage is unknown.
  """
  # A file of prompts has no spaces at the ends of its lines.
  names = {prompt.strip(): prompt for prompt in prompts}
  found: dict[str, list[AnyPath]] = defaultdict(list)
  for sample in SampleFolder(samples).samples():
    chosen = stage or list(sample.files)[-1]
    if chosen not in sample.files:
      raise ValueError(f"--stage: got {chosen}, expected one of {', '.join(sample.files)}")
    if sample.prompt.strip() in names:
      found[names[sample.prompt.strip()]].append(sample.files[chosen])
  short = [prompt for prompt in prompts if len(found[prompt]) < CLIPS_PER_PROMPT]
  if short:
    raise ValueError(
      f"--samples={samples}: {len(short)} of {len(prompts)} prompts have fewer than {CLIPS_PER_PROMPT} samples, for "
      f"example {len(found[short[0]])} of {short[0]!r}; generate with --num_samples={CLIPS_PER_PROMPT}"
    )
  suffixes = {path.suffix for paths in found.values() for path in paths}
  if len(suffixes) != 1 or not suffixes <= set(SUFFIXES):
    raise ValueError(
      f"--samples={samples}: got {', '.join(sorted(suffixes))} files, expected one of {', '.join(SUFFIXES)}; "
      "generate with --formats=mp4"
    )
  return {
    f"{prompt}-{index}{path.suffix}": path
    for prompt in prompts
    for index, path in enumerate(itertools.islice(found[prompt], CLIPS_PER_PROMPT))
  }


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the flags."""
  parser = programs.parser("walt_t5x.evaluation.vbench", __doc__)
  parser.add_argument(
    "--full_info", type=usage.local_path, required=True, help="VBench_full_info.json"
  )
  parser.add_argument(
    "--dimension", action="append", default=[], help="only its prompts; may be repeated"
  )
  parser.add_argument(
    "--prompts", type=usage.local_path, help="text file to write, one prompt per line"
  )
  parser.add_argument("--samples", type=usage.local_path, help="output folder of `generate`")
  parser.add_argument("--stage", help="stage to score; the last one by default")
  parser.add_argument("--output", type=usage.local_path, help="folder for VBench, with --samples")
  args = parser.parse_args(argv)
  if (args.prompts is None) == (args.samples is None):
    parser.error("expected --prompts to write prompts, or --samples and --output to name samples")
  if (args.samples is None) != (args.output is None):
    parser.error("--samples and --output go together")
  return args


def main(argv: Sequence[str] | None = None) -> None:
  """Writes prompts, or copies samples."""
  from tqdm import tqdm

  args = parse_arguments(argv)
  with programs.user_errors("vbench"):
    prompts = prompts_of(storage.read_json(args.full_info), args.dimension)
    if args.prompts:
      storage.write(args.prompts, "".join(f"{prompt.strip()}\n" for prompt in prompts))
      print(
        f"{len(prompts)} prompts in {args.prompts}; {CLIPS_PER_PROMPT} clips of each are scored"
      )
      return
    files = files_by_name(args.samples, prompts, args.stage)
    args.output.mkdir(parents=True, exist_ok=True)
    for name, path in tqdm(files.items(), unit="file", file=sys.stderr, disable=None):
      shutil.copyfile(path, args.output / name)
  print(f"{len(files)} clips of {len(prompts)} prompts in {args.output}")


if __name__ == "__main__":
  main()
