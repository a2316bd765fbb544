"""One HTML page of a project: scores with their protocols, samples, and each run's curves, data and plan.

  python -m walt_t5x.report --run=runs/quickstart/base --run=runs/quickstart/sr1 \\
    --samples=runs/quickstart/samples --output=report.html

`--run` is the MODEL_DIR of a training run, `--samples` the --output of `generate`; scores are the `scores*.json` that
`evaluate` wrote into the sample folders, and additional files of `--scores`. The page is self-contained and opens
offline; a summary of it is printed as JSON.
"""

import argparse
import dataclasses
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from walt_t5x.config import gin_text, programs
from walt_t5x.config.waiting import waiting
from walt_t5x.files.paths import as_path
from walt_t5x.html.report_inputs import RunFolder


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the flags."""
  parser = programs.parser("walt_t5x.report", __doc__)
  repeatable = {"action": "append", "default": [], "type": as_path}
  parser.add_argument("--run", **repeatable, help="MODEL_DIR; repeatable")
  parser.add_argument("--samples", **repeatable, help="--output of generate; repeatable")
  parser.add_argument("--scores", **repeatable, help="additional scores file; repeatable")
  parser.add_argument("--max_samples", type=int, default=12, help="clips shown per folder")
  parser.add_argument("--title", default="Report")
  parser.add_argument("--output", type=as_path, required=True, help=".html file")
  args = parser.parse_args(argv)
  if not (args.run or args.samples or args.scores):
    parser.error("nothing to report: give --run, --samples or --scores")
  return args


def plan_of(run: RunFolder) -> Mapping[str, Any] | str:
  """The plan of the model that a run recorded, or the reason why there is none.

  A recorded configuration is read as text, because parsing gin executes what it names; the model is that of model.json.
  """
  from walt_t5x.models import model_record
  from walt_t5x.models.denoiser_model import DenoiserModel
  from walt_t5x.planning.run_plan import plan_model

  try:
    record = model_record.read(run.path)
  except (FileNotFoundError, ValueError) as error:
    return f"none: {str(error).splitlines()[0]}"
  sizes = gin_text.recorded_sizes(run.config)
  rows = sizes.get("BATCH_SIZE")
  if not isinstance(record.model, DenoiserModel) or record.latents is None or rows is None:
    return "none: run `python -m walt_t5x.plan` with the gin file of the run"
  plan = plan_model(
    record.model,
    batch_size=rows,
    field=record.latents,
    low_resolution=record.low_resolution,
    text_length=record.text_length,
    steps=sizes.get("TRAIN_STEPS"),
  )
  return dataclasses.asdict(plan)


def report(args: argparse.Namespace) -> dict[str, Any]:
  """Writes the page.

  Returns:
    {"report", "runs", "scores", "samples"}: the file, and the number of each that it shows.

  Raises:
    FileNotFoundError: a run, a sample folder or a scores file does not exist.
    ValueError: a scores file has no scores.
  """
  from walt_t5x.generation.sample_folder import SampleFolder
  from walt_t5x.html.report_inputs import read_run, read_scores
  from walt_t5x.html.report_page import write_report

  parents = {path.name for path in args.run}
  unique = len(parents) == len(args.run)
  runs = [read_run(path, path.name if unique else str(path)) for path in args.run]
  samples, files, shown = [], list(args.scores), 0
  for path in args.samples:
    folder = SampleFolder(path)
    shown += len(list(folder.samples())[: args.max_samples])
    samples.append(folder.gallery_items(args.max_samples))
    files += sorted(path.glob("scores*.json"))
  scores = [row for file in files for row in read_scores(file)]
  write_report(
    args.output,
    title=args.title,
    runs=runs,
    plans={run.name: plan_of(run) for run in runs},
    scores=scores,
    samples=itertools.chain.from_iterable(samples),
  )
  return {
    "report": str(args.output),
    "runs": len(runs),
    "scores": len(scores),
    "samples": shown,
  }


def main(argv: Sequence[str] | None = None) -> None:
  """Writes the page and prints a summary."""
  args = parse_arguments(argv)
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
  with programs.user_errors("report"), waiting("report", "reading the runs"):
    result = report(args)
  print(json.dumps(result))


if __name__ == "__main__":
  main()
