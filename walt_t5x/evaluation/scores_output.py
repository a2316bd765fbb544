"""Where scores go: the printed table, the JSON next to the samples, TensorBoard."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def scores_file(args: argparse.Namespace, protocol) -> Path:
  """Path of the JSON file."""
  folder = Path(args.samples) if Path(args.samples).is_dir() else Path(args.samples).parent
  return args.output or folder / f"scores_{protocol.name}.json"


def write_scores(args: argparse.Namespace, protocol, scores) -> dict[str, Any]:
  """Prints the table, writes the JSON and, with --log_dir, the events; returns the first fields of the JSON."""
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
    log_scores(args.log_dir, args.step or 0, values)
  return {k: result[k] for k in ("protocol", "protocol_hash", "scores")} | {"file": str(file)}


def log_scores(log_dir: str, step: int, values: Mapping[str, float]) -> None:
  """Writes scores as TensorBoard events of one step."""
  from clu import metric_writers

  writer = metric_writers.create_default_writer(log_dir, just_logging=False)
  writer.write_scalars(step, values)
  writer.close()


def _table(protocol, scores) -> str:
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
