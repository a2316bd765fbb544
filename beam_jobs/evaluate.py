"""Scores a folder of generated samples on many workers: `walt_t5x.evaluate` as a Beam job.

  python -m beam_jobs.evaluate --protocol=fvd --samples=samples --reference=real --i3d_weights=i3d.safetensors \\
    --runner=FnApiRunner --direct_running_mode=multi_processing --direct_num_workers=2

Accepts the flags of `walt_t5x.evaluate` that define what is scored, and Beam's. Workers compute statistics of parts of
--clips_per_part clips, which Beam combines, so only a few matrices per fold reach the launcher. Media, weights,
--output and --parts_dir are paths that every worker can access; all but weights may be addresses of object stores.
Without --output the scores of another program's samples are in the current folder, and workers must be able to write
there too. With --parts_dir, a job that was killed resumes from the parts that it saved.
"""

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from beam_jobs.runners import local_worker, running
from walt_t5x.config import programs
from walt_t5x.config.waiting import waiting
from walt_t5x.evaluation import flags
from walt_t5x.metrics.protocols import PROTOCOLS


def run(argv: Sequence[str] | None = None) -> dict[str, Any]:
  """Runs the job: prints, writes and returns what `walt_t5x.evaluate` does.

  Raises:
    FileNotFoundError: if weights or media do not exist.
    ValueError: if flags or files do not fit the protocol or Beam, or workers cannot write where the scores will be.
  """
  parser = programs.parser("beam_jobs.evaluate", __doc__, allow_abbrev=False)
  parser.add_argument("--protocol", required=True, choices=PROTOCOLS)
  flags.add_arguments(parser)
  args, rest = parser.parse_known_args(argv)
  import apache_beam as beam

  from beam_jobs.runners import evaluation_parts
  from walt_t5x.evaluation import feature_scores
  from walt_t5x.evaluation.parts import PartStatistics, load_part

  options = running.beam_options(rest, args)
  evaluation = evaluation_parts.loaded(args)
  started = time.monotonic()
  # In the folder of the scores, where every worker can write.
  output = feature_scores.scores_file(args, evaluation.protocol).absolute()
  output.parent.mkdir(parents=True, exist_ok=True)
  with evaluation_parts.folds_folder(output.parent) as folder:
    scoring = waiting("evaluate", f"scoring {len(evaluation.plans)} parts")
    with scoring, local_worker.started_by_beam(), beam.Pipeline(options=options) as root:
      _ = (
        root
        | "Parts" >> beam.Create(range(len(evaluation.plans)))
        | "Spread" >> beam.Reshuffle()
        | "Score" >> beam.Map(evaluation_parts.make_part, args)
        | "Merge" >> beam.CombinePerKey(evaluation_parts.merge_parts)
        | "Keep" >> beam.Map(evaluation_parts.keep_fold, folder)
      )
    folds: dict[bool, list[PartStatistics]] = {False: [], True: []}
    for references, fold in sorted({(plan.references, plan.fold) for plan in evaluation.plans}):
      statistics = load_part(evaluation_parts.fold_file(folder, references, fold), contents="fold")
      if statistics is None:
        raise ValueError(
          f"no worker wrote to {output.parent}, the folder of the scores: set --output=FOLDER/scores.json with a "
          "folder that launcher and workers share"
        )
      folds[references].append(statistics)
  clips = sum(len(plan.clips) for plan in evaluation.plans)
  seconds = time.monotonic() - started
  rate = f"{clips / seconds:.2f} clips/s, including the job's start"
  print(f"{clips} clips in {seconds:.1f} s, {rate}")
  scores = evaluation.scores(folds[False], folds[True])
  return feature_scores.write_scores(args, evaluation, scores)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the program."""
  local_worker.log_warnings()
  try:
    result = run(argv)
  except (FileNotFoundError, ValueError) as error:
    print(f"evaluate: {error}", file=sys.stderr)
    return 2
  print(json.dumps(result))
  return 0


if __name__ == "__main__":
  sys.exit(main())
