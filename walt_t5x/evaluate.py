"""Scores a folder of generated samples by a named protocol.

  python -m walt_t5x.evaluate --protocol=caption_obedience --samples=samples
  python -m walt_t5x.evaluate --protocol=fvd --samples=samples --reference=real --i3d_weights=i3d.safetensors

Protocols (docs/evaluation.md has what each pins):
  caption_obedience        shapes vocabulary: does a pixel reader see the colour and the direction of the prompt?
  text_alignment           cosine of frames and prompt by a CLIP in a local folder (--clip_weights)
  fvd                      any two folders, one 16-frame clip of every file
  ucf101_class_conditional FVD and IS           ucf101_zero_shot  FVD and IS of text to video
  k600_frame_prediction    FVD                  imagenet256       FID and IS
  tokenizer                rFVD, PSNR, SSIM, LPIPS of what `walt_t5x.reconstruct` wrote
  motion                   how much clips change, and how steadily; needs no weights and no reference
  shapes_fvd               as fvd at 9 frames, by a stand-in network that trains in a minute

Samples and references are folders of media at any depth, .jsonl manifests, or what `generate` wrote; for FID also
an .npz with mu and sigma. Prints a table with the protocol's hash beside each score, then the same as one line of
JSON; writes it beside the samples and, with --log_dir, TensorBoard events through CLU. With --parts_dir a killed
evaluation goes on where it was, and several processes share one: each with its --process_index and --process_count,
then the same command without them scores.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

OBEDIENCE, ALIGNMENT = "caption_obedience", "text_alignment"
# Judge `generate`'s folders by their prompts.
BY_PROMPT = (OBEDIENCE, ALIGNMENT)
# The names are repeated here so that --help need not import the protocols; a test compares them.
PROTOCOLS = (
  *BY_PROMPT,
  "fvd",
  "ucf101_class_conditional",
  "ucf101_zero_shot",
  "k600_frame_prediction",
  "imagenet256",
  "tokenizer",
  "shapes_fvd",
  "motion",
)
# Of each network, the program that makes its file.
NETWORKS = {
  "i3d": "metrics.import_weights",
  "inception": "metrics.import_weights",
  "c3d": "metrics.import_weights",
  "lpips": "vae.import_lpips",
  "shapes": "metrics.train_stand_in",
}


def _size(text: str) -> tuple[int, int]:
  height, _, width = text.partition("x")
  return int(height), int(width)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  """The flags."""
  parser = argparse.ArgumentParser(
    prog="python -m walt_t5x.evaluate",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--protocol", required=True, choices=PROTOCOLS)
  add_arguments(parser)
  parser.add_argument("--cache_dir", type=Path, help="keeps the references' statistics")
  parser.add_argument("--clip_weights", help="folder of a CLIP, for text_alignment")
  shared = parser.add_argument_group("evaluations that several processes share, by --parts_dir")
  shared.add_argument(
    "--process_index",
    type=int,
    help="makes only this process's parts; the command without it scores",
  )
  shared.add_argument("--process_count", type=int, default=1, help="processes that share the parts")
  args = parser.parse_args(argv)
  if args.process_index is not None:
    if args.parts_dir is None:
      parser.error("--process_index needs --parts_dir, a folder that all processes share")
    if not 0 <= args.process_index < args.process_count:
      parser.error(
        f"0 <= --process_index < --process_count is expected, got {args.process_index} and "
        f"{args.process_count}"
      )
  elif args.process_count != 1:
    parser.error("--process_count needs --process_index")
  return args


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """The flags that say what is scored and where the scores go; the Beam job has them too."""
  parser.add_argument("--samples", required=True, help="folder, manifest, or --output of generate")
  parser.add_argument("--reference", help="folder, manifest, or an .npz with mu and sigma")
  parser.add_argument("--stage", help="of a generated cascade (default: the last)")
  parser.add_argument("--reference_split", help="split of a reference manifest")
  for network, program in NETWORKS.items():
    parser.add_argument(f"--{network}_weights", help=f"from `python -m walt_t5x.{program}`")
  changes = parser.add_argument_group("changes to the protocol (its hash changes too)")
  changes.add_argument("--frames", type=int, help="frames a clip")
  changes.add_argument("--size", type=_size, help="HEIGHTxWIDTH at which clips are scored")
  changes.add_argument("--count", type=int, help="samples a fold")
  changes.add_argument("--reference_count", type=int, help="reference clips a fold")
  changes.add_argument("--folds", type=int)
  changes.add_argument("--scores", help="only these, separated by commas")
  parser.add_argument("--batch_size", type=int, default=8, help="clips a forward pass")
  parser.add_argument(
    "--parts_dir",
    type=Path,
    help="keeps the statistics of parts; the same command goes on from them",
  )
  parser.add_argument("--clips_per_part", type=int, default=500, help="clips kept or lost together")
  parser.add_argument(
    "--output", type=Path, help="JSON (default: scores_PROTOCOL.json in --samples)"
  )
  parser.add_argument("--log_dir", help="TensorBoard folder for the scores")
  parser.add_argument("--step", type=int, help="training step of the samples, for TensorBoard")


def caption_obedience(folder) -> dict[str, Any]:
  """Judges the video files of every stage; the first stage's counts stand for the protocol.

  Returns:
    {"protocol", "protocol_hash", "fields", "scores": {stage: {name: number}}, "verdicts": {index: {property: right}}}.
  """
  from tqdm import tqdm

  from walt_t5x.metrics.caption_obedience import judge, tally
  from walt_t5x.metrics.protocols import by_prompt

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
  return _named(by_prompt.OBEDIENCE) | {
    "scores": {stage: total.as_dict() for stage, total in totals.items()},
    "verdicts": verdicts,
  }


def text_alignment(folder, clip_weights: str | None) -> dict[str, Any]:
  """The mean similarity of every stage's clips to their prompts.

  Returns:
    {"protocol", "protocol_hash", "fields", "network_fingerprint", "scores": {stage: {name: number}}}.

  Raises:
    FileNotFoundError: no CLIP, which says what belongs in its folder, or no samples.
  """
  import numpy as np
  from tqdm import tqdm

  from walt_t5x.metrics.clip_similarity import ClipSimilarity
  from walt_t5x.metrics.protocols import by_prompt
  from walt_t5x.video_io import to_uint8

  clip = ClipSimilarity.load(clip_weights)
  by_stage: dict[str, list[float]] = {}
  for sample in tqdm(list(folder.samples()), unit="video", desc="align", file=sys.stderr):
    for stage in sample.files:
      similarity = clip(to_uint8(folder.read(sample, stage)), sample.prompt)
      by_stage.setdefault(stage, []).append(similarity)
  scores = {
    stage: {
      "text_alignment/similarity": float(np.mean(values)),
      "text_alignment/std": float(np.std(values)),
      "text_alignment/clips": float(len(values)),
    }
    for stage, values in by_stage.items()
  }
  for stage, found in scores.items():
    print(f"{stage}: similarity {found['text_alignment/similarity']:.4f}")
  return _named(by_prompt.ALIGNMENT) | {"network_fingerprint": clip.fingerprint, "scores": scores}


def _named(protocol) -> dict[str, Any]:
  return {
    "protocol": protocol.name,
    "protocol_hash": protocol.hash,
    "fields": protocol.as_dict(),
  }


def _changed(args: argparse.Namespace):
  """The protocol, with the flags' changes."""
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


