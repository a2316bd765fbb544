"""Scores a folder of generated samples by a named protocol, and shows the verdicts in its gallery.

  python -m walt_t5x.evaluate --protocol=caption_obedience --samples=samples

Protocols:
  caption_obedience  shapes vocabulary: does a pixel reader see the colour and the direction that the prompt names?

Prints a table, then the same as one line of JSON; writes `scores.json` beside the samples and, with --log_dir,
TensorBoard events through CLU.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

PROTOCOLS = ("caption_obedience",)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  """The flags."""
  parser = argparse.ArgumentParser(
    prog="python -m walt_t5x.evaluate",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--protocol", required=True, choices=PROTOCOLS)
  parser.add_argument("--samples", required=True, help="--output of `python -m walt_t5x.generate`")
  parser.add_argument("--log_dir", help="TensorBoard folder for the scores")
  return parser.parse_args(argv)


def caption_obedience(folder) -> dict[str, Any]:
  """Judges the video files of every stage; the first stage's counts stand for the protocol.

  Returns:
    {"protocol", "scores": {stage: {name: number}}, "verdicts": {index: {property: right}}}.
  """
  from tqdm import tqdm

  from walt_t5x.metrics.caption_obedience import judge, tally

  by_stage: dict[str, list] = {}
  verdicts: dict[str, dict[str, bool | None]] = {}
  for sample in tqdm(list(folder.samples()), unit="video", desc="judge", file=sys.stderr):
    for stage in sample.files:
      verdict = judge(folder.read(sample, stage), sample.prompt)
      by_stage.setdefault(stage, []).append(verdict)
      prefix = "" if len(sample.files) == 1 else f"{stage} "
      verdicts.setdefault(str(sample.index), {}).update(
        {
          f"{prefix}colour": verdict.colour_right,
          f"{prefix}direction": verdict.direction_right,
        }
      )
  totals = {stage: tally(found) for stage, found in by_stage.items()}
  for stage, total in totals.items():
    print(f"{stage}: {total}")
  return {
    "protocol": "caption_obedience",
    "scores": {stage: total.as_dict() for stage, total in totals.items()},
    "verdicts": verdicts,
  }


def run(argv: Sequence[str] | None = None) -> dict[str, Any]:
  """Evaluates, prints and writes; returns the result."""
  args = parse_arguments(argv)
  from walt_t5x.generation.sample_folder import SampleFolder

  folder = SampleFolder(args.samples)
  try:
    result = {"caption_obedience": caption_obedience}[args.protocol](folder)
  except FileNotFoundError as error:
    sys.exit(str(error))
  folder.write_scores(result)
  gallery = folder.write_gallery()
  if args.log_dir:
    from clu import metric_writers

    step = max((max(s.sidecar["steps"].values()) for s in folder.samples()), default=0)
    writer = metric_writers.create_default_writer(args.log_dir, just_logging=False)
    for stage, scores in result["scores"].items():
      writer.write_scalars(step, {f"{stage}/{name}": value for name, value in scores.items()})
    writer.close()
  print(
    json.dumps({"protocol": args.protocol, "scores": result["scores"], "gallery": str(gallery)})
  )
  return result


if __name__ == "__main__":
  run()
