"""Scores of protocols that compare features of clips: from flags to an evaluation, its parts and its scores."""

import argparse
from typing import Any

from walt_t5x.evaluation.scores_output import write_scores


def load_evaluation(args: argparse.Namespace):
  """The evaluation that the flags describe: protocol, weights, files, parts.

  Raises:
    FileNotFoundError: weights or media are missing.
    ValueError: flags or files do not fit the protocol.
  """
  from walt_t5x.evaluation.clip_scores import LpipsNetwork
  from walt_t5x.evaluation.clip_sources import find_media
  from walt_t5x.evaluation.scoring import Evaluation
  from walt_t5x.metrics.feature_statistics import load_gaussian
  from walt_t5x.metrics.networks import FeatureNetwork

  protocol = _changed(args)
  images = protocol.frames == 1
  # Weights first: a missing file is reported before anything is decoded.
  networks: dict[str, FeatureNetwork | LpipsNetwork] = {}
  for name in protocol.networks:
    file = getattr(args, f"{name}_weights")
    networks[name] = LpipsNetwork.load(file) if name == "lpips" else FeatureNetwork.load(name, file)
  samples = find_media(args.samples, images=images, stage=args.stage)
  references = None
  if args.reference and args.reference.endswith(".npz"):
    references = load_gaussian(args.reference)
  elif args.reference:
    references = find_media(
      args.reference, images=images, stage=args.stage, split=args.reference_split
    )
  return Evaluation(
    protocol,
    samples,
    references,
    networks,
    batch_size=args.batch_size,
    clips_per_part=args.clips_per_part,
    parts_dir=args.parts_dir,
  )


def make_parts(args: argparse.Namespace) -> dict[str, Any]:
  """Computes and stores every `process_count`-th part; computes no scores.

  Returns:
    {"protocol", "protocol_hash", "parts": computed or found, "of": number of all parts, "clips", "kept"}.
  """
  evaluation = load_evaluation(args)
  mine = evaluation.plans[args.process_index :: args.process_count]
  for plan in mine:
    evaluation.part(plan)
  print(_speed(evaluation))
  return {
    "protocol": evaluation.protocol.name,
    "protocol_hash": evaluation.protocol.hash,
    "parts": len(mine),
    "of": len(evaluation.plans),
    "clips": evaluation.clips,
    "kept": evaluation.kept,
  }


def _speed(evaluation) -> str:
  import resource

  seconds, clips = evaluation.seconds, evaluation.clips
  rate = f"{clips} clips in {seconds:.1f} s, {clips / seconds:.2f} clips/s" if clips else "no clips"
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  return f"scored {rate}; {evaluation.kept} from stored parts; peak memory {peak:.0f} MiB"


def score_features(args: argparse.Namespace) -> dict[str, Any]:
  """Scores by the features of a network; prints the table and writes the JSON.

  Returns:
    {"protocol", "protocol_hash", "fields", "scores": {name: numbers}, "file"}.
  """
  from walt_t5x.evaluation.scoring import score_evaluation

  evaluation = load_evaluation(args)
  scores = score_evaluation(evaluation, cache_dir=args.cache_dir)
  print(_speed(evaluation))
  return write_scores(args, evaluation.protocol, scores)


def _changed(args: argparse.Namespace):
  """The protocol, with the changes from the flags."""
  from walt_t5x.metrics.protocols import PROTOCOLS as by_name

  protocol = by_name[args.protocol]
  changes: dict[str, Any] = {
    field: value
    for field, value in {
      "frames": args.frames,
      "size": args.size,
      "sample_count": args.count,
      "reference_count": args.reference_count,
      "folds": args.folds,
    }.items()
    if value is not None
  }
  if args.scores:
    chosen = args.scores.split(",")
    unknown = set(chosen) - {rule.name for rule in protocol.scores}
    if unknown:
      raise ValueError(
        f"{args.protocol} has the scores {[r.name for r in protocol.scores]}, got --scores={args.scores}."
      )
    changes["scores"] = tuple(rule for rule in protocol.scores if rule.name in chosen)
  return protocol.replace(**changes) if changes else protocol