def _table(protocol, scores) -> str:
  lines = [
    f"{'score':<10} {'value':<20} {'protocol':<42} {'samples':>8} {'references':>10}  network"
  ]
  for score in scores:
    network = "-"
    if score.rule.network:
      network = (
        f"{score.rule.network} {score.network_fingerprint[:12]} ({score.network_description})"
      )
    lines.append(
      f"{score.rule.name:<10} {score.value!s:<20} {protocol.name + '@' + score.protocol_hash:<42} "
      f"{score.samples:>8} {score.references:>10}  {network}"
    )
  return "\n".join(lines)


def load_evaluation(args: argparse.Namespace):
  """The evaluation that the flags describe: protocol, weights, files, parts.

  Raises:
    FileNotFoundError: weights or media that are not there.
    ValueError: flags or files that do not fit the protocol.
  """
  from walt_t5x.evaluation.clip_scores import LpipsNetwork
  from walt_t5x.evaluation.clip_sources import find_media
  from walt_t5x.evaluation.scoring import Evaluation
  from walt_t5x.metrics.feature_statistics import load_gaussian
  from walt_t5x.metrics.networks import FeatureNetwork

  protocol = _changed(args)
  images = protocol.frames == 1
  # Weights first: a missing file is told before anything is decoded.
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
  """Makes every `process_count`-th part and keeps it; scores nothing.

  Returns:
    {"protocol", "protocol_hash", "parts": made or found, "of": all there are, "clips", "kept"}.
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
  return f"scored {rate}; {evaluation.kept} from kept parts; peak memory {peak:.0f} MiB"


def features_protocol(args: argparse.Namespace) -> dict[str, Any]:
  """Scores by a network's features; prints the table and writes the JSON.

  Returns:
    {"protocol", "protocol_hash", "fields", "scores": {name: numbers}, "file"}.
  """
  from walt_t5x.evaluation.scoring import score_evaluation

  evaluation = load_evaluation(args)
  scores = score_evaluation(evaluation, cache_dir=args.cache_dir)
  print(_speed(evaluation))
  return write_scores(args, evaluation.protocol, scores)


def scores_file(args: argparse.Namespace, protocol) -> Path:
  """Where the JSON goes."""
  folder = Path(args.samples) if Path(args.samples).is_dir() else Path(args.samples).parent
  return args.output or folder / f"scores_{protocol.name}.json"


def write_scores(args: argparse.Namespace, protocol, scores) -> dict[str, Any]:
  """Prints the table, writes the JSON and, with --log_dir, the events; returns the JSON's beginning."""
  print(_table(protocol, scores))
  result = {
    "protocol": protocol.name,
    "protocol_hash": protocol.hash,
    "scores": {s.rule.name: s.as_dict() for s in scores},
    "samples": str(args.samples),
    "reference": args.reference,
    "fields": protocol.as_dict(),
  }
  file = scores_file(args, protocol)
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
  if args.log_dir:
    values = {}
    for s in scores:
      # The hash is part of the name: curves of different protocols never share a plot.
      name = f"{protocol.name}/{s.rule.name}@{s.protocol_hash}"
      values[name] = s.value.mean
      values[f"{name}/std"] = s.value.std
    _log(args.log_dir, args.step or 0, values)
  return {k: result[k] for k in ("protocol", "protocol_hash", "scores")} | {"file": str(file)}


