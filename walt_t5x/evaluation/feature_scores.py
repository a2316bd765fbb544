"""Scores of protocols that compare features of clips: from flags to an evaluation, its scores, and where they go."""

import argparse
import resource
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from walt_t5x.config import programs
from walt_t5x.evaluation import alike
from walt_t5x.evaluation.clip_scores import LpipsNetwork
from walt_t5x.evaluation.media_files import find_media, is_ours
from walt_t5x.evaluation.scoring import Evaluation, Score, score_evaluation
from walt_t5x.files import mirror, storage
from walt_t5x.files.paths import AnyPath, as_path
from walt_t5x.media import writing
from walt_t5x.metrics.feature_statistics import load_gaussian
from walt_t5x.metrics.networks import FeatureNetwork
from walt_t5x.metrics.protocols import PROTOCOLS
from walt_t5x.metrics.protocols.protocol import Geometry, Protocol


def load_evaluation(args: argparse.Namespace) -> Evaluation:
  """The evaluation that the flags describe: protocol, weights, files, parts.

  Raises:
    FileNotFoundError: weights or media are missing.
    ValueError: flags or files do not fit the protocol.
  """
  protocol = _changed(args)
  images = protocol.frames == 1
  # Weights first: a missing file is reported before anything is decoded.
  networks: dict[str, FeatureNetwork | LpipsNetwork] = {}
  for name in protocol.networks:
    file = getattr(args, f"{name}_weights")
    if name == "lpips":
      networks[name] = LpipsNetwork.load(file)
    else:
      networks[name] = FeatureNetwork.of_protocol(protocol, name, file)
  samples = find_media(args.samples, images=images, stage=args.stage)
  references = None
  if args.reference and args.reference.endswith(".npz"):
    references = load_gaussian(args.reference)
  elif args.reference:
    references = find_media(
      args.reference, images=images, stage=args.stage, split=args.reference_split
    )
    if found := alike.difference(samples, references, protocol):
      print(f"evaluate: {found}", file=sys.stderr)
  return Evaluation(
    protocol,
    samples,
    references,
    networks,
    batch_size=args.batch_size,
    clips_per_part=args.clips_per_part,
    parts_dir=args.parts_dir,
  )


def _changed(args: argparse.Namespace) -> Protocol:
  """The protocol, with the changes from the flags."""
  protocol = PROTOCOLS[args.protocol]
  fields = {
    "frames": args.frames,
    "size": args.size,
    "fps": args.fps,
    "geometry": args.geometry and Geometry(args.geometry),
    "sample_count": args.count,
    "reference_count": args.reference_count,
    "folds": args.folds,
  }
  chosen = args.scores.split(",") if args.scores else [rule.name for rule in protocol.scores]
  if set(chosen) - {rule.name for rule in protocol.scores}:
    raise ValueError(
      f"{args.protocol} has the scores {[r.name for r in protocol.scores]}, got --scores={args.scores}."
    )
  return protocol.replace(
    scores=tuple(rule for rule in protocol.scores if rule.name in chosen),
    **{name: value for name, value in fields.items() if value is not None},
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


def score_features(args: argparse.Namespace) -> dict[str, Any]:
  """Scores by the features of a network; prints the table and writes the JSON.

  Returns:
    {"protocol", "protocol_hash", "scores": {name: numbers}, "file"}.
  """
  evaluation = load_evaluation(args)
  scores = score_evaluation(evaluation, cache_dir=args.cache_dir)
  print(_speed(evaluation))
  return write_scores(args, evaluation, scores)


def _speed(evaluation: Evaluation) -> str:
  seconds, clips = evaluation.seconds, evaluation.clips
  rate = f"{clips} clips in {seconds:.1f} s, {clips / seconds:.2f} clips/s" if clips else "no clips"
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  return f"scored {rate}; {evaluation.kept} from stored parts; peak memory {peak:.0f} MiB"


def lossy_suffixes(evaluation: Evaluation) -> list[str]:
  """Suffixes of the generated samples that a lossy codec wrote."""
  lossy = (*writing.VIDEO_SUFFIXES, *writing.ANIMATION_SUFFIXES)
  generated = (clip.media.path for clip in evaluation.sample_clips if clip.media.generated)
  return sorted({path.suffix for path in generated if path.suffix in lossy})


def scores_file(args: argparse.Namespace, protocol: Protocol) -> AnyPath:
  """AnyPath of the JSON file: with samples that our programs wrote, else in the current folder."""
  folder = as_path(args.samples) if as_path(args.samples).is_dir() else as_path(args.samples).parent
  return (
    args.output or (folder if is_ours(folder) else as_path(".")) / f"scores_{protocol.name}.json"
  )


def write_scores(
  args: argparse.Namespace, evaluation: Evaluation, scores: Sequence[Score]
) -> dict[str, Any]:
  """Prints the table, and what a codec may have changed; writes the JSON and, with --log_dir, the events.

  Returns the first fields of the JSON.
  """
  protocol, lossy = evaluation.protocol, lossy_suffixes(evaluation)
  print(_table(protocol, scores))
  if lossy:
    print(
      f"evaluate: --samples={args.samples} has {' and '.join(lossy)} files: their codec changes colors and detail, "
      "and so the score. Generate with --formats=png to score what the model made.",
      file=sys.stderr,
    )
  result = {
    "protocol": protocol.name,
    "protocol_hash": protocol.hash,
    "scores": {s.rule.name: s.as_dict() for s in scores},
    "samples": str(args.samples),
    "lossy_samples": lossy,
    "reference": args.reference,
    "fields": protocol.as_dict(),
  }
  file = scores_file(args, protocol)
  storage.write_json(file, result)
  if args.log_dir:
    values = {}
    for s in scores:
      # The hash is part of the name: curves of different protocols never share a plot.
      name = f"{protocol.name}/{s.rule.name}@{s.protocol_hash}"
      values |= {name: s.value.mean, f"{name}/std": s.value.std}
    log_scores(args.log_dir, args.step or 0, values)
  return {k: result[k] for k in ("protocol", "protocol_hash", "scores")} | {"file": str(file)}


def log_scores(log_dir: str, step: int, values: Mapping[str, float]) -> None:
  """Writes scores as TensorBoard events of one step."""
  with programs.quiet_imports():
    from clu import metric_writers

  copied = mirror.Mirror(log_dir)
  writer = metric_writers.create_default_writer(copied.folder, just_logging=False)
  writer.write_scalars(step, values)
  writer.close()
  copied.upload()


def _table(protocol: Protocol, scores: Sequence[Score]) -> str:
  lines = [
    f"{'score':<10} {'value':<20} {'protocol':<42} {'samples':>8} {'references':>10}  network"
  ]
  for score in scores:
    network = "-"
    if score.network:
      network = (
        f"{score.rule.network} {score.network.fingerprint[:12]} ({score.network.description})"
      )
    lines.append(
      f"{score.rule.name:<10} {score.value!s:<20} {protocol.name + '@' + score.protocol_hash:<42} "
      f"{score.samples:>8} {score.references:>10}  {network}"
    )
  return "\n".join(lines)