def _log(log_dir: str, step: int, values: Mapping[str, float]) -> None:
  from clu import metric_writers

  writer = metric_writers.create_default_writer(log_dir, just_logging=False)
  writer.write_scalars(step, values)
  writer.close()


def run(argv: Sequence[str] | None = None) -> dict[str, Any]:
  """Evaluates, prints and writes; returns the result."""
  args = parse_arguments(argv)
  try:
    if args.protocol in BY_PROMPT:
      result = _by_prompt(args)
    elif args.process_index is None:
      result = features_protocol(args)
    else:
      result = make_parts(args)
  except (FileNotFoundError, ImportError, ValueError) as error:
    sys.exit(f"evaluate: {error}")
  print(json.dumps(result))
  return result


def _by_prompt(args: argparse.Namespace) -> dict[str, Any]:
  """Scores of a folder that `generate` wrote; obedience also goes into its gallery."""
  from walt_t5x.generation.sample_folder import SampleFolder

  folder = SampleFolder(args.samples)
  if args.protocol == OBEDIENCE:
    result = caption_obedience(folder)
    folder.write_scores(result)
    said = {"gallery": str(folder.write_gallery())}
  else:
    result = text_alignment(folder, args.clip_weights)
    file = args.output or Path(args.samples) / f"scores_{ALIGNMENT}.json"
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    said = {"network_fingerprint": result["network_fingerprint"], "file": str(file)}
  if args.log_dir:
    step = max((max(s.sidecar["steps"].values()) for s in folder.samples()), default=0)
    values = {
      f"{stage}/{name}@{result['protocol_hash']}": value
      for stage, scores in result["scores"].items()
      for name, value in scores.items()
    }
    _log(args.log_dir, step, values)
  print(f"protocol {result['protocol']}@{result['protocol_hash']}")
  return {k: result[k] for k in ("protocol", "protocol_hash", "scores")} | said


if __name__ == "__main__":
  run()
